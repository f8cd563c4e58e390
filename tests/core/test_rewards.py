"""Metrics against an outside referee (trec_eval through ir-measures), a plain-loop twin, and by hand."""

import math
from random import Random

import ir_measures
import pytest
import torch
from ir_measures import P, Qrel, R, ScoredDoc, Success, nDCG

from fgrpo.config import GrammarConfig, RLConfig
from fgrpo.policy import Sampling
from fgrpo.prompt import Output
from fgrpo.rewards import f1, hit, ndcg, pad, precision, recall, score
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
