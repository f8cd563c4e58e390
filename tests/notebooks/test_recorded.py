"""Tables of data/results and those of report.table, printed by the notebooks."""

from fgrpo.study.report import table
from notebooks.recorded import bracket, differences
from tests.study.test_report import primary, results

RECORDED = {
    "setting": "", "method": "item", "metric": "ndcg@5", "mean": 0.5, "diff": 0.01, "diff_low": 0.0, "diff_high": 0.02,
    "holm_low": -0.01, "holm_high": 0.03, "p_holm": 0.2, "baseline": "grpo", "verdict": "no difference shown",
}  # fmt: skip


def test_the_bracket_of_a_difference_is_the_widest_that_its_table_has() -> None:
    assert bracket(RECORDED) == (-0.01, 0.03)
    new = {**RECORDED, "simultaneous_low": -0.02, "simultaneous_high": 0.04}
    assert bracket(new) == (-0.02, 0.04)
    for empty in ("", None):  # as a CSV and as a table have it
        found = {**RECORDED, **dict.fromkeys(("holm_low", "holm_high", "simultaneous_low", "simultaneous_high"), empty)}
        assert bracket(found) == (0.0, 0.02)


def test_differences_of_any_row_make_a_line() -> None:
    rows = list(primary(table(results(5, item=0.03))).values())
    sft_full, sft, grpo, item = differences(rows).splitlines()[2:]
    assert item.endswith("| higher |") and "[" in sft_full and sft.endswith("|  |  |") and "[" not in grpo
    assert "| 0.200 | no difference shown |" in differences([RECORDED])
