"""Decoupled SFT, the pipeline that a single rollout replaces: a selector and a ranker, trained separately, run in series.

The ranker of the paper's baseline is trained on gold slates and sees imperfect ones at inference. `slates="selector"`
trains it on the slates that the selector writes, so that the difference between both is the cost of this mismatch.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ..config import Config, KitError
from ..data import Example, Splits
from ..evaluate import greedy
from ..policy import Policy, Sampling
from ..prompt import PHASE_RANK, PHASE_SLATE, Output
from ..runs.pretrain import initial_policy
from ..runs.run import Run
from ..runs.sft import Demonstrate, Lists, sft_stage, teacher
from ..trainer import batch_of, fit
from .sequential import demonstrator


def decoupled(
    splits: Splits, items: Sequence[str], config: Config, folder: Path, slates: str = "gold", quiet: bool = True,
    resume: bool = False, sft_steps: int = 0,
) -> list[Output]:  # fmt: skip
    """Train both policies with the options of the warm start, each on its own phase; their outputs on the test split.

    `slates` is the training data of the ranker: gold (demonstrations, which hold every relevant candidate) or selector.
    A selector that the folder already holds is used again, so that both kinds of ranker follow the same one. Each policy
    is trained for `sft_steps`, 0 for those of the warm start.
    """
    if slates not in ("gold", "selector"):
        raise KitError(f"decoupled: slates {slates!r} is not known; choose from gold, selector.")
    config = replace(config, sft=replace(config.sft, sft_steps=sft_steps or config.sft.sft_steps))

    def train(name: str, seed: int, resume: bool, phase: int, demonstrate: Demonstrate | None = None) -> Policy:
        run = Run(folder / name, replace(config, seed=seed), resume=resume, save_every=config.sft.sft_steps)
        policy = initial_policy(run.config, splits, items, folder / name, quiet, resume)
        stage = sft_stage(run.config, teacher(policy, config, demonstrate), [phase])
        return fit(policy, splits.train, run.config, run, stage, quiet)

    sampling, demonstrate = Sampling(config.grammar), demonstrator(splits, config)
    selector = train("selector", 0, True, PHASE_SLATE, demonstrate)
    if slates == "selector":
        batches = (batch_of(splits.train, config.sft.sft_batch, n, 1, "sft") for n in range(config.sft.sft_steps))
        shown = list({e.id: e for batch in batches for e in batch}.values())  # the examples of the ranker, seed 1
        written = {e.id: o.slate for e, o in zip(shown, greedy(selector, shown, sampling), strict=True)}
        demonstrate = partial(_best_orders, slates=written)
    ranker = train(f"ranker-{slates}", 1, resume, PHASE_RANK, demonstrate)
    chosen = [output.slate for output in greedy(selector, splits.test, sampling)]
    return greedy(ranker, splits.test, sampling, slates=chosen)


def _best_orders(
    examples: Sequence[Example],
    config: Config,
    generators: Sequence[torch.Generator],
    slates: dict[str, tuple[int, ...]],
) -> list[Lists]:
    """Demonstrations: the slate as the selector wrote it, then its best candidates first, ties in random order."""
    return [_best_order(e, config, g, slates[e.id]) for e, g in zip(examples, generators, strict=True)]


def _best_order(example: Example, config: Config, generator: torch.Generator, slate: tuple[int, ...]) -> Lists:
    shuffled = [slate[i] for i in torch.randperm(len(slate), generator=generator).tolist()]
    ordered = sorted(shuffled, key=lambda i: -example.gains[i] if example.gains else i not in example.relevant)
    return slate, ordered[: config.grammar.rank_size]
