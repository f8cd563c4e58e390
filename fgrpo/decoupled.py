"""Decoupled SFT, the pipeline that a single rollout replaces: a selector and a ranker trained apart, run in series.

The ranker of the paper's baseline trains on gold slates and meets imperfect ones at inference; `slates="selector"` trains
it on the slates that the selector writes, so that the difference shows what the mismatch costs.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .checkpoint import Run
from .config import Config, KitError
from .data import Example, Splits
from .policy import Policy, Sampling
from .prompt import PHASE_RANK, PHASE_SLATE, Output
from .rollout import rollout
from .trainer import fit, sft_step


def decoupled(
    splits: Splits, items: Sequence[str], config: Config, folder: Path, slates: str = "gold", quiet: bool = True,
    resume: bool = False,
) -> list[Output]:  # fmt: skip
    """Train both policies with the options of the warm start, each on its own phase; their outputs on the test split.

    `slates`: what the ranker trains on, gold (demonstrations: every relevant candidate is in) or selector. A selector
    that the folder already holds is used again, so that both kinds of ranker follow the same one.
    """
    if slates not in ("gold", "selector"):
        raise KitError(f"decoupled: slates {slates!r} is not known; choose from gold, selector.")

    def train(name: str, seed: int, again: bool, **options: Any) -> Policy:
        run = Run(folder / name, replace(config, seed=seed), resume=again, save_every=config.sft.sft_steps)
        new = Policy.tiny(items, config.model, seed)
        return fit(new, splits.train, run.config, run, sft=True, quiet=quiet, do_step=partial(sft_step, **options))

    selector = train("selector", 0, True, learn=[PHASE_SLATE])
    shown = None
    if slates == "selector":
        written = {e.id: o.slate for e, o in zip(splits.train, select(selector, splits.train, config), strict=True)}
        shown = partial(_rank_of_slate, slates=written)
    ranker = train(f"ranker-{slates}", 1, resume, learn=[PHASE_RANK], demonstrate=shown)
    chosen = [o.slate for o in select(selector, splits.test, config)]
    return rank(ranker, splits.test, chosen, config)


def select(selector: Policy, examples: Sequence[Example], config: Config) -> list[Output]:
    """Greedy slates of many examples."""
    return [o for some in _batches(examples) for o in rollout(selector, some, Sampling(config.grammar)).outputs]


def rank(ranker: Policy, examples: Sequence[Example], slates: Sequence[Sequence[int]], config: Config) -> list[Output]:
    """Greedy rankings of given slates (pool indices), one per example."""
    sampling, batches = Sampling(config.grammar), zip(_batches(examples), _batches(slates), strict=True)
    return [o for some, given in batches for o in rollout(ranker, some, sampling, slates=given).outputs]


def _batches(rows: Sequence, size: int = 256) -> list[Sequence]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _rank_of_slate(
    example: Example, config: Config, generator: torch.Generator, slates: dict[str, tuple[int, ...]]
) -> tuple[Sequence[int], Sequence[int]]:
    """The slate as the selector wrote it, and its best order: relevant candidates first, ties in random order."""
    slate = slates[example.id]
    shuffled = [slate[i] for i in torch.randperm(len(slate), generator=generator).tolist()]
    ordered = sorted(shuffled, key=lambda i: i not in example.relevant)
    return slate, ordered[: config.grammar.rank_size]
