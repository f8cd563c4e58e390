"""Paired intervals over seeds and queries, and the correction for many comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

RESAMPLES = 10_000


@dataclass(frozen=True)
class Bootstrap:
    """A mean and its bootstrap resamples (R,)."""

    mean: float
    resampled: Tensor

    def interval(self, alpha: float = 0.05) -> tuple[float, float]:
        """Percentile interval of level 1 - alpha."""
        levels = torch.tensor([alpha / 2, 1 - alpha / 2], dtype=self.resampled.dtype)
        low, high = self.resampled.quantile(levels).tolist()
        return low, high

    @property
    def p(self) -> float:
        """Two-sided p-value of the mean being 0: twice the share of resamples on the other side of it."""
        below, above = (self.resampled <= 0).sum().item(), (self.resampled >= 0).sum().item()
        return min(1.0, 2 * (min(below, above) + 1) / (len(self.resampled) + 1))


def paired_bootstrap(
    values: dict[str, Tensor], baseline: str, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[Bootstrap, Bootstrap]]:
    """For each method the bootstrap of its mean and of its difference to the baseline.

    values: one metric per method, (S, Q) over seeds and queries. Seeds and queries are both resampled with
    replacement, the same ones for every method (paired). With one seed only the queries vary. The spread of resamples
    of S seeds is too small by sqrt((S - 1) / S); it is widened by that factor (the part of the queries as well, which
    errs on the safe side).
    """
    seeds, queries = next(iter(values.values())).shape
    by_seed, by_query = (_weights(n, resamples, 2 * seed + i) for i, n in enumerate((seeds, queries)))
    widen = (seeds / (seeds - 1)) ** 0.5 if seeds > 1 else 1.0
    resampled = {name: ((by_query @ x.double().T) * by_seed).sum(1) for name, x in values.items()}
    means = {name: x.double().mean().item() for name, x in values.items()}

    def bootstrap(mean: float, drawn: Tensor) -> Bootstrap:
        return Bootstrap(mean, mean + widen * (drawn - mean))

    return {
        name: (
            bootstrap(means[name], resampled[name]),
            bootstrap(means[name] - means[baseline], resampled[name] - resampled[baseline]),
        )
        for name in values
    }


@lru_cache(maxsize=8)
def _weights(n: int, resamples: int, seed: int) -> Tensor:
    """How often each of n is drawn in each resample, over n. (R, n)."""
    drawn = torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(resamples, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double()) / n


def holm(p_values: Sequence[float], alpha: float = 0.05) -> list[tuple[float, float]]:
    """Holm's step-down correction: for each p-value its adjusted one, and the level of its own interval.

    The j-th smallest of m is multiplied by m - j + 1, its level is alpha / (m - j + 1) (Scand. J. Statist. 6:65, 1979).
    """
    found, least = [(0.0, 0.0)] * len(p_values), 0.0
    for order, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        left = len(p_values) - order
        least = max(least, min(1.0, left * p_values[index]))
        found[index] = (least, alpha / left)
    return found
