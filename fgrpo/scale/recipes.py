"""The paper's experiments as options: `python -m fgrpo train --preset paper-lastfm --data DIR`, on one 80 GB GPU.

From the paper: model, G = 8, n = 10, k = 5, lambda = 1, a warm start by SFT, greedy decoding. Its training lengths,
learning rates and batch sizes are not known to us, nor whether it trained all weights: the others are our choice, and
nothing here has been run at this size. `--dry-run` says what a recipe would do and need. Options that are given win.
"""

from typing import Any

PAPER: dict[str, Any] = {
    "model": "Qwen/Qwen3-4B-Instruct-2507", "dtype": "bfloat16", "device": "cuda",
    "credit": "fgrpo", "slate_reward": "recall", "lam": 1.0, "group": 8, "slate_size": 10, "rank_size": 5,
    "lora_rank": 16, "lora_alpha": 32, "sft_steps": 200, "sft_batch": 16, "sft_lr": 2e-4, "steps": 200, "queries": 16,
    "lr": 2e-5,
}  # fmt: skip
"""What the four recipes share, as flat fields of Config"""

RECIPES: dict[str, dict[str, Any]] = {
    "paper-movielens": {**PAPER, "task": "movielens", "micro": 4},
    "paper-lastfm": {**PAPER, "task": "lastfm", "micro": 4},
    "paper-hotpotqa": {**PAPER, "task": "hotpotqa", "micro": 2},
    "paper-musique": {**PAPER, "task": "musique", "micro": 2},
}
"""Recipe by name; `micro` is what 80 GB hold with room to spare"""
