"""Tables of data/results and those of report.table, printed by the notebooks."""

import pytest

from fgrpo.study.report import table
from notebooks.recorded import bracket, by_length, differences, learned
from tests.study.test_report import primary, results

RECORDED = {
    "setting": "", "method": "item", "metric": "ndcg@5", "mean": 0.5, "diff": 0.01, "diff_low": 0.0, "diff_high": 0.02,
    "simultaneous_low": -0.01, "simultaneous_high": 0.03, "p_holm": 0.2, "detectable": 0.04, "baseline": "grpo",
    "verdict": "undecided",
}  # fmt: skip


def test_the_bracket_of_a_difference_is_the_simultaneous_one_where_its_table_has_one() -> None:
    assert bracket(RECORDED) == (-0.01, 0.03)
    for empty in ("", None):  # as a CSV and as a table have it
        found = {**RECORDED, **dict.fromkeys(("simultaneous_low", "simultaneous_high"), empty)}
        assert bracket(found) == (0.0, 0.02)
    assert bracket({}) == (float("-inf"), float("inf"))


def test_differences_of_any_row_make_a_line() -> None:
    rows = list(primary(table(results(5, item=0.03))).values())
    sft_full, sft, grpo, item = differences(rows).splitlines()[2:]
    assert item.endswith("| higher |") and "[" in sft_full and sft.endswith("|  |  |") and "[" not in grpo
    assert "+0.010 [-0.010, +0.030] | 0.200 | 0.040 | undecided |" in differences([RECORDED])


def test_the_share_of_a_gain_that_length_alone_gives() -> None:
    means = {"sft": 0.5, "sft_full": 0.6, "grpo": 0.7, "item": 0.4}
    rows = [
        {"method": m, "metric": "ndcg@5", "mean": x, "seeds": 3 * (m in ("grpo", "item"))} for m, x in means.items()
    ]
    grpo, item = by_length(rows).splitlines()[-2:]
    assert grpo == "| grpo | 0.700 | +0.200 | 50% |" and item.endswith("-0.100 | no gain |")


@pytest.mark.parametrize(
    ("beats", "high", "seeds", "word"),
    [("True", 0.03, 3, "yes"), ("False", 0.03, 3, "not shown"), ("False", -0.01, 3, "worse"),
     ("False", 0.03, 2, "no verdict (2 seeds)")],
)  # fmt: skip
def test_the_manipulation_check_in_a_table(beats: str, high: float, seeds: int, word: str) -> None:
    row = {"setting": "lam=1", "method": "grpo", "diff": 0.01, "diff_low": -0.02, "diff_high": high, "beats": beats}
    row["seeds"] = seeds
    table = learned([{**row, "reference": name} for name in ("sft_full", "sft_more")])
    assert table.splitlines()[0] == "| setting | method | beats sft_full? | beats sft_more? |"
    assert table.count(f"{word}: +0.010 [-0.020, {high:+.3f}]") == 2 and len(table.splitlines()) == 3
