"""Mean squares and corrections by hand, clusters, and by simulation what intervals cover (in full: coverage.py)."""

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Tensor

from fgrpo.config import KitError
from fgrpo.study.significance import Estimate, holm, paired, share_interval

from .coverage import Cell, expected_coverage, measured, trials_of

SDS = (0.0, 0.01, 0.03)


def noise(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(x: list[list[float]]) -> tuple[float, float, float]:
    """Mean, variance and the share of runs, from the mean squares of a two-way table."""
    s, q = len(x), len(x[0])
    mean = sum(map(sum, x)) / s / q
    runs = [sum(row) / q for row in x]
    queries = [sum(row[j] for row in x) / s for j in range(q)]
    ms_runs = q * sum((r - mean) ** 2 for r in runs) / (s - 1)
    ms_queries = s * sum((c - mean) ** 2 for c in queries) / (q - 1)
    rest = sum((x[i][j] - runs[i] - queries[j] + mean) ** 2 for i in range(s) for j in range(q)) / (s - 1) / (q - 1)
    variance = ms_runs + max(0.0, ms_queries - rest)
    return mean, variance / s / q, ms_runs / variance


@pytest.mark.parametrize(("s", "q", "query_sd"), [(3, 40, 1.0), (2, 7, 0.5), (6, 5, 2.0), (4, 30, 0.0)])
def test_mean_squares_by_hand(s: int, q: int, query_sd: float) -> None:
    x = noise(s, q) + query_sd * noise(1, q, seed=1) + 0.3
    mean, variance, share = by_loops(x.tolist())
    found = paired(x)
    assert (found.mean, found.se**2, found.share) == pytest.approx((mean, variance, share))
    assert (found.run_df, found.query_df) == pytest.approx((s - 1, q - 1))


def test_one_seed_is_a_t_test_over_queries_and_one_query_one_over_seeds() -> None:
    x = noise(30) + 0.2
    for found, axis in (
        (paired(x[None]), "queries"),
        (paired(x[:, None]), "seeds"),
        (paired(x[:, None].expand(30, 9)), ""),
    ):
        low, high = found.interval()
        wanted = stats.ttest_1samp(x.numpy(), 0).confidence_interval()
        assert (low, high) == pytest.approx((wanted.low, wanted.high)), axis
    assert paired(x[None]).p == pytest.approx(stats.ttest_1samp(x.numpy(), 0).pvalue)


def test_runs_of_one_warm_start_are_a_cluster() -> None:
    """Balanced, that is the table of the starts' means; with one start, or as many as seeds, seeds stand for themselves."""
    x = noise(6, 20) + noise(3, 1, seed=1)[[0, 1, 2, 0, 1, 2]]
    assert paired(x, [0, 1, 2, 0, 1, 2]) == paired((x[:3] + x[3:]) / 2)
    assert paired(x, [0] * 6) == paired(x) == paired(x, [5, 4, 3, 2, 1, 0])
    uneven = paired(noise(10, 20), [0, 1, 2] * 3 + [0])  # every run counts the same in the mean
    assert uneven.mean == pytest.approx(float(noise(10, 20).mean())) and 1.9 < uneven.run_df < 2


def test_queries_of_a_group_are_a_cluster_and_no_group_is_none() -> None:
    x = noise(3, 12)
    copies = x.repeat_interleave(4, dim=1)  # each query four times
    groups = [str(i // 4) for i in range(48)]
    once, four = paired(x), paired(copies, groups=groups)
    assert (four.se, four.share, four.query_df) == pytest.approx((once.se, once.share, once.query_df))
    assert paired(copies, groups=[""] * 48) == paired(copies)
    part = paired(copies, groups=["a"] * 4 + [""] * 44)
    assert 37 < part.query_df < 38 < paired(copies).query_df == 47 and paired(copies, groups=["a"] * 48).share == 1


def test_labels_that_do_not_fit_are_refused() -> None:
    for starts, groups in (([0, 1], None), (None, ["a"] * 5), ([0, 1, 2, 3], None)):
        with pytest.raises(KitError, match="give one for each"):
            paired(noise(3, 4), starts, groups)


def test_without_noise_there_is_no_doubt_and_one_number_leaves_all() -> None:
    constant = paired(torch.full((3, 5), 0.02))
    assert constant.interval() == pytest.approx((0.02, 0.02)) and constant.p < 1e-6 and constant.detectable() < 1e-6
    assert paired(torch.zeros(3, 5)).p == 1 and paired(torch.zeros(3, 5)).interval() == (0, 0)
    rounded = paired(0.3 - torch.full((3, 5), 0.1, dtype=torch.float64) - 0.2)
    assert rounded.mean == 0 and rounded.p == 1
    single = paired(torch.ones(1, 1))
    assert single.interval() == (-math.inf, math.inf) and single.p == 1 and single.detectable() == math.inf


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_p_is_where_the_interval_begins_to_exclude_zero(share: float) -> None:
    for mean in (0.1, -1.0, 3.0, 20.0):
        found = Estimate(mean, 1.0, share, 2, 500)
        low, high = found.simultaneous(1, found.p)
        assert found.p == 1e-12 or min(abs(low), abs(high)) == pytest.approx(0, abs=1e-6)
        narrow, wide = found.interval(), found.simultaneous(1)
        assert wide[0] <= narrow[0] and narrow[1] <= wide[1]
    pure = Estimate(2.0, 1.0, share, 4, 4)  # both parts known equally well: Student's t
    assert pure.p == pytest.approx(2 * stats.t.sf(2.0, 4)) and pure.interval()[1] == pytest.approx(
        2 + stats.t.ppf(0.975, 4)
    )
    assert pure.detectable(3) == pytest.approx(stats.t.ppf(1 - 0.05 / 6, 4) + stats.t.ppf(0.8, 4))


def test_holm_by_hand() -> None:
    p = [0.01, 0.04, 0.03, 0.005]  # in order: 4 x 0.005, 3 x 0.01, 2 x 0.03, then no less than the one before
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.parametrize(
    "cell",
    [Cell(s, w, seed_sd=sd) for s, w in ((3, 1), (5, 1), (10, 1), (3, 3)) for sd in SDS]
    + [Cell(9, 3, seed_sd=0.01, start_sd=sd) for sd in SDS] + [Cell(3, seed_sd=sd, query_sd=0.0) for sd in SDS],
    ids=lambda c: f"S={c.seeds} W={c.starts} seed={c.seed_sd} start={c.start_sd} query={c.query_sd}",
)  # fmt: skip
def test_intervals_cover_93_to_97_percent(cell: Cell) -> None:
    assert 0.93 <= expected_coverage(cell, 300) <= 0.97


@pytest.mark.parametrize(
    "cell",
    [Cell(10, 3, seed_sd=0.01, start_sd=0.01), Cell(5, seed_sd=0.01, clusters="8 each"), Cell(5, clusters="uneven")],
    ids=["10 seeds of 3 starts", "clusters of 8", "uneven clusters"],
)
def test_intervals_of_other_designs_cover_93_to_97_percent(cell: Cell) -> None:
    """Counted, not computed, as these designs are not balanced: so with 600 trials."""
    assert 0.93 <= measured(cell, 600)["coverage"] <= 0.97


@pytest.mark.parametrize(("methods", "sd"), [(5, 0.01), (4, 0.03), (3, 0.03)])
def test_family_errors_are_at_most_6_percent(methods: int, sd: float) -> None:
    assert measured(Cell(3, methods=methods, seed_sd=sd), 500)["family_error"] <= 0.06


def test_holm_rejects_something_when_a_simultaneous_interval_excludes_zero() -> None:
    shown = 0
    for found in trials_of(Cell(3, methods=4, seed_sd=0.01), 60):
        large = [replace(x, mean=4 * x.mean) for x in found]
        excludes = any(low > 0 or high < 0 for low, high in (x.simultaneous(4) for x in large))
        assert excludes == (min(holm([x.p for x in large])) < 0.05)
        shown += excludes
    assert 10 < shown < 55


@pytest.mark.parametrize("cell", [Cell(10, seed_sd=0.01), Cell(5)], ids=["10 seeds", "5 seeds, no seed effect"])
def test_a_detectable_difference_is_found_four_times_in_five(cell: Cell) -> None:
    wanted = measured(cell, 300)["detectable"]
    found = [replace(x, mean=x.mean + wanted).p < 0.05 for (x,) in trials_of(cell, 300, seed=1)]
    assert 0.72 <= sum(found) / 300 <= 0.88


def test_intervals_of_shares_by_the_book() -> None:
    """Without clusters about those of Clopper and Pearson; where nothing varies, exactly those of as many clusters."""
    hits = torch.tensor([1.0] * 30 + [0.0] * 270)
    wanted = stats.binomtest(30, 300).proportion_ci(method="exact")
    assert share_interval(hits) == pytest.approx((wanted.low, wanted.high), abs=2e-3)
    for values, clusters in ((torch.zeros(12), 12), (torch.zeros(12), 4), (torch.ones(40), 40)):
        groups = [str(n % clusters) for n in range(len(values))]
        wanted = stats.binomtest(int(values[0]) * clusters, clusters).proportion_ci(method="exact")
        assert share_interval(values, groups) == pytest.approx((wanted.low, wanted.high))
    assert share_interval(torch.full((3,), 0.4))[0] == 0 and share_interval(torch.full((3,), 0.4))[1] == 1


@pytest.mark.parametrize(("share", "size"), [(0.02, 1), (0.3, 1), (0.1, 4)])
def test_intervals_of_shares_cover_95_percent_or_more(share: float, size: int) -> None:
    """Also of rare events, where an interval by t covers 63 %; queries of a group of `size` are alike."""
    generator, trials = torch.Generator().manual_seed(0), 300
    groups = [str(n // size) for n in range(50 * size)]
    events = (torch.rand(trials, 50, generator=generator) < share).double().repeat_interleave(size, 1)
    found = [share_interval(x, groups) for x in events]
    assert sum(low <= share <= high for low, high in found) / trials >= 0.94
    if share == 0.02:
        by_t = [paired(x[None], groups=groups).interval() for x in events]
        assert sum(low <= share <= high for low, high in by_t) / trials < 0.7
