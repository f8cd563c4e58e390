"""Metrics against an outside referee (trec_eval through ir-measures), a plain-loop twin, and by hand."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, permutations
from random import Random

import ir_measures
import pytest
import torch
from ir_measures import P, Qrel, R, ScoredDoc, Success, nDCG

from fgrpo.config import GrammarConfig, RLConfig
from fgrpo.policy import Sampling
from fgrpo.prompt import Output
from fgrpo.rewards import SLATE_REWARDS, WORTH, f1, hit, ndcg, pad, precision, recall, score, shapley
from fgrpo.rollout import Rollouts


def random_case(rng: Random) -> tuple[list[int], list[int]]:
    """A pool of 20 with graded gains (at least one relevant), and a ranked list of 1 to 10 of it."""
    gains = [rng.choice([0, 0, 0, 1, 2, 3]) for _ in range(20)]
    gains[rng.randrange(20)] = rng.choice([1, 2, 3])
    return gains, rng.sample(range(20), rng.randint(1, 10))


@pytest.mark.parametrize("k", [1, 3, 5, 10])
def test_metrics_agree_with_trec_eval(k: int) -> None:
    rng = Random(k)
    cases = [random_case(rng) for _ in range(1000)]
    gains = torch.tensor([g for g, _ in cases], dtype=torch.float64)
    lists = pad([x for _, x in cases], 10)
    ours = {
        nDCG @ k: ndcg(lists, gains, k), R @ k: recall(lists, gains, k), P @ k: precision(lists, gains, k),
        Success @ k: hit(lists, gains, k),
    }  # fmt: skip
    qrels = [Qrel(str(q), str(d), gain) for q, (g, _) in enumerate(cases) for d, gain in enumerate(g)]
    run = [ScoredDoc(str(q), str(d), -i) for q, (_, x) in enumerate(cases) for i, d in enumerate(x)]
    compared = 0
    for row in ir_measures.iter_calc(list(ours), qrels, run):
        assert ours[row.measure][int(row.query_id)].item() == pytest.approx(row.value, abs=1e-6), row
        compared += 1
    assert compared == len(ours) * 1000


def test_any_leading_dimensions() -> None:
    gains = torch.tensor([[0.0, 1, 0, 2], [1, 1, 1, 0]])
    lists = torch.tensor([[[1, 3, -1], [0, 2, 1]], [[3, -1, -1], [0, 1, 2]]])  # (Q, G, K)
    together = ndcg(lists, gains.unsqueeze(1), 3)
    for q in range(2):
        for g in range(2):
            assert together[q, g] == pytest.approx(ndcg(lists[q, g], gains[q], 3).item())


def test_values_by_hand() -> None:
    gains = torch.tensor([1.0, 0, 1, 1, 0])
    slate = torch.tensor([2, 1, 4, 0, -1])
    assert recall(slate, gains).item() == pytest.approx(2 / 3)
    assert precision(slate, gains).item() == pytest.approx(2 / 4)
    assert f1(slate, gains).item() == pytest.approx(4 / 7)
    assert ndcg(torch.tensor([1, 2]), gains, 5).item() == pytest.approx(
        (1 / math.log2(3)) / (1 + 1 / math.log2(3) + 1 / 2)
    )


def test_empty_list_scores_zero() -> None:
    gains, empty = torch.tensor([0.0, 1, 1]), torch.full((4,), -1)
    assert [m(empty, gains).item() for m in (recall, precision, f1, hit)] == [0] * 4
    assert ndcg(empty, gains, 5).item() == 0


def test_an_ill_formed_output_earns_the_penalty_and_nothing_else(queries) -> None:
    outputs = [Output((0, 1), (1,)), Output(error="malformed")] * len(queries)
    rollouts = Rollouts(None, None, None, None, None, outputs, 2, Sampling(GrammarConfig()))  # type: ignore[arg-type]
    rewards = score(rollouts, queries, RLConfig(format_penalty=0.7))
    assert rewards.format.tolist() == rewards.slate_format.tolist() == [[0.0, pytest.approx(-0.7)]] * len(queries)
    assert rewards.slate[:, 1].tolist() == rewards.rank[:, 1].tolist() == [0.0] * len(queries)
    for q, example in enumerate(queries):
        assert rewards.slate[q, 0] == pytest.approx(len({0, 1} & example.relevant) / len(example.relevant))


def by_orders(slate: Sequence[int], reward: Callable[[Sequence[int]], float]) -> list[float]:
    """Shapley values by their definition: what an item adds when it joins, over all orders of joining."""
    found, orders = dict.fromkeys(slate, 0.0), list(permutations(slate))
    for order in orders:
        for place, item in enumerate(order):
            found[item] += (reward(order[: place + 1]) - reward(order[:place])) / len(orders)
    return [found[item] for item in slate]


def by_subsets(slate: Sequence[int], reward: Callable[[Sequence[int]], float]) -> list[float]:
    """The same from the 2^n subsets, for longer slates."""
    n, worth = len(slate), {s: reward(s) for size in range(len(slate) + 1) for s in combinations(slate, size)}
    return [
        sum(
            (worth[tuple(i for i in slate if i in s or i == item)] - worth[s]) / (n * math.comb(n - 1, len(s)))
            for s in worth if item not in s
        )
        for item in slate
    ]  # fmt: skip


@pytest.mark.parametrize("name", SLATE_REWARDS)
def test_shapley_values_are_those_of_their_definition(name) -> None:
    """Over all orders, or all subsets: graded gains, slates of 1 to 10, with and without hits, padded and empty."""
    rng, cases = Random(0), []
    for length in (0, 1, 1, 2, 3, 4, 5, 5, 9, 10):
        for relevant in (1, 3, 12):
            gains = [0.0] * 12
            for i in rng.sample(range(12), relevant):
                gains[i] = float(rng.randint(1, 3))
            cases.append((gains, rng.sample(range(12), length)))
    gains, slates = torch.tensor([g for g, _ in cases], dtype=torch.float64), pad([x for _, x in cases], 10)
    found, worth = shapley(slates, gains, WORTH[name]), SLATE_REWARDS[name](slates, gains)
    assert torch.allclose(found.sum(-1), worth, atol=1e-12) and (worth == 0).any()  # together they are the reward
    for row, (own, slate) in enumerate(cases):

        def reward(some: Sequence[int], own: list[float] = own) -> float:
            return float(SLATE_REWARDS[name](pad([some], 10)[0], torch.tensor(own, dtype=torch.float64)))

        expected = (by_orders if len(slate) <= 5 else by_subsets)(slate, reward)
        assert found[row, : len(slate)].tolist() == pytest.approx(expected, abs=1e-12), (slate, own)
        assert (found[row, len(slate) :] == 0).all()
    rows = [0, 5, 17, 29]
    assert torch.equal(shapley(slates[rows].unsqueeze(0), gains[rows].unsqueeze(0), WORTH[name])[0], found[rows])


def scored_slates(slates: list[tuple[int, ...]], example, slate_reward: str):
    outputs = [Output(s, s[:1]) for s in slates]
    r = Rollouts(None, None, None, None, None, outputs, len(slates), Sampling(GrammarConfig()))  # type: ignore[arg-type]
    return score(r, [example], RLConfig(slate_reward=slate_reward))


def test_shapley_of_recall_is_leave_one_out(queries) -> None:
    slates = [tuple(range(n)) for n in (1, 4, 10)]
    rewards = scored_slates(slates, queries[0], "recall")
    assert torch.allclose(rewards.shapley, rewards.items, atol=1e-6) and rewards.items.any()
    rewards = scored_slates(slates, queries[0], "f1")
    assert not torch.allclose(rewards.shapley, rewards.items, atol=1e-2)
    assert torch.allclose(rewards.shapley.sum(-1), rewards.slate, atol=1e-6)


def test_leaving_one_out_of_f1_asks_more_of_an_item_than_its_shapley_value(queries) -> None:
    """The trap of F1 with item credit: the chance of being right from which an item pays on average.

    One relevant candidate, which the slate of 10 holds: 1 in 11 when items are left out in turn, 1 in 17 by Shapley
    values, against any chance at all under recall. A candidate at random is right with 1 in 20.
    """
    example = replace(queries[0], relevant=frozenset({3}))
    chance = {}
    for reward in ("f1", "recall"):
        rewards = scored_slates([tuple(range(10))], example, reward)
        for name in ("items", "shapley"):
            values = getattr(rewards, name)[0, 0]
            chance[reward, name] = float(-values[0] / (values[3] - values[0]))  # p hit + (1 - p) miss = 0
    assert chance["f1", "items"] == pytest.approx(1 / 11, abs=1e-4)
    assert chance["f1", "shapley"] == pytest.approx(1 / 17.37, abs=1e-4)
    assert chance["recall", "items"] == chance["recall", "shapley"] == 0


def test_a_pool_without_relevant_candidates_earns_nothing() -> None:
    """Its target was not retrieved. Beside it a pool with one scores as it does alone, gains of 1e-6 included."""
    lists, gains = pad([[0, 1], [0, 1], [0, 1], []], 3), torch.zeros(4, 5)
    gains[1, 0], gains[2, 1] = 1.0, 1e-6
    for k in (1, 3):
        assert recall(lists, gains, k).tolist() == [0, 1, k > 1, 0] and hit(lists, gains, k).tolist() == [
            0,
            1,
            k > 1,
            0,
        ]
        half = pytest.approx(0.6309 * (k > 1), abs=1e-4)
        assert ndcg(lists, gains, k).tolist() == [0, 1, half, 0]
    assert f1(lists, gains).tolist() == pytest.approx([0, 2 / 3, 2 / 3, 0])
    for name, worth in WORTH.items():
        values = shapley(lists, gains, worth)
        assert values.isfinite().all() and not values[0].any() and not values[3].any(), name
