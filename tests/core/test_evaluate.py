"""Fates of relevant candidates against a plain loop; intervals that cover what they should."""

from random import Random

import pytest
import torch

from fgrpo.baselines.rankers import popularity, random_order
from fgrpo.config import Config, GrammarConfig
from fgrpo.data import Example, Splits
from fgrpo.evaluate import FATES, evaluate, fates, measure, measure_outputs
from fgrpo.prompt import Output
from fgrpo.rewards import pad
from fgrpo.study.significance import holm, paired_bootstrap


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
    metrics = measure(pad([[0, 1, 2]], 3), pad([[0, 1]], 2), torch.tensor([False]), [example])
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


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator, covered = torch.Generator().manual_seed(0), 0
    for trial in range(200):
        x = torch.rand(1, 60, generator=generator)
        mean, _ = paired_bootstrap({"a": x}, "a", resamples=400, seed=trial)["a"]
        low, high = mean.interval()
        covered += low <= 0.5 <= high
    assert 180 <= covered <= 198


def test_pairing_sees_a_small_constant_difference_in_large_noise() -> None:
    noise = torch.rand(3, 200, generator=torch.Generator().manual_seed(0))
    _, diff = paired_bootstrap({"a": noise, "b": noise + 0.01}, "a")["b"]
    assert diff.p < 0.001 and diff.interval()[0] == pytest.approx(0.01, abs=1e-6)
    mean, same = paired_bootstrap({"a": noise, "b": noise}, "a")["b"]
    assert same.p == 1 and mean.interval()[1] - mean.interval()[0] > 0.04


def test_few_seeds_are_made_good() -> None:
    """With differences by seed alone, the bootstrap's spread is that of the mean with S - 1 in the denominator."""
    by_seed = torch.tensor([0.0, 0.3, 0.1]).unsqueeze(1).expand(3, 50)
    mean, _ = paired_bootstrap({"a": by_seed}, "a")["a"]
    assert mean.resampled.std().item() == pytest.approx(by_seed[:, 0].std().item() / 3**0.5, rel=0.03)


def test_holm_by_hand() -> None:
    p = [0.01, 0.04, 0.03, 0.005]  # in order: 4 x 0.005, 3 x 0.01, 2 x 0.03, then no less than the one before
    adjusted, levels = zip(*holm(p), strict=True)
    assert adjusted == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert levels == pytest.approx((0.05 / 3, 0.05, 0.05 / 2, 0.05 / 4))
    assert holm([0.6, 0.7])[1][0] == 1.0 and holm([]) == []


def test_p_and_interval_agree(lab) -> None:
    """A p-value under a level means that the interval at this level leaves zero out, and the other way round."""
    generator = torch.Generator().manual_seed(0)
    shown = 0
    for _ in range(20):
        a, b = torch.rand(2, 4, 40, generator=generator)
        _, diff = paired_bootstrap({"a": a, "b": b + 0.2}, "a", resamples=2000)["b"]
        for level in (0.05, 0.01):
            low, high = diff.interval(level)
            assert (diff.p < level) == (low > 0 or high < 0) or abs(diff.p - level) < 0.003
            shown += low > 0
    assert 0 < shown < 40


def test_random_and_popularity(lab) -> None:
    orders = random_order(lab)
    outputs = [Output(tuple(o[:10]), tuple(o[:5])) for o in orders]
    chance = measure_outputs(outputs, lab.test, GrammarConfig())
    assert chance["slate_recall"].mean().item() == pytest.approx(0.5, abs=0.03)  # 10 of 20
    train = [Example("t", "", ("b", "b", "c"), ("a", "b"), frozenset({1}))]
    train += [Example("u", "", (), ("b", "a"), frozenset({0}))]
    test = [Example("x", "", (), ("a", "c", "b"), frozenset({0}))]
    assert popularity(Splits(train, [], test)) == [[2, 1, 0]]
