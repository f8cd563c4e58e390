"""Metrics per query, the fate of every relevant candidate, and paired intervals over seeds and queries."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import Config
from .data import Example
from .policy import Policy, Sampling
from .rewards import hit, ndcg, output_lists, pool_gains, precision, recall, reciprocal_rank
from .rollout import rollout

CUTOFFS = (1, 3, 5, 10)
FATES = ("right", "slate_miss", "rank_drop", "format_error")
"""What became of a relevant candidate: ranked above every irrelevant one; never in the slate; in the slate, but not in
the ranked list or below an irrelevant one; or lost with an ill-formed output."""


def evaluate(policy: Policy, examples: Sequence[Example], config: Config, batch: int = 256) -> dict[str, Tensor]:
    """Greedy decoding, then `measure`. Returns one number per query and metric, (Q,) each."""
    sampling = Sampling(config.grammar, config.rl.decoding == "constrained")
    parts = []
    for start in range(0, len(examples), batch):
        queries = examples[start : start + batch]
        rollouts = rollout(policy, queries, sampling)
        slates, ranks = output_lists(rollouts)
        failed = torch.tensor([bool(o.error) for o in rollouts.outputs])
        parts.append(measure(slates[:, 0], ranks[:, 0], failed, queries))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def measure(slates: Tensor, ranks: Tensor, failed: Tensor, examples: Sequence[Example]) -> dict[str, Tensor]:
    """All metrics of finished lists. slates (Q, n), ranks (Q, k): pool indices padded with -1; failed (Q,) bool.

    Recall, Precision, Hit, NDCG and MRR are those of the ranked list, at each of CUTOFFS; a list of 5 scores at 10
    what it holds. The shares of FATES are over the query's relevant candidates and sum to one.
    """
    gains = pool_gains(examples, dtype=torch.float64)
    metrics: dict[str, Tensor] = {}
    for k in CUTOFFS:
        metrics |= {
            f"recall@{k}": recall(ranks, gains, k), f"precision@{k}": precision(ranks, gains, k),
            f"hit@{k}": hit(ranks, gains, k), f"ndcg@{k}": ndcg(ranks, gains, k),
            f"mrr@{k}": reciprocal_rank(ranks, gains, k),
        }  # fmt: skip
    metrics["slate_recall"] = recall(slates, gains)
    metrics["slate_length"] = (slates >= 0).sum(-1).double()
    fate = fates(slates, ranks, failed, gains)
    for code, name in enumerate(FATES):
        metrics[name] = (fate == code).sum(-1) / (gains > 0).sum(-1).double()
    return metrics


def fates(slates: Tensor, ranks: Tensor, failed: Tensor, gains: Tensor) -> Tensor:
    """Index into FATES for each relevant candidate, -1 for the others. (Q, N)."""
    candidates = torch.arange(gains.shape[-1])
    in_slate = (slates.unsqueeze(-1) == candidates).any(-2)
    place = ranks.unsqueeze(-1) == candidates  # (Q, k, N)
    irrelevant = (ranks >= 0) & (gains.gather(-1, ranks.clamp(min=0)) <= 0)
    above = irrelevant.cumsum(-1) == 0  # places before the first irrelevant candidate
    right = (place & above.unsqueeze(-1)).any(-2)
    fate = torch.where(right, 0, torch.where(in_slate, 2, 1))
    return fate.masked_fill(failed.unsqueeze(-1), 3).masked_fill(gains <= 0, -1)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """True if the interval leaves zero out."""
        return self.low > 0 or self.high < 0

    @classmethod
    def of(cls, mean: float, resampled: Tensor) -> "Interval":
        """The mean with the 2.5th and 97.5th percentile of its bootstrap resamples."""
        low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=resampled.dtype)).tolist()
        return cls(mean, low, high)


def paired_bootstrap(
    values: dict[str, Tensor], baseline: str, resamples: int = 2000, seed: int = 0
) -> dict[str, tuple[Interval, Interval]]:
    """For each method its mean and its difference to the baseline, with 95 % percentile intervals.

    values: one metric per method, (S, Q) over seeds and queries. Seeds and queries are both resampled with
    replacement, the same ones for every method (paired). With one seed only the queries vary.
    """
    seeds, queries = next(iter(values.values())).shape
    generator = torch.Generator().manual_seed(seed)

    def weights(n: int) -> Tensor:
        drawn = torch.randint(n, (resamples, n), generator=generator)
        return (
            torch.zeros(resamples, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double()) / n
        )

    by_seed, by_query = weights(seeds), weights(queries)
    resampled = {name: ((by_seed @ x.double()) * by_query).sum(1) for name, x in values.items()}
    means = {name: x.double().mean().item() for name, x in values.items()}
    return {
        name: (
            Interval.of(means[name], resampled[name]),
            Interval.of(means[name] - means[baseline], resampled[name] - resampled[baseline]),
        )
        for name in values
    }
