"""Metrics and the fate of every relevant candidate against a plain loop; batches change nothing."""

from random import Random

import pytest
import torch

from fgrpo.config import Config, GrammarConfig
from fgrpo.data import Example
from fgrpo.evaluate import FATES, evaluate, fates, measure_outputs
from fgrpo.prompt import Output
from fgrpo.rewards import pad


def fate_by_loop(slate: list[int], rank: list[int], failed: bool, relevant: set[int], i: int) -> str:
    if failed:
        return "format_error"
    if i not in slate:
        return "slate_miss"
    if i not in rank or any(j not in relevant for j in rank[: rank.index(i)]):
        return "rank_drop"
    return "right"


def test_fates_agree_with_the_plain_loop() -> None:
    rng = Random(0)
    slates = [rng.sample(range(9), rng.randint(1, 6)) for _ in range(500)]
    ranks = [rng.sample(s, rng.randint(1, min(3, len(s)))) for s in slates]
    failed = [rng.random() < 0.1 for _ in slates]
    relevant = [set(rng.sample(range(9), rng.randint(1, 4))) for _ in slates]
    gains = torch.tensor([[float(i in r) for i in range(9)] for r in relevant])
    found = fates(pad(slates, 6), pad(ranks, 3), torch.tensor(failed), gains)
    for q in range(500):
        for i in range(9):
            expected = fate_by_loop(slates[q], ranks[q], failed[q], relevant[q], i) if i in relevant[q] else None
            assert (FATES[found[q, i]] if found[q, i] >= 0 else None) == expected


def test_measure_by_hand() -> None:
    example = Example("a", "", (), ("a", "b", "c", "d"), frozenset({0, 2, 3}))
    metrics = measure_outputs([Output((0, 1, 2), (0, 1))], [example], GrammarConfig(3, 2))
    expected = {"recall@1": 1 / 3, "precision@3": 1 / 3, "hit@1": 1, "mrr@5": 1, "slate_recall": 2 / 3,
                "slate_length": 3, "right": 1 / 3, "rank_drop": 1 / 3, "slate_miss": 1 / 3, "format_error": 0}  # fmt: skip
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(value), name


def test_batches_do_not_change_the_metrics(policy, lab) -> None:
    examples = lab.test[:10]
    whole, parts = (evaluate(policy, examples, Config(), batch=b) for b in (10, 3))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    shares = sum(whole[name] for name in FATES)
    assert torch.allclose(shares, torch.ones_like(shares))
