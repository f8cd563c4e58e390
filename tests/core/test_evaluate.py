"""Metrics and the fate of every relevant candidate against a plain loop; batches change nothing."""

from random import Random

import pytest
import torch

from fgrpo.config import Config, GrammarConfig
from fgrpo.data import Example
from fgrpo.evaluate import FATES, evaluate, fates, measure_outputs
from fgrpo.prompt import Output
from fgrpo.rewards import pad


def fate_by_loop(slate: list[int], rank: list[int], failed: bool, relevant: set[int], i: int) -> str | None:
    if i not in slate:
        if failed and not slate:
            return "format_error"
        return None if len(slate) == 6 and set(slate) <= relevant else "slate_miss"
    if failed:
        return "format_error"
    if i not in rank and len(rank) == 3 and set(rank) <= relevant:
        return None  # there was no room
    if i not in rank or any(j not in relevant for j in rank[: rank.index(i)]):
        return "rank_drop"
    return "right"


def test_fates_agree_with_the_plain_loop() -> None:
    rng = Random(0)
    slates = [rng.sample(range(9), rng.randint(1, 6)) for _ in range(500)]
    ranks = [rng.sample(s, rng.randint(1, min(3, len(s)))) for s in slates]
    failed = [rng.random() < 0.1 for _ in slates]
    ranks = [[] if f else r for r, f in zip(ranks, failed, strict=True)]
    slates = [[] if f and n % 2 else s for n, (s, f) in enumerate(zip(slates, failed, strict=True))]
    relevant = [set(rng.sample(range(9), rng.randint(1, 8))) for _ in slates]
    gains = torch.tensor([[float(i in r) for i in range(9)] for r in relevant])
    found = fates(pad(slates, 6), pad(ranks, 3), torch.tensor(failed), gains)
    for q in range(500):
        for i in range(9):
            expected = fate_by_loop(slates[q], ranks[q], failed[q], relevant[q], i) if i in relevant[q] else None
            assert (FATES[found[q, i]] if found[q, i] >= 0 else None) == expected


def test_measure_by_hand() -> None:
    example = Example("a", "", (), ("a", "b", "c", "d"), frozenset({0, 2, 3}))
    metrics = measure_outputs([Output((0, 1, 2), (0, 1))], [example], GrammarConfig(3, 2))
    expected = {"recall@1": 1 / 3, "precision@3": 1 / 3, "hit@1": 1, "slate_recall": 2 / 3,
                "slate_length": 3, "right": 1 / 3, "rank_drop": 1 / 3, "slate_miss": 1 / 3, "format_error": 0}  # fmt: skip
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(value), name


def test_a_perfect_list_that_is_too_short_for_all_has_dropped_nothing() -> None:
    example = Example("a", "", (), tuple("abcdefg"), frozenset(range(6)))
    metrics = measure_outputs([Output((0, 1, 2, 3), (3, 0))], [example], GrammarConfig(4, 2))
    shares = {name: metrics[name].item() for name in FATES}
    assert shares == {"right": 1, "slate_miss": 0, "rank_drop": 0, "format_error": 0}
    metrics = measure_outputs([Output((0, 1, 2, 6), (0, 6))], [example], GrammarConfig(4, 2))
    assert metrics["slate_miss"].item() == 3 / 6 and metrics["rank_drop"].item() == 2 / 6


def test_an_ill_formed_ranking_keeps_its_slate() -> None:
    example = Example("a", "", (), tuple("abcd"), frozenset({0, 3}))
    outputs = [Output((0, 1), (), "duplicate"), Output(error="foreign")]
    metrics = measure_outputs(outputs, [example] * 2, GrammarConfig(3, 2))
    assert metrics["slate_recall"].tolist() == [0.5, 0]
    assert metrics["format_error"].tolist() == [0.5, 1] and metrics["slate_miss"].tolist() == [0.5, 0]


def test_all_metrics_have_one_precision() -> None:
    example = Example("a", "", (), tuple("abc"), frozenset({0, 1, 2}))
    metrics = measure_outputs([Output((0, 1), (0,))], [example], GrammarConfig(2, 2))
    assert {x.dtype for x in metrics.values()} == {torch.float64} and metrics["recall@1"].item() == 1 / 3


def test_batches_do_not_change_the_metrics(policy, lab) -> None:
    examples = lab.test[:10]
    whole, parts = (evaluate(policy, examples, Config(), batch=b) for b in (10, 3))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    shares = sum(whole[name] for name in FATES)
    assert torch.allclose(shares, torch.ones_like(shares))
