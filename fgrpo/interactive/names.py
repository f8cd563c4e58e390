"""The names of the package itself, `fgrpo.lab` and so on, each imported when it is first used."""

from importlib import import_module

NAMES = {
    "lab": "interactive.lab", "Lab": "interactive.lab", "export_html": "interactive.page",
    "load_policy": "runs.policies", "load_task": "tasks", "by_phase": "credit", "advantage": "credit",
    "Config": "config", "KitError": "config", "Example": "data", "Splits": "data", "Policy": "runs.policies",
    "Rollouts": "rollout", "Rewards": "rewards",
}  # fmt: skip
PARTS = ("rewards", "credit", "data", "config", "tasks", "lm", "runs", "baselines", "study", "scale", "interactive")
"""modules and rooms that are imported when they are first named: `fgrpo.rewards.recall`"""


def named(name: str) -> object:
    """What `fgrpo.NAME` is. Raises AttributeError if there is no such name."""
    if name == "__all__":
        return list(NAMES)
    if name in PARTS:
        return import_module(f"fgrpo.{name}")
    if name not in NAMES:
        raise AttributeError(f"module 'fgrpo' has no attribute {name!r}; its names are {', '.join(NAMES)}")
    return getattr(import_module(f"fgrpo.{NAMES[name]}"), name)
