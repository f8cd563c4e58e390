"""F-GRPO (Factorized Group-Relative Policy Optimization, arXiv 2605.12995): a research kit for a laptop.

Not the focal-scaling method of the same short name (arXiv 2602.06717).
"""

__version__ = "0.1.0"
