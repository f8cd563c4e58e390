"""Defaults of a run by task and by recipe, as flat fields; what the caller gives comes first."""

from collections.abc import Mapping

from ..config import Config, KitError
from .fields import config_with

PRESETS: dict[str, dict[str, object]] = {
    # the RL learning rate was chosen on the validation split for this horizon (data/results/recipe.csv)
    "lab-rec": {"sft_steps": 1000, "sft_lr": 1e-3, "steps": 600, "lr": 4e-4},
    "movielens": {"sft_steps": 1000, "sft_lr": 1e-3, "lr": 1e-4},
    # those of MovieLens; not tuned
    "movielens-loo": {"sft_steps": 1000, "sft_lr": 1e-3, "lr": 1e-4},
    "lastfm": {"sft_steps": 1000, "sft_lr": 1e-3, "lr": 1e-4},
    "lastfm-sdpo": {"sft_steps": 1000, "sft_lr": 1e-3, "lr": 1e-4},
    "lastfm-hetrec": {"sft_steps": 1000, "sft_lr": 1e-3, "lr": 1e-4},
    "lastfm-llara": {"sft_steps": 1000, "sft_lr": 1e-3, "lr": 1e-4},
    "games": {"sft_steps": 1000, "sft_lr": 1e-3, "lr": 1e-4, "negatives": "mixed"},  # of every retriever
    "recbole": {"sft_steps": 1000, "sft_lr": 1e-3, "lr": 1e-4},
}
"""Defaults by task, as flat fields; what is given on the command line comes first."""

LM_PRESET: dict[str, object] = {"sft_steps": 200, "sft_lr": 2e-4, "sft_batch": 16, "sft_weight_decay": 0.0, "lr": 2e-5,
                                "micro": 1}  # fmt: skip
"""Defaults of every task when a pretrained model is the policy: common values for LoRA, not tuned here."""

PAPER: dict[str, object] = {
    "model": "Qwen/Qwen3-4B-Instruct-2507", "dtype": "bfloat16", "device": "cuda", "credit": "fgrpo", "lam": 1.0,
    "slate_reward": "recall", "group": 8, "slate_size": 10, "rank_size": 5, "sft_steps": 200, "sft_batch": 16,
    "sft_lr": 2e-4, "steps": 200, "queries": 16, "lr": 2e-5, "lora_rank": 16, "lora_alpha": 32,
}  # fmt: skip
"""Model, G, n, k and lambda are the paper's; LoRA, rates, steps and batch sizes our choice. Never run at this size."""
MICRO = {"movielens": 4, "lastfm": 4, "hotpotqa": 2, "musique": 2}  # fits one GPU of 80 GB
LADDER: dict[str, dict[str, object]] = {
    "lab-cold": {"sft_steps": 300},
    "lab-warm": {},
    "lab-trained": {"sft_steps": 3000, "queries": 32, "steps": 300, "lr": 2e-4},
}
"""Three warm starts of the lab task, from one that has learned little to one on which SFT has converged, and RL for them."""
READS: dict[str, object] = {
    "features": "both",
    "pretrain": 1500,
    "sft_steps": 600,
    "demonstrations": "ranked",
    "lr": 1e-4,
}
"""A tiny policy that reads texts, for real data: of more than a few thousand users; with fewer, pre-train less."""
RECIPES = (
    LADDER
    | {"reads": READS}
    | {f"paper-{task}": {**PAPER, "task": task, "micro": micro} for task, micro in MICRO.items()}
)
"""What --preset names."""


def run_with(options: Mapping[str, object], recipe: str = "") -> Config:
    """The run that flat fields describe, over a recipe and the defaults of its task.

    Raises KitError on unknown fields and values, and on a recipe that is not for this policy.
    """
    from ..tasks import USED_BY, family  # not above: `--help` needs the names of recipes and nothing else

    if recipe not in ("", *RECIPES):
        raise KitError(f"recipe {recipe[:80]!r} is not known; choose from {', '.join(RECIPES)}.")
    options = {**RECIPES.get(recipe, {}), **options}
    task, model = str(options.get("task", "lab-rec")), options.get("model")
    if recipe in LADDER and (task != "lab-rec" or model):
        raise KitError(f"--preset {recipe} is for the tiny policy on task lab-rec: leave it out.")
    if recipe == "reads" and model:
        raise KitError(
            "--preset reads is for the tiny policy, and --model names a pretrained one: leave out one of them."
        )
    preset = PRESETS.get(family(task), {})
    if model:
        preset = LM_PRESET | {field: value for field, value in preset.items() if field in USED_BY}
    return config_with(**{**preset, **options})
