"""Bootstrap intervals that cover what they should, pairing, and Holm's correction by hand."""

import pytest
import torch

from fgrpo.study.significance import holm, paired_bootstrap


def test_bootstrap_interval_covers_the_truth_at_about_its_level() -> None:
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


def test_intervals_are_widened_for_few_seeds() -> None:
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


def test_p_and_interval_agree() -> None:
    """A p-value under a level means that the interval at this level excludes zero, and vice versa."""
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
