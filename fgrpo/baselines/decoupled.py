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

from ..config import Config, KitError
from ..data import Example, Splits
from ..evaluate import greedy
from ..policy import Policy, Sampling
from ..prompt import PHASE_RANK, PHASE_SLATE, Output
from ..runs.policies import new_policy
from ..runs.run import Run
from ..runs.sft import sft_stage
from ..trainer import fit


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
        new = new_policy(items, config, seed)
        return fit(new, splits.train, run.config, run, sft_stage(config, **options), quiet)

    sampling = Sampling(config.grammar)
    selector = train("selector", 0, True, learn=[PHASE_SLATE])
    shown = None
    if slates == "selector":
        written = {e.id: o.slate for e, o in zip(splits.train, greedy(selector, splits.train, sampling), strict=True)}
        shown = partial(_rank_of_slate, slates=written)
    ranker = train(f"ranker-{slates}", 1, resume, learn=[PHASE_RANK], demonstrate=shown)
    chosen = [o.slate for o in greedy(selector, splits.test, sampling)]
    return greedy(ranker, splits.test, sampling, slates=chosen)


def _rank_of_slate(
    example: Example, config: Config, generator: torch.Generator, slates: dict[str, tuple[int, ...]]
) -> tuple[Sequence[int], Sequence[int]]:
    """The slate as the selector wrote it, and its best order: relevant candidates first, ties in random order."""
    slate = slates[example.id]
    shuffled = [slate[i] for i in torch.randperm(len(slate), generator=generator).tolist()]
    ordered = sorted(shuffled, key=lambda i: i not in example.relevant)
    return slate, ordered[: config.grammar.rank_size]
