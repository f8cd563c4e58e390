"""Metrics per query, the fate of every relevant candidate, and paired intervals over seeds and queries."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .config import Config, GrammarConfig
from .data import Example
from .policy import Policy, Sampling
from .prompt import Output
from .rewards import hit, ndcg, pad, pool_gains, precision, recall, reciprocal_rank
from .rollout import rollout

CUTOFFS = (1, 3, 5, 10)
RESAMPLES = 10_000
AT_ONCE = 16_384
"""tokens of prompts, padding included, that a pretrained model decodes together"""
FATES = ("right", "slate_miss", "rank_drop", "format_error")
"""What became of a relevant candidate: ranked above every irrelevant one; never in the slate; in the slate, but not in
the ranked list or below an irrelevant one; or lost with an ill-formed output."""


def evaluate(policy: Policy, examples: Sequence[Example], config: Config, batch: int = 256) -> dict[str, Tensor]:
    """Greedy decoding, then `measure`. Returns one number per query and metric, (Q,) each."""
    sampling = Sampling(config.grammar, config.rl.decoding == "constrained")
    return measure_outputs(greedy(policy, examples, sampling, batch=batch), examples, config.grammar)


def greedy(
    policy: Policy, examples: Sequence[Example], sampling: Sampling, slates: Sequence[Sequence[int]] | None = None,
    batch: int = 256,
) -> list[Output]:  # fmt: skip
    """Greedy outputs, one per example; of given `slates` (pool indices, one per example) only the ranking is decoded."""
    outputs: list[Output] = []
    for some in _batches(policy, examples, batch, sampling.grammar):
        given = None if slates is None else slates[some]
        outputs += rollout(policy, examples[some], sampling, slates=given).outputs
    return outputs


def _batches(policy: Policy, examples: Sequence[Example], most: int, grammar: GrammarConfig) -> list[slice]:
    """The examples in turn, at most so many at a time; of a pretrained model's long prompts fewer."""
    if policy.adapter is None:
        return [slice(a, a + most) for a in range(0, len(examples), most)]
    lengths = [len(policy.labels.prompt_ids(e, grammar)) for e in examples]
    found, start = [], 0
    for n in range(1, len(examples) + 1):
        together = max(lengths[start : n + 1]) * (n + 1 - start)
        if n == len(examples) or n - start == most or together > AT_ONCE:
            found.append(slice(start, n))
            start = n
    return found


def measure_outputs(
    outputs: Sequence[Output], examples: Sequence[Example], grammar: GrammarConfig
) -> dict[str, Tensor]:
    """`measure` for outputs, one per example."""
    slates = pad([o.slate for o in outputs], grammar.slate_size)
    ranks = pad([o.rank for o in outputs], grammar.rank_size)
    return measure(slates, ranks, torch.tensor([bool(o.error) for o in outputs]), examples)


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
    replacement, the same ones for every method (paired). With one seed only the queries vary. A resample of S seeds
    spreads by sqrt((S - 1) / S) too little, which is made good (for the part of the queries too: to the safe side).
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
    """Holm's step-down correction: for each p-value its adjusted one, and the level that its own interval is held to.

    The j-th smallest of m is multiplied by m - j + 1 and held to alpha / (m - j + 1) (Scand. J. Statist. 6:65, 1979).
    """
    found, least = [(0.0, 0.0)] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        left = len(p_values) - place
        least = max(least, min(1.0, left * p_values[index]))
        found[index] = (least, alpha / left)
    return found
