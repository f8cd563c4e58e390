"""The manipulation check: does RL learn here? Every trained method against SFT with full lists and against more SFT.

Where neither of two methods has learned, a difference between them, or none, says nothing about their credit.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import KitError
from .compare import SFT_MORE, WARM_START, WARM_START_FULL, Result, Results
from .significance import Estimate, paired

LEAST_SEEDS = 3
"""fewer seeds give intervals, but no verdict"""
Groups = Mapping[str, Sequence[str]]
"""`Example.group` of each test query, by setting"""


@dataclass(frozen=True)
class Check:
    """A trained method minus a row of SFT: 95 % interval over seeds (and warm starts) and queries, not corrected."""

    setting: str
    method: str
    reference: str
    seeds: int
    difference: Estimate

    @property
    def beats(self) -> bool:
        """Whether the whole interval is above 0; never with fewer than LEAST_SEEDS seeds."""
        return self.seeds >= LEAST_SEEDS and self.difference.interval()[0] > 0

    @property
    def sentence(self) -> str:
        """The result in words."""
        low, high = self.difference.interval()
        name = f"{self.setting}: {self.method}" if self.setting else self.method
        by = f"by {self.difference.mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        if self.seeds < LEAST_SEEDS:
            return f"{name} differs from {self.reference} {by}; fewer than {LEAST_SEEDS} seeds, so nothing is decided."
        if self.beats:
            return f"{name} beats {self.reference} {by}."
        if self.reference == WARM_START_FULL:
            return f"{name} is not shown to beat {self.reference} ({by}): RL has not been shown to learn here."
        if high < 0:
            return f"{name} is worse than {self.reference} {by}: with as many labels as here, SFT is the better tool."
        return f"{name} is not shown to beat {self.reference} ({by}): the same compute spent on SFT may do as well."


def manipulation(
    results: Results, starts: Sequence[int] | None = None, groups: Groups | None = None, metric: str = "ndcg@5"
) -> list[Check]:
    """Each trained method of each setting minus `sft_full`, then minus each row of `sft_more` that is there.

    starts: the warm start of each seed, numbered from 0 (one for all unless given).
    """
    starts = starts_of(results, starts)
    return [
        Check(setting, method, reference, len(starts), paired(
            by_seed(by_method[method], metric, starts) - by_seed(by_method[reference], metric, starts),
            starts, (groups or {}).get(setting)))
        for setting, by_method in results.items()
        for reference in by_method if reference == WARM_START_FULL or reference.startswith(SFT_MORE)
        for method in trained_methods(results)
    ]  # fmt: skip


def not_learned(checks: Iterable[Check], baseline: str) -> dict[tuple[str, str], str]:
    """Why a method's verdict against the baseline is withheld, by (setting, method): neither beats `sft_full`."""
    learned = {(c.setting, c.method): c.beats for c in checks if c.reference == WARM_START_FULL}
    return {
        (setting, method): f"neither {method} nor {baseline} is shown to beat {WARM_START_FULL}"
        for (setting, method), beats in learned.items()
        if not beats and not learned.get((setting, baseline))
    }


def trained_methods(results: Results) -> list[str]:
    """The methods that RL trained: the rows after the warm start, but for those of SFT."""
    methods = list(next(iter(results.values())))
    after = methods[methods.index(WARM_START) + 1 :]
    return [m for m in after if m != WARM_START_FULL and not m.startswith(SFT_MORE)]


def starts_of(results: Results, starts: Sequence[int] | None = None) -> list[int]:
    """The warm start of each seed, 0 for all unless given. Raises KitError if that is not one number per trained run."""
    trained = trained_methods(results)
    counts = {len(by_method[method]) for by_method in results.values() for method in trained}
    seeds = len(starts) if starts is not None else max(counts)
    if counts != {seeds}:
        raise KitError(
            f"{seeds} seeds, but methods with {', '.join(map(str, sorted(counts)))} runs: train each as often."
        )
    found = list(starts) if starts is not None else [0] * seeds
    if set(found) != set(range(max(found) + 1)):
        raise KitError(f"warm starts {found} must be numbered from 0 without gaps.")
    return found


def by_seed(runs: Sequence[Result], metric: str, starts: Sequence[int]) -> Tensor:
    """A metric (S, Q) for each seed of a row that has one result, one per warm start or one per seed.

    Raises KitError on any other number of results, and on a metric that was not measured.
    """
    if metric not in runs[0].metrics:
        raise KitError(f"metric {metric!r} was not measured; choose from {', '.join(runs[0].metrics)}.")
    values = torch.stack([run.metrics[metric] for run in runs]).double()
    return values[_places(len(runs), starts)]


def _places(count: int, starts: Sequence[int]) -> list[int]:
    """For each seed the result that stands for it among `count` results of a row."""
    if count == 1:
        return [0] * len(starts)
    if count == max(starts) + 1:
        return list(starts)
    if count != len(starts):
        raise KitError(
            f"a row has {count} results, but there are {max(starts) + 1} warm starts and {len(starts)} seeds."
        )
    return list(range(count))
