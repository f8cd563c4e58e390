"""Credit methods and rewards of your own, given as functions: known by their names, also in worker processes."""

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ..config import KitError, RLConfig
from ..credit import CREDITS
from ..rewards import RANK_REWARDS, SLATE_REWARDS, Rewards
from ..rollout import Rollouts

TABLES: dict[str, dict[str, Any]] = {"credit": CREDITS, "slate_reward": SLATE_REWARDS, "rank_reward": RANK_REWARDS}
TAKES = {
    "credit": ("rewards", "rollouts", "config"),
    "slate_reward": ("items", "gains"),
    "rank_reward": ("items", "gains", "k"),
}
"""the arguments of a function of each kind: as in fgrpo.credit and fgrpo.rewards"""
OF_THE_KIT = {kind: frozenset(table) for kind, table in TABLES.items()}
_OWN: dict[tuple[str, str], Callable[..., Tensor]] = {}


def name_of(kind: str, method: str | Callable[..., Tensor]) -> str:
    """The name under which runs know a method of a `kind` (credit, slate_reward, rank_reward). A function gets its own.

    A function that is given again under the same name replaces the one before. Its results are checked for shape and
    for numbers that are not finite. Raises KitError on an unknown name, and on a function without a name of its own or
    with other arguments.
    """
    table, takes = TABLES[kind], TAKES[kind]
    if isinstance(method, str):
        if method not in table:
            raise KitError(f"{kind} {method[:80]!r} is not known; choose from {', '.join(table)}, or give a function.")
        return method
    if not callable(method):
        raise KitError(f"{kind} must be a name or a function, not {type(method).__name__}.")
    name = getattr(method, "__name__", "")
    if not name.isidentifier():
        raise KitError(f"a function given as {kind} needs a name: write def my_{kind}({', '.join(takes)}): ...")
    if method is table.get(name):
        return name
    if name in OF_THE_KIT[kind]:
        raise KitError(f"{kind} {name!r} is the kit's own: give your function another name.")
    try:
        signature(method).bind(*takes)
    except TypeError:
        raise KitError(f"function {name!r}, given as {kind}, must take ({', '.join(takes)}).") from None
    check = _checked_credit if kind == "credit" else _checked_reward
    _OWN[kind, name], table[name] = method, partial(check, name, method)
    return name


def _checked_credit(name: str, function: Callable, rewards: Rewards, rollouts: Rollouts, config: RLConfig) -> Tensor:
    found, shape = function(rewards, rollouts, config), tuple(rollouts.phase.shape)
    if not isinstance(found, Tensor) or tuple(found.shape) != shape:
        raise KitError(
            f"credit {name!r}: must return advantages of shape (B, T) = {shape}, not {_what(found)}; "
            "fgrpo.credit.by_phase spreads one number per phase, (Q, G) each, over its tokens."
        )
    if not bool(torch.isfinite(found).all()):
        raise KitError(f"credit {name!r}: some advantages are not finite numbers (a division by 0?).")
    return found.to(rewards.slate.dtype)


def _checked_reward(name: str, function: Callable, items: Tensor, gains: Tensor, *k: int) -> Tensor:
    found, shape = function(items, gains, *k), tuple(items.shape[:-1])
    if not isinstance(found, Tensor) or tuple(found.shape) != shape:
        raise KitError(f"reward {name!r}: must return one number per list, shape {shape}, not {_what(found)}.")
    if not bool(torch.isfinite(found).all()):
        raise KitError(f"reward {name!r}: some rewards are not finite numbers (a division by 0?).")
    return found.to(gains.dtype)


def _what(found: object) -> str:
    return f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__


def packed() -> bytes:
    """The functions given so far, for a worker process: those of a notebook by value. Empty if there are none."""
    if not _OWN:
        return b""
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(_OWN))
    except Exception as error:  # whatever a function refers to may refuse in its own way
        names = ", ".join(name for _, name in _OWN)
        raise KitError(f"{names}: cannot be sent to another process ({str(error)[:150]}); use jobs=1.") from None


def unpack(functions: bytes) -> None:
    """Make the functions of the process that started this one known here; it sent them, they never come from a file."""
    if functions:
        import cloudpickle

        for (kind, _), function in cloudpickle.loads(functions).items():
            name_of(kind, function)
