"""Whether a policy is one that a comparison of credit can be made with: what it knows, and how much its samples vary."""

from collections.abc import Sequence

import torch

from ..config import Config
from ..credit import zero_variance
from ..data import Example, Splits
from ..evaluate import evaluate
from ..policy import Policy
from ..rewards import score
from ..rollout import rollout
from ..runs.fields import with_fields
from ..trainer import sampling_of

SAMPLED = 256
"""validation queries that are sampled"""


@torch.no_grad()
def instrument(policy: Policy, splits: Splits, config: Config) -> dict[str, float]:
    """Numbers on the validation split, before any RL.

    free, filled: NDCG@5 of greedy lists, of free length and with both lists filled; length: of the greedy slate;
    entropy: of the first choice of the slate, in nats (ln 20 = 3.0 is a coin); reward_slate, reward_rank: means of
    sampled rollouts; zero_variance_*: share of groups whose rewards are all equal, which teach nothing.
    """
    filled = with_fields(config, full=True)
    free, full = (evaluate(policy, splits.validation, c) for c in (config, filled))
    queries: Sequence[Example] = splits.validation[:SAMPLED]
    rollouts = rollout(policy, queries, sampling_of(config), config.rl.group, config.seed)
    rewards = score(rollouts, queries, config.rl)
    first = rollouts.completions[:, :2], rollouts.mask[:, :2]  # the tag and the first choice
    prompts = policy.encode([e for e in queries for _ in range(config.rl.group)], config.grammar)
    _, entropy = policy.logprobs(prompts, *first, rollouts.sampling, shared=False)
    return {
        "free": float(free["ndcg@5"].mean()), "filled": float(full["ndcg@5"].mean()),
        "length": float(free["slate_length"].mean()), "entropy": float(entropy[:, 1].mean()),
        "reward_slate": float(rewards.slate.mean()), "reward_rank": float(rewards.rank.mean()),
        "zero_variance_slate": float(zero_variance(rewards.slate).float().mean()),
        "zero_variance_rank": float(zero_variance(rewards.rank).float().mean()),
    }  # fmt: skip
