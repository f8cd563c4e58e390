"""Rewards and ranking metrics: pure functions of index lists and gains, vectorised over any leading dimensions.

A list is a tensor of pool indices (..., K), padded with -1. `gains` (..., N) holds the gain of each candidate of the
pool, 0 where it is irrelevant; graded gains are welcome. Every function returns one number per list, in [0, 1].
Recall, precision and hit count a candidate as relevant if its gain is above 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .config import KitError, RLConfig
from .data import Example
from .rollout import Rollouts, uniforms


def listed_gains(items: Tensor, gains: Tensor) -> Tensor:
    """Gain at each place of a list, 0 at padding. (..., K), (..., N) -> (..., K)."""
    found = gains.expand(*items.shape[:-1], gains.shape[-1]).gather(-1, items.clamp(min=0))
    return torch.where(items >= 0, found, 0.0)


def recall(items: Tensor, gains: Tensor, k: int | None = None) -> Tensor:
    """Relevant candidates among the first k, over all relevant candidates of the pool; 0 if there is none."""
    return _hits(items, gains, k).sum(-1) / (gains > 0).sum(-1).clamp(min=1)


def precision(items: Tensor, gains: Tensor, k: int | None = None) -> Tensor:
    """Relevant candidates among the first k, over k; without k, over the list's own length (0 if it is empty)."""
    length = (items >= 0).sum(-1).clamp(min=1) if k is None else k
    return _hits(items, gains, k).sum(-1) / length


def f1(items: Tensor, gains: Tensor) -> Tensor:
    """Harmonic mean of precision and recall of the whole list: 2 hits / (length + relevant)."""
    return 2 * _hits(items, gains, None).sum(-1) / ((items >= 0).sum(-1) + (gains > 0).sum(-1)).clamp(min=1)


def hit(items: Tensor, gains: Tensor, k: int | None = None) -> Tensor:
    """1 if any of the first k is relevant."""
    return _hits(items, gains, k).amax(-1)


def ndcg(items: Tensor, gains: Tensor, k: int) -> Tensor:
    """NDCG@k with linear gain: sum_i gain_i / log2(i + 1), over the same sum for the best order of the whole pool (or 0)."""
    return ndcg_terms(items, gains, k).sum(-1)


def ndcg_terms(items: Tensor, gains: Tensor, k: int) -> Tensor:
    """What each of the first k ranks brings to NDCG@k; the terms of a list sum to it. -> (..., k)."""
    terms = listed_gains(items, gains)[..., :k] * discounts(min(k, items.shape[-1]), gains)
    ideal = gains.sort(dim=-1, descending=True).values[..., :k]
    return terms / (ideal * discounts(ideal.shape[-1], gains)).sum(-1, keepdim=True).clamp(min=1e-6)


def discounts(k: int, like: Tensor) -> Tensor:
    """1 / log2(rank + 1) for ranks 1 to k."""
    return 1 / torch.arange(2, k + 2, dtype=like.dtype).log2()


def _hits(items: Tensor, gains: Tensor, k: int | None) -> Tensor:
    return (listed_gains(items, gains)[..., :k] > 0).to(gains.dtype)


