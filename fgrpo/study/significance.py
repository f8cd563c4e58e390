"""Paired differences over warm starts, seeds and queries: standard errors, intervals, p-values, detectable differences.

The model is one of random effects. A difference D[s, q] of run s on query q is

    mean + warm start of s + seed s + cluster of q + rest[s, q]

and the claim is about new warm starts, seeds and queries. tests/study/coverage.py simulates what the intervals cover.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from scipy.special import betaincinv, ndtri, stdtrit
from torch import Tensor

from ..config import KitError

SMALLEST_P = 1e-12
ROUNDING = 1e-12
"""two equal methods may differ by this much"""


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error, and how well that is known.

    `share` of the variance se^2 comes from runs, estimated with `run_df` degrees of freedom; the rest comes from
    queries, with `query_df`.
    """

    mean: float
    se: float
    share: float
    run_df: float
    query_df: float

    def quantile(self, level: float, family: bool = False) -> float:
        """Quantile of the mean's error in standard errors (level below 0.5): of t with run_df and query_df, averaged.

        The weights are the shares of the variance. Satterthwaite's degrees of freedom (Biometrics Bulletin 2:110, 1946)
        are estimated from the same few runs: with 3 runs his 95 % interval covers 92.2 % where seeds vary somewhat. The
        arithmetic mean of the quantiles (Cochran, Biometrics 20:191, 1964) covers 95.0 to 97.1 %, the geometric mean
        94.6 to 96.6 %. It is taken for single intervals.

        For a `family`, which needs the tails, their squares are averaged. This covers no less than its level whatever
        the shares, where queries are many: P(Z^2 <= w t^2 U + (1 - w) z^2), with U the estimated variance of runs over
        the true one and w its true share, is at least w P(Z^2 <= t^2 U) + (1 - w) P(Z^2 <= z^2), since the distribution
        function of Z^2 is concave (Hajek, Selected Transl. Math. Statist. Prob. 2:63, 1962). At 95 % it covers up to
        97.7 %, and at 98.75 %, as a family of four needs, up to 99.8 %; Satterthwaite's covers 96.3 % there.
        """
        runs, queries = (-float(stdtrit(df, level)) for df in (self.run_df, self.query_df))
        if family:
            return -math.sqrt(self.share * runs**2 + (1 - self.share) * queries**2)
        return -(runs**self.share) * queries ** (1 - self.share)

    def interval(self, alpha: float = 0.05) -> tuple[float, float]:
        """Two-sided interval of level 1 - alpha, for one mean alone."""
        half = -self.quantile(alpha / 2) * self.se if self.se else 0.0
        return self.mean - half, self.mean + half

    def simultaneous(self, count: int, alpha: float = 0.05) -> tuple[float, float]:
        """Interval that is one of `count` which all hold with a probability of 1 - alpha (Bonferroni)."""
        half = -self.quantile(alpha / count / 2, family=True) * self.se if self.se else 0.0
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """Two-sided p-value of the mean being 0: the smallest alpha at which simultaneous(1, alpha) excludes 0.

        At least SMALLEST_P.
        """
        if self.mean == 0 or math.isinf(self.se):
            return 1.0
        ratio = abs(self.mean) / self.se if self.se else math.inf
        if ratio >= -self.quantile(SMALLEST_P / 2, family=True):
            return SMALLEST_P
        return math.exp(
            brentq(lambda x: ratio + self.quantile(math.exp(x) / 2, family=True), math.log(SMALLEST_P), 0.0)
        )

    def detectable(self, count: int = 1, alpha: float = 0.05, power: float = 0.8) -> float:
        """The true difference that a test, one of `count` at level alpha in all, finds with probability `power`.

        (t at 1 - alpha / count / 2 plus t at `power`) standard errors (Cohen, Statistical power analysis, 1988).
        """
        return -(self.quantile(alpha / count / 2, family=True) + self.quantile(1 - power)) * self.se


