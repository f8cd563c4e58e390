"""F-GRPO (Factorized Group-Relative Policy Optimization, arXiv 2605.12995): a research kit for a laptop.

Not the focal-scaling method of the same short name (arXiv 2602.06717). The files here are the algorithm. Read them in
this order: config, data, prompt, policy, rollout, rewards, credit, loss, trainer, evaluate. The folders are rooms around
it, each with a README: tasks, lm, runs, baselines, study, scale, cli, interactive.
"""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:  # fgrpo.lab and the other names of the front door, imported when they are used
    from importlib import import_module

    return import_module("fgrpo.interactive.names").named(name)