def shapley(items: Tensor, gains: Tensor, worth: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Shapley value of each item of a slate whose reward is hits x worth(length, relevant). (..., K) -> (..., K).

    What an item adds to those that joined before it, as a mean over all orders of joining: s others are there with
    probability 1/n for each s below the length n, and s times the share of hits among the others are hits on average.
    The values of a slate sum to its reward; 0 at padding. (ShapE-GRPO, arXiv 2603.29871.)
    """
    hits, length = _hits(items, gains, None), (items >= 0).sum(-1, keepdim=True)
    relevant = (gains > 0).sum(-1, keepdim=True).clamp(min=1).to(gains.dtype)
    before = torch.arange(items.shape[-1], dtype=gains.dtype)  # (K,): number s of items that joined before
    share = (hits.sum(-1, keepdim=True) - hits) / (length - 1).clamp(min=1)  # (..., K)
    found = share.unsqueeze(-1) * before  # (..., K, K): hits among those
    with_it, without = (worth(size.clamp(min=1), relevant.unsqueeze(-1)) for size in (before + 1, before))
    added = with_it * (found + hits.unsqueeze(-1)) - without * found
    mean = (added * (before < length).unsqueeze(-2)).sum(-1) / length.clamp(min=1)
    return torch.where(items >= 0, mean, 0.0)


SLATE_REWARDS: dict[str, Callable[..., Tensor]] = {"recall": recall, "precision": precision, "f1": f1}
RANK_REWARDS: dict[str, Callable[..., Tensor]] = {"ndcg": ndcg}

WORTH: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "recall": lambda length, relevant: 1 / relevant, "precision": lambda length, relevant: 1 / length,
    "f1": lambda length, relevant: 2 / (length + relevant),
}  # fmt: skip
"""What a hit is worth, by the slate's length and the number of relevant candidates, in the rewards that are hits times
a worth; credit `shapley` divides these, and no other."""


@dataclass(frozen=True)
class Rewards:
    """One number per rollout, (Q, G) each. Never overwritten: credit is computed beside them.

    `slate` coverage of the slate; `rank` NDCG@k of the ranked list against all relevant candidates of the pool.
    `slate_format`, `rank_format`: minus the format penalty where the fault of an ill-formed output is this phase's,
    else 0. An ill-formed slate earns 0 and so does its ranking; an ill-formed ranking earns 0 and costs the slate nothing.

    And what single items brought, for credit finer than a phase: `items` (Q, G, n) is the slate reward minus that of
    the slate without the item at this place (leave one out), `places` (Q, G, k) the term of each rank in the NDCG, so
    that they sum to `rank` (nan for a reward that is not ndcg), `shapley` (Q, G, n) the Shapley value of each item of
    the slate, which sum to `slate` (nan for a slate reward that WORTH does not hold); 0 at padding.
    """

    slate: Tensor
    rank: Tensor
    slate_format: Tensor
    rank_format: Tensor
    items: Tensor
    places: Tensor
    shapley: Tensor

    @property
    def format(self) -> Tensor:
        """The penalty of either phase."""
        return self.slate_format + self.rank_format


def score(rollouts: Rollouts, examples: Sequence[Example], config: RLConfig, seed: int = 0, step: int = 0) -> Rewards:
    """Reward both phases of every rollout.

    Where `config` has Gaussian noise, as of an unreliable judge, what is added to the rewards of a rollout depends on
    (seed, step, query id, rollout) alone.
    """
    check_rewards(config)
    slates, ranks = output_lists(rollouts)
    gains = pool_gains(examples).unsqueeze(1)
    # (2, Q, G): no slate can be read, or a slate but no ranking of it
    faults = torch.tensor([[o.error != "" and not o.slate, o.error != "" and o.slate != ()] for o in rollouts.outputs])
    slate_format, rank_format = -config.format_penalty * faults.T.reshape(2, *slates.shape[:2]).to(gains.dtype)
    reward = SLATE_REWARDS[config.slate_reward]
    slate, rank_size = reward(slates, gains), rollouts.sampling.grammar.rank_size
    here = torch.eye(slates.shape[-1], dtype=torch.bool)
    without = slates.unsqueeze(-2).masked_fill(here, -1)  # (Q, G, n, n): the slate with each place emptied in turn
    items = (slate.unsqueeze(-1) - reward(without, gains.unsqueeze(1))).masked_fill(slates < 0, 0.0)
    rank, places = RANK_REWARDS[config.rank_reward](ranks, gains, rank_size), ndcg_terms(ranks, gains, rank_size)
    places = places if config.rank_reward == "ndcg" else torch.full_like(places, torch.nan)
    worth = WORTH.get(config.slate_reward)
    values = shapley(slates, gains, worth) if worth else torch.full_like(items, torch.nan)
    rewards = Rewards(slate, rank, slate_format, rank_format, items, places, values)
    if not (config.slate_noise or config.rank_noise):
        return rewards
    drawn = uniforms(seed, step, examples, rollouts.group, 2, "reward noise").clamp(min=2.0**-50)
    normal = torch.special.ndtri(drawn).to(gains.dtype).view(*slate.shape, 2)
    slate, rank = slate + config.slate_noise * normal[..., 0], rank + config.rank_noise * normal[..., 1]
    return replace(rewards, slate=slate, rank=rank)


def check_rewards(config: RLConfig) -> None:
    """Raise KitError on a reward that is not known."""
    for name, known in (("slate_reward", SLATE_REWARDS), ("rank_reward", RANK_REWARDS)):
        if (reward := getattr(config, name)) not in known:
            raise KitError(f"{name} {reward[:80]!r} is not known; choose from {', '.join(known)}.")


def output_lists(rollouts: Rollouts) -> tuple[Tensor, Tensor]:
    """Slates (Q, G, n) and ranked lists (Q, G, k) as pool indices, padded with -1; ill-formed ones are empty."""
    grammar, shape = rollouts.sampling.grammar, (-1, rollouts.group)
    slates = pad([o.slate for o in rollouts.outputs], grammar.slate_size).unflatten(0, shape)
    return slates, pad([o.rank for o in rollouts.outputs], grammar.rank_size).unflatten(0, shape)


def pool_gains(examples: Sequence[Example], dtype: torch.dtype = torch.float32) -> Tensor:
    """Gain of each candidate, without `gains` 1 if relevant, else 0; padded with 0 to the largest pool. (Q, N)."""
    rows = [e.gains or [float(i in e.relevant) for i in range(len(e.candidates))] for e in examples]
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=dtype)


def pad(lists: Sequence[Sequence[int]], width: int) -> Tensor:
    """Index lists as one tensor (B, width), padded with -1."""
    return torch.tensor([list(x) + [-1] * (width - len(x)) for x in lists], dtype=torch.long)