def paired(differences: Tensor, starts: Sequence[int] | None = None, groups: Sequence[str] | None = None) -> Estimate:
    """The mean of differences (S, Q) over seeds and queries, as an estimate of the mean over all runs and queries.

    starts: the warm start of each seed (S). If there are two or more, runs of one start are a cluster, and starts vary;
    with one start the estimate is about this start alone. groups: `Example.group` of each query (Q); queries of a group
    are a cluster, "" is a cluster of its own. With one seed only queries vary; with one cluster of queries only runs do.

    With x the means over cells of R clusters of runs and C clusters of queries, p and q their shares of runs and
    queries, the variance of the mean is (two-way clusters: Searle, Casella and McCulloch, Variance components, 1992,
    chapter 4; Cameron, Gelbach and Miller, J. Bus. Econ. Statist. 29:238, 2011)

        Var(row means) + Var(column means) - Var(interaction);  (MS_runs + MS_queries - MS_rest) / (S Q) without clusters

    The last two terms together are the part of the queries and are never negative. The first one is taken as it is: it
    holds warm starts / W + seeds / S + rest / (S Q). Replacing it by its expectation without seed effects where it is
    smaller would lose coverage. Raises KitError if there is not one start for each seed and one group for each query.
    """
    x = differences.double()
    x = x.where(x.abs() > ROUNDING, 0.0)
    several = starts is not None and len(set(starts)) > 1
    x, p = _cluster(x, starts if several and starts is not None else range(len(x)))  # (R, Q), (R,)
    x, q = _cluster(x.T, range(len(x.T)) if groups is None else [g or i for i, g in enumerate(groups)])  # (C, R), (C,)
    x = x.T
    mean = p @ x @ q
    by_run, by_query = x @ q - mean, p @ x - mean
    rest = x - mean - by_run[:, None] - by_query
    of_runs, of_queries = _unbiased(p) @ by_run**2, _unbiased(q) @ by_query**2
    of_queries = (of_queries - _unbiased(p) @ rest**2 @ _unbiased(q)).clamp(min=0)
    variance = float(of_runs + of_queries) if x.numel() > 1 else math.inf
    share = float(of_runs) / variance if variance else 0.0
    return Estimate(float(mean), math.sqrt(variance), share, _df(p), _df(q))


def _cluster(x: Tensor, labels: Sequence[Hashable]) -> tuple[Tensor, Tensor]:
    """The mean of the rows (N, M) of each label, and the share of rows that have it: (K, M) and (K,)."""
    if len(labels) != len(x):
        raise KitError(f"{len(labels)} warm starts or groups for {len(x)} seeds or queries: give one for each.")
    number = {label: k for k, label in enumerate(dict.fromkeys(labels))}
    index = torch.tensor([number[label] for label in labels])
    count = index.bincount().double()
    return torch.zeros(len(count), x.shape[1], dtype=x.dtype).index_add_(0, index, x) / count[:, None], count / len(x)


def _unbiased(p: Tensor) -> Tensor:
    """Factors (K,) that make sum(factor d^2) the variance of sum(p m), d the distances of equally noisy m to that mean.

    With equal shares that is 1 / (K (K - 1)). Nothing varies, so all are zero, if there is one.
    """
    square = (p**2).sum()
    return p**2 * square / (p**2 * (1 - 2 * p + square)).sum() if len(p) > 1 else torch.zeros_like(p)


def _df(p: Tensor) -> float:
    """Degrees of freedom of that variance: the effective number of clusters (Kish, Survey sampling, 1965), less 1."""
    return max(1.0, 1 / float((p**2).sum()) - 1)


def share_interval(values: Tensor, groups: Sequence[str] | None = None, alpha: float = 0.05) -> tuple[float, float]:
    """Interval of a share, from values (Q,) in [0, 1]: Clopper and Pearson's for the effective number of queries.

    That is the number of independent queries which would know the share as well, p (1 - p) / se^2, reduced by what t is
    wider than z (Korn and Graubard, Survey Methodology 24:193, 1998). Near 0 and 1 an interval by t is too narrow. Where
    nothing varies, the number of clusters is taken: 30 queries without an event have the interval 0 to 0.116.
    """
    found = paired(values[None], groups=groups)
    if found.se < ROUNDING:
        width = 1 - (alpha / 2) ** (1 / (found.query_df + 1))
        return max(0.0, found.mean - width), min(1.0, found.mean + width)
    n = found.mean * (1 - found.mean) / found.se**2 * float(ndtri(alpha / 2) / stdtrit(found.query_df, alpha / 2)) ** 2
    hits, rest = n * found.mean, n * (1 - found.mean)
    return float(betaincinv(hits, rest + 1, alpha / 2)), float(betaincinv(hits + 1, rest, 1 - alpha / 2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values adjusted for the whole family (Scand. J. Statist. 6:65, 1979).

    The j-th smallest of m is multiplied by m - j + 1, and is no smaller than the one before it.
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    for order, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - order) * p_values[index]))
        adjusted[index] = least
    return adjusted
