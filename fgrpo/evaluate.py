"""Metrics per query, the fate of every relevant candidate."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .config import Config, GrammarConfig
from .data import Example
from .policy import Policy, Sampling
from .prompt import Output
from .rewards import hit, ndcg, pad, pool_gains, precision, recall, reciprocal_rank
from .rollout import rollout

CUTOFFS = (1, 3, 5, 10)
FATES = ("right", "slate_miss", "rank_drop", "format_error")
"""What became of a relevant candidate: ranked above every irrelevant one; never in the slate; in the slate, but not in
the ranked list or below an irrelevant one; or lost with an ill-formed output."""


def evaluate(policy: Policy, examples: Sequence[Example], config: Config, batch: int = 256) -> dict[str, Tensor]:
    """Greedy decoding, then `measure_outputs`."""
    sampling = Sampling(config.grammar, config.rl.decoding == "constrained")
    return measure_outputs(greedy(policy, examples, sampling, batch=batch), examples, config.grammar)


def greedy(
    policy: Policy, examples: Sequence[Example], sampling: Sampling, slates: Sequence[Sequence[int]] | None = None,
    batch: int = 256,
) -> list[Output]:  # fmt: skip
    """Greedy outputs, one per example; of given `slates` (pool indices, one per example) only the ranking is decoded."""
    outputs: list[Output] = []
    for some in policy.batches(examples, sampling.grammar, batch):
        given = None if slates is None else slates[some]
        outputs += rollout(policy, examples[some], sampling, slates=given).outputs
    return outputs


def measure_outputs(
    outputs: Sequence[Output], examples: Sequence[Example], grammar: GrammarConfig
) -> dict[str, Tensor]:
    """All metrics of outputs, one output per example: one number per query and metric, (Q,) each.

    Recall, Precision, Hit, NDCG and MRR are those of the ranked list, at each of CUTOFFS; a list of 5 scores at 10
    what it holds. The shares of FATES are over the query's relevant candidates and sum to one.
    """
    slates = pad([o.slate for o in outputs], grammar.slate_size)  # (Q, n)
    ranks = pad([o.rank for o in outputs], grammar.rank_size)  # (Q, k)
    failed = torch.tensor([bool(o.error) for o in outputs])
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
