"""True advantages of outputs written by hand; those of a policy's outputs are tested with the map, which uses them."""

import math
from dataclasses import replace
from itertools import permutations

import pytest
import torch

from fgrpo.config import Config, RLConfig
from fgrpo.data import Example
from fgrpo.prompt import Output
from fgrpo.rewards import Rewards
from fgrpo.study.signs import random_order_advantages

EXAMPLE = Example("q", "", (), tuple("abcdef"), frozenset({0, 1}))
LISTS = [((0, 1, 2, 3), (0, 1, 2)), ((0, 1, 2, 3), (2, 3, 1)), ((0, 2, 3, 4), (0, 2, 3)), ((2, 3, 4), (4,))]


def gain(ranked: tuple[int, ...]) -> float:
    """NDCG@5 for two relevant candidates, 0 and 1."""
    return sum(1 / math.log2(place + 2) for place, i in enumerate(ranked) if i < 2) / (1 + 1 / math.log2(3))


def rewards_of(lists) -> Rewards:
    slate = torch.tensor([[len({0, 1} & set(s)) / 2 for s, _ in lists]])
    zero = torch.zeros_like(slate)
    rank = torch.tensor([[gain(r) for _, r in lists]])
    return Rewards(slate, rank, zero, zero, zero, zero, zero)


@pytest.mark.parametrize("lam", [0.0, 0.5, 4.0])
def test_written_outputs_against_a_plain_loop(lam: float) -> None:
    outputs, rewards = [Output(s, r) for s, r in LISTS], rewards_of(LISTS)
    true = random_order_advantages(EXAMPLE, outputs, rewards, Config(rl=RLConfig(lam=lam)))
    expected, worth = [], []
    for n, (slate, ranked) in enumerate(LISTS):
        orders = [gain(order) for order in permutations(slate, len(ranked))]
        expected.append(sum(orders) / len(orders))
        worth.append(float(rewards.slate[0, n]) + lam * expected[-1])
    for n in range(len(LISTS)):
        assert float(true["rank"][n]) == pytest.approx(lam * (float(rewards.rank[0, n]) - expected[n]), abs=1e-6)
        assert float(true["slate"][n]) == pytest.approx(worth[n] - sum(worth) / 4, abs=1e-6)


def test_own_credit_can_be_wrong_about_a_ranking() -> None:
    """Better than most orders of a poor slate, and below the mean of a group with a good one."""
    lists = LISTS[:3]
    rewards = rewards_of(lists)
    rewards = replace(rewards, rank=torch.tensor([[1.0, 0.4, 0.4]]))
    true = random_order_advantages(EXAMPLE, [Output(s, r) for s, r in lists], rewards, Config())
    own = rewards.rank[0] - rewards.rank[0].mean()
    assert true["rank"][1] < 0 < true["rank"][2] and own[1] == own[2] < 0
