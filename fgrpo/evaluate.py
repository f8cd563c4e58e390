"""Metrics per query, the fate of every relevant candidate."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .config import Config, GrammarConfig
from .data import Example
from .policy import Policy, Sampling
from .prompt import Output
from .rewards import hit, listed_gains, ndcg, pad, pool_gains, precision, recall
from .rollout import rollout

CUTOFFS = (1, 3, 5, 10)
FATES = ("right", "slate_miss", "rank_drop", "format_error")
"""What became of a relevant candidate: ranked above every irrelevant one; never in the slate; in the slate, but not in
the ranked list or below an irrelevant one; or lost with an ill-formed slate or ranking. One for which there was no room,
since the list was full of relevant candidates, is not counted."""


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

    Recall, Precision, Hit and NDCG are those of the ranked list, at each of CUTOFFS; a list of 5 scores at 10
    what it holds. The shares of FATES are over the query's relevant candidates for which there was room, and sum to one.
    A query without relevant candidates (its target was not retrieved) scores 0 in all of them but `slate_length`.
    """
    slates = pad([o.slate for o in outputs], grammar.slate_size)  # (Q, n)
    ranks = pad([o.rank for o in outputs], grammar.rank_size)  # (Q, k)
    failed = torch.tensor([bool(o.error) for o in outputs])
    gains = pool_gains(examples, dtype=torch.float64)
    at = {"recall": recall, "precision": precision, "hit": hit, "ndcg": ndcg}
    metrics = {f"{name}@{k}": metric(ranks, gains, k) for k in CUTOFFS for name, metric in at.items()}
    metrics["slate_recall"] = recall(slates, gains)
    metrics["slate_length"] = (slates >= 0).sum(-1).double()
    fate = fates(slates, ranks, failed, gains)
    for code, name in enumerate(FATES):
        metrics[name] = (fate == code).sum(-1) / (fate >= 0).sum(-1).clamp(min=1).double()
    return metrics


def fates(slates: Tensor, ranks: Tensor, failed: Tensor, gains: Tensor) -> Tensor:
    """Index into FATES for each relevant candidate that there was room for, -1 for the others. (Q, N)."""
    candidates = torch.arange(gains.shape[-1])
    in_slate = (slates.unsqueeze(-1) == candidates).any(-2)
    place = ranks.unsqueeze(-1) == candidates  # (Q, k, N)
    irrelevant = (ranks >= 0) & (gains.gather(-1, ranks.clamp(min=0)) <= 0)
    above = irrelevant.cumsum(-1) == 0  # places before the first irrelevant candidate
    right = (place & above.unsqueeze(-1)).any(-2)
    fate = torch.where(right, 0, torch.where(in_slate, 2, 1))
    # an ill-formed ranking loses what the slate holds, an ill-formed slate everything
    fate = fate.masked_fill(failed.unsqueeze(-1) & (in_slate | (slates < 0).all(-1, keepdim=True)), 3)
    # a list all of whose places hold relevant candidates has no room for another
    slate_full, rank_full = (listed_gains(x, gains).gt(0).all(-1, keepdim=True) for x in (slates, ranks))
    no_room = (slate_full & ~in_slate) | (rank_full & in_slate & ~right)
    return fate.masked_fill(no_room | (gains <= 0), -1)
