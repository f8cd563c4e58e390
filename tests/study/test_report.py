"""The table: verdicts, its family, the manipulation check, learning curves as areas and crossings."""

import csv
import io
import json
import math

import pytest
import torch
from torch import Tensor

from fgrpo.config import KitError
from fgrpo.study import plots
from fgrpo.study.check import by_seed, manipulation, not_learned, starts_of, trained_methods
from fgrpo.study.compare import Result, Results
from fgrpo.study.report import (
    AREA,
    area,
    check_rows,
    crossing,
    efficiency,
    format_table,
    reading,
    table,
    to_csv,
    verdict,
)
from fgrpo.study.significance import Estimate

NAMES = ("ndcg@5", "recall@5", "slate_recall", "slate_length")
QUERIES = 200


def result(values: Tensor, curve: list[tuple[int, Tensor]] | None = None) -> Result:
    return Result(dict.fromkeys(NAMES, values), 10, 1.0, curve or [])


def noise(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


QUALITY = 0.5 + 0.2 * noise(QUERIES)


def runs(shift: float = 0.0, seeds: int = 5, seed_sd: float = 0.001, rest: float = 0.02, seed: int = 1) -> list[Result]:
    """Runs of a method: queries differ much, seeds little."""
    x = QUALITY + shift + rest * noise(seeds, QUERIES, seed=seed) + seed_sd * noise(seeds, 1, seed=seed + 50)
    return [result(row) for row in x]


def results(seeds: int = 5, **shifts: float) -> Results:
    """sft_full, sft and grpo (0.1 above it), and methods with a given shift to grpo."""
    row = {"sft_full": [result(QUALITY)], "sft": [result(QUALITY - 0.1)], "grpo": runs(0.1, seeds, seed=1)}
    others = {m: runs(0.1 + x, seeds, seed=100 * (k + 1)) for k, (m, x) in enumerate(shifts.items())}
    return {"": row | others}


def primary(rows: list[plots.Row], metric: str = "ndcg@5") -> dict[str, plots.Row]:
    return {r["method"]: r for r in rows if r["metric"] == metric}


def test_the_four_verdicts() -> None:
    found = results(better=0.03, worse=-0.03, same=0.0)
    found[""]["vague"] = runs(0.1, seed_sd=0.05, seed=900)
    rows = primary(table(found))
    assert {m: r["verdict"].partition(":")[0] for m, r in rows.items() if m.islower() and r["verdict"]} == {
        "better": "higher", "worse": "lower", "same": "no difference larger than 0.01", "vague": "undecided",
    }  # fmt: skip
    vague = rows["vague"]
    assert vague["verdict"] == f"undecided: only differences above {vague['detectable']:.2g} would have been seen"
    assert primary(table(found, margin=1e-4))["same"]["verdict"].startswith("undecided: only differences above 0.0")
    assert primary(table(found, margin=0.5))["vague"]["verdict"] == "no difference larger than 0.5"
    rows = primary(table(found, against="better"))
    assert (
        rows["grpo"]["verdict"] == "lower" and rows["better"]["verdict"] == "" and rows["grpo"]["baseline"] == "better"
    )


@pytest.mark.parametrize(
    ("mean", "se", "p", "said"),
    [
        (0.004, 0.001, 0.01, "higher"),  # shown, and small: the sign comes first
        (-0.004, 0.001, 0.049, "lower"), (0.0, 0.004, 0.05, "no difference larger than 0.01"),
        (0.0, 0.006, 1.0, "undecided: only differences above 0.017 would have been seen"),
        (0.006, 0.003, 0.2, "undecided: only differences above 0.0084 would have been seen"),
        (0.0, 0.0, 1.0, "no difference larger than 0.01"),
    ],
)  # fmt: skip
def test_a_verdict_by_hand(mean: float, se: float, p: float, said: str) -> None:
    found = Estimate(mean, se, 0.5, 1e6, 1e6)
    assert verdict(found, p, 1, 0.01, 3) == said
    assert verdict(found, p, 1, 0.01, 2) == "no verdict: fewer than 3 seeds"
    assert verdict(found, p, 1, 0.01, 3, "the control failed") == "withheld: the control failed"


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_give_intervals_and_no_verdict(seeds: int) -> None:
    rows = table(results(seeds, better=0.3))
    assert primary(rows)["better"]["verdict"] == "no verdict: fewer than 3 seeds"
    assert primary(rows)["better"]["diff_low"] > 0 or seeds == 2
    assert {r["detectable"] is None for r in rows if r["method"] == "better"} == {seeds == 1}
    assert not any(check.beats for check in manipulation(results(seeds, better=0.3)))
    assert "one seed: the spread of training is unknown" in reading(rows) or seeds == 2


def test_only_the_family_named_beforehand_has_p_values() -> None:
    """Trained methods on the primary metric; every trained row has a detectable difference, no other row has."""
    rows = table(results(fgrpo=0.02, item=0.0))
    tested = {(r["method"], r["metric"]) for r in rows if r["p_holm"] is not None}
    assert tested == {("fgrpo", "ndcg@5"), ("item", "ndcg@5")}
    for r in rows:
        assert (r["simultaneous_low"] is None) == (r["verdict"] == "") == ((r["method"], r["metric"]) not in tested)
        assert (r["detectable"] is not None) == (r["method"] in ("fgrpo", "item")) and r["low"] < r["mean"] < r["high"]
    assert {(r["method"], r["metric"]) for r in table(results(item=0.0), primary="recall@5") if r["verdict"]} == {
        ("item", "recall@5")
    }
    with pytest.raises(KitError, match="metric 'ndcg' was not measured; choose from ndcg@5, recall@5"):
        table(results(item=0.0), primary="ndcg")
    with pytest.raises(KitError, match="'sft' was not trained here: compare against one of grpo, item"):
        table(results(item=0.0), against="sft")


def test_one_lucky_setting_among_many_is_not_a_finding() -> None:
    """A difference that one comparison would show is not shown among twenty, and its simultaneous interval covers 0."""

    def cell(shift: float, seed: int) -> dict[str, list[Result]]:
        return {"sft": [result(QUALITY)], "grpo": runs(seed=seed), "fgrpo": runs(shift, seed=seed + 7)}

    def of_fgrpo(found: Results) -> list[plots.Row]:
        return [r for r in table(found) if (r["method"], r["metric"]) == ("fgrpo", "ndcg@5")]

    lucky = cell(0.0035, 1)
    (alone,) = of_fgrpo({"a": lucky})
    rows = of_fgrpo({"a": lucky, **{f"other={i}": cell(0.0, 1000 + 20 * i) for i in range(19)}})
    assert alone["verdict"] == "higher" and alone["simultaneous_low"] > 0
    assert rows[0]["diff_low"] == alone["diff_low"] > 0 and rows[0]["p_holm"] > 0.05 and rows[0]["simultaneous_low"] < 0
    assert rows[0]["detectable"] > alone["detectable"] and not {r["verdict"] for r in rows} & {"higher", "lower"}


def test_the_printed_table_names_its_intervals_and_leaves_empty_columns_out() -> None:
    rows = table(results(fgrpo=0.02), starts=[0] * 5)
    head, *lines = format_table(rows).splitlines()
    for name in ("difference to grpo [95 %]", "simultaneous", "p (Holm)", "detectable", "verdict"):
        assert name in head
    assert "setting" not in head and len(lines) == 4 and "higher" in lines[-1]
    described = format_table(rows, "recall@5").splitlines()[0]
    assert "p (Holm)" not in described and "verdict" not in described and "detectable" in described
    said = reading(rows)
    assert "5 seeds from one warm start, so they speak about this start alone" in said
    assert "ndcg@5, corrected for 1 comparison (" in said
    assert "from 5 warm starts" in reading(table(results(fgrpo=0.02), starts=range(5)))
    json.loads(json.dumps(rows, allow_nan=False))
    plots.comparison(rows)


def test_one_query_and_one_seed_make_a_table_without_intervals() -> None:
    one = {"": {m: [result(torch.tensor([x]).double())] for m, x in (("sft", 0.2), ("grpo", 0.3), ("item", 0.4))}}
    rows = table(one)
    assert all(r["low"] is None and r["diff_high"] is None for r in rows)
    json.dumps(rows, allow_nan=False)
    assert "0.400" in format_table(rows) and plots.comparison(rows)
    sweep = {f"lam={k}": one[""] for k in (1, 2, 3)}
    assert plots.comparison(table(sweep))
    assert to_csv(rows, {}).splitlines()[2].startswith(",sft,ndcg@5,0.2,,,")


# --- warm starts ------------------------------------------------------------------------------------------------------


def test_rows_stand_for_seeds_by_warm_start() -> None:
    three = [result(torch.full((4,), float(w))) for w in range(3)]
    assert by_seed(three, "ndcg@5", [0, 1, 2, 0, 1, 2, 0])[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert by_seed(three[:1], "ndcg@5", [0, 1])[:, 0].tolist() == [0, 0]
    assert by_seed(three, "ndcg@5", [0, 0, 0])[:, 0].tolist() == [0, 1, 2]
    with pytest.raises(KitError, match="a row has 3 results, but there are 2 warm starts and 4 seeds"):
        by_seed(three, "ndcg@5", [0, 1, 0, 1])


def test_warm_starts_and_other_options_must_fit_the_runs() -> None:
    found = results(5, item=0.0)
    assert starts_of(found) == [0] * 5 and starts_of(found, range(5)) == list(range(5))
    for starts, said in (([0, 1], "2 seeds, but methods with 5 runs"), ([0, 2, 0, 2, 0], "numbered from 0 without gaps"),
                         ([1] * 5, "numbered from 0 without gaps"), ([0, -1, 0, 0, 0], "numbered from 0")):  # fmt: skip
        with pytest.raises(KitError, match=said):
            table(found, starts=starts)
    for options, said in (
        ({"groups": {"lam=1": ["a"] * QUERIES}}, "groups of setting 'lam=1', but settings are ''"),
        ({"groups": {"": ["a"] * 3}}, "3 warm starts or groups for 200"),
        ({"margin": 0.0}, "margin 0.0 must be above 0"), ({"margin": math.nan}, "must be above 0"),
    ):  # fmt: skip
        with pytest.raises(KitError, match=said):
            table(found, **options)
    with pytest.raises(KitError, match="metric 'hit@9' was not measured"):
        manipulation(found, metric="hit@9")
    found[""]["item"] = found[""]["item"][:3]
    with pytest.raises(KitError, match="methods with 3, 5 runs: train each as often"):
        table(found)


@pytest.mark.parametrize(("starts", "warned"), [([0] * 4, False), ([0, 1, 0, 1], True), ([0, 1, 2, 0], False)])
def test_two_warm_starts_are_too_few_or_too_many(starts: list[int], warned: bool) -> None:
    text = reading(table(results(4, fgrpo=0.0), starts=starts))
    assert ("leave 1 degree of freedom" in text) == ("use 1, or 3 and more" in text) == warned
    assert ("about this start alone" in text) == (max(starts) == 0)


def test_warm_starts_widen_an_interval_when_they_vary() -> None:
    """Nine runs whose difference depends on their warm start: as nine independent runs they would look conclusive."""
    starts = [0, 1, 2] * 3
    found = results(9, item=0.0)
    shift = torch.tensor([0.0, 0.03, 0.06])
    found[""]["item"] = [result(r.metrics["ndcg@5"] + shift[w]) for r, w in zip(runs(0.1, 9), starts, strict=True)]
    found[""]["sft_more"] = [result(QUALITY + 0.01 * w) for w in range(3)]
    found[""] = {m: found[""][m] for m in ("sft_full", "sft_more", "sft", "grpo", "item")}
    one = {m: rows for m, rows in found[""].items() if m != "sft_more"}
    fixed, varied = primary(table({"": one})), primary(table(found, starts=starts))
    assert fixed["item"]["verdict"] == "higher" and varied["item"]["verdict"].startswith("undecided")
    assert fixed["item"]["diff"] == pytest.approx(varied["item"]["diff"])
    assert varied["sft_more"]["seeds"] == 0 and varied["sft_more"]["mean"] == pytest.approx(
        float(QUALITY.mean()) + 0.01
    )
    assert (fixed["item"]["starts"], varied["item"]["starts"]) == (1, 3)


def test_queries_of_a_group_widen_an_interval() -> None:
    found = results(5, item=0.004)
    copies = {
        "": {m: [result(r.metrics["ndcg@5"].repeat(4)) for r in rows] for m, rows in found[""].items()}
    }  # every query four times
    groups = [str(i) for i in range(QUERIES)] * 4
    narrow, wide, once = (
        primary(t)["grpo"] for t in (table(copies), table(copies, groups={"": groups}), table(found))
    )  # fmt: skip
    assert wide["low"] == pytest.approx(once["low"]) and narrow["low"] > wide["low"]


# --- the manipulation check -------------------------------------------------------------------------------------------


def test_the_manipulation_check_says_who_learned() -> None:
    found = results(5, item=-0.15)
    found[""] = {"sft_more": [result(QUALITY + 0.2)], "sft_more_queries": [result(QUALITY + 0.1)], **found[""]}
    checks = {(c.method, c.reference): c for c in manipulation(found)}
    assert trained_methods(found) == ["grpo", "item"]
    assert list(checks) == [(m, r) for r in ("sft_more", "sft_more_queries", "sft_full") for m in ("grpo", "item")]
    assert {key for key, c in checks.items() if c.beats} == {("grpo", "sft_full")}
    assert checks["grpo", "sft_full"].sentence.startswith("grpo beats sft_full by +0.1")
    assert "item is not shown to beat sft_full (by -0.0" in checks["item", "sft_full"].sentence
    assert "has not been shown to learn" in checks["item", "sft_full"].sentence
    assert "worse than sft_more by -0.0" in checks["grpo", "sft_more"].sentence
    assert "the same compute spent on SFT may do as well" in checks["grpo", "sft_more_queries"].sentence
    assert not_learned(checks.values(), "grpo") == {}  # the baseline learned: that item did not is a finding
    assert list(not_learned(checks.values(), "item")) == [("", "item")]
    rows = list(csv.DictReader(io.StringIO(to_csv(check_rows(list(checks.values())), {}).partition("\n")[2])))
    assert rows[4]["reference"] == "sft_full" and rows[4]["beats"] == "True"


def test_verdicts_are_withheld_where_neither_method_learned() -> None:
    found = {"a": results(5, item=0.05)[""], "b": results(5, item=0.05)[""]}
    found["b"]["sft_full"] = [result(QUALITY + 0.3)]  # better than both
    reasons = not_learned(manipulation(found), "grpo")
    verdicts = {r["setting"]: r["verdict"] for r in table(found, withheld=reasons) if r["verdict"]}
    assert verdicts == {"a": "higher", "b": "withheld: neither item nor grpo is shown to beat sft_full"}
    rows = table(found, withheld="the control failed")
    assert {r["verdict"] for r in rows if r["verdict"]} == {"withheld: the control failed"}
    assert all(r["p_holm"] < 0.05 for r in rows if r["verdict"])  # what was measured stays
    without = {"": {m: x for m, x in found["a"].items() if m != "sft_full"}}
    assert manipulation(without) == [] and not_learned([], "grpo") == {}


# --- learning curves --------------------------------------------------------------------------------------------------


def test_tokens_to_reach_a_level() -> None:
    assert crossing([0, 100, 200], [0.2, 0.4, 0.8], 0.6) == 150
    assert crossing([0, 100], [0.5, 0.6], 0.4) == 0 and crossing([0, 100], [0.1, 0.2], 0.3) == math.inf
    uneven = torch.linspace(0, 0.4, 20).double()  # queries differ much, methods by a constant: pairing sees through it
    slow, fast = ([(t, uneven + t / k) for t in (100, 200)] for k in (1000, 500))
    never = [(t, uneven + t / 2000) for t in (100, 200)]
    found = {"": {"sft": [result(uneven)], "grpo": [result(uneven, slow)] * 2, "fgrpo": [result(uneven, fast)] * 2,
                  "item": [result(uneven, never)] * 2}}  # fmt: skip
    points, reached = efficiency(found)
    assert [(r["method"], r["tokens"], r["low"], r["high"]) for r in reached] == [
        ("grpo", *[pytest.approx(200)] * 3), ("fgrpo", *[pytest.approx(100)] * 3), ("item", math.inf, math.inf, math.inf),
    ]  # fmt: skip
    saved = [(r["saved"], r["saved_low"], r["saved_high"]) for r in reached]  # item needs twice the tokens for the same
    assert saved == [(pytest.approx(factor),) * 3 for factor in (1, 2, 0.5)]
    assert [p["tokens"] for p in points if p["method"] == "fgrpo"] == [0, 100, 200]
    assert [r["target"] for r in reached] == [pytest.approx(0.4)] * 3 and plots.efficiency(points, reached)


def test_the_interval_of_a_crossing_covers_it() -> None:
    """Straight curves from 0 to 0.1, one twice as fast, so that it crosses at half the tokens; noise of seeds and rest."""

    def learned(rate: float, seed: int) -> list[Result]:
        by_run = 0.1 * rate * (1 + 0.1 * noise(4, 1, seed=seed))
        points = [by_run * t / 400 + 0.05 * noise(4, 40, seed=seed + t) for t in (100, 200, 300, 400)]
        curves = [[(100 * (k + 1), p[s]) for k, p in enumerate(points)] for s in range(4)]
        return [result(curve[-1][1], curve) for curve in curves]

    covered = 0
    for seed in range(0, 600_000, 10_000):
        rows = {"sft": [result(torch.zeros(40))], "grpo": learned(1, seed), "fgrpo": learned(2, seed + 5_000)}
        _, (_, other) = efficiency({"": rows})
        assert other["saved_low"] == pytest.approx(400 / other["high"]) and other["saved_high"] >= other["saved"]
        covered += other["low"] <= 200 <= other["high"]
    assert 54 <= covered <= 60


def test_area_under_a_curve_by_hand() -> None:
    begin, ends = torch.tensor([0.0, 0.2]), [torch.tensor([0.4, 0.2]), torch.tensor([0.8, 0.6])]
    curve = [(100, ends[0]), (300, ends[1])]
    assert area(begin, curve, 300).tolist() == pytest.approx([(20 + 120) / 300, (20 + 80) / 300])
    assert area(begin, curve, 200).tolist() == pytest.approx([(20 + 50) / 200, (20 + 30) / 200])
    assert area(begin, curve, 50).tolist() == pytest.approx([0.1, 0.2])


def test_the_area_is_a_metric_over_the_tokens_that_all_runs_drew() -> None:
    def curved(rate: float, length: int) -> list[Result]:
        return [result(QUALITY + rate, [(n * length, QUALITY + rate * n / 2) for n in (1, 2)]) for _ in range(3)]

    found = {
        "": {
            "sft_full": [result(QUALITY)],
            "sft": [result(QUALITY)],
            "grpo": curved(0.2, 100),
            "item": curved(0.4, 200),
        }
    }
    rows = primary(table(found, primary=AREA), AREA)
    level = float(QUALITY.mean())
    assert {m: r["mean"] - level for m, r in rows.items()} == pytest.approx({"sft": 0, "grpo": 0.1, "item": 0.1})
    assert rows["item"]["verdict"] == "no difference larger than 0.01"
    with pytest.raises(KitError, match=f"metric '{AREA}' was not measured"):
        table(results(item=0.0), primary=AREA)
