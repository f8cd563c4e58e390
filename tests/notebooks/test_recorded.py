"""Tables of data/results and those of report.table, printed by the notebooks."""

from pathlib import Path

import pytest

from fgrpo.config import KitError
from fgrpo.study.plots import style_of
from fgrpo.study.report import table
from notebooks.recorded import (
    SHOWN,
    TESTED,
    bracket,
    by_length,
    choices,
    credit_experiments,
    differences,
    learned,
    pick,
    promises,
    read_prediction,
    read_table,
    seen,
    source,
    write_prediction,
)
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


def test_the_source_of_a_table_names_command_seeds_and_hardware() -> None:
    made, rows = read_table("control")
    assert source(made) == f"*`python data/results/make.py control`; {made['hardware']}, {made['date']}.*"
    assert ", 3 seeds from 3 warm starts;" in source(made, rows)


def test_a_prediction_is_kept_until_another_one_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "prediction.json"
    assert read_prediction(path) == {}
    assert write_prediction({"one": None}, path).startswith("No prediction yet") and not path.exists()
    assert "1 of 6" in write_prediction({"one": "higher", "pool50": None}, path)
    write_prediction(dict.fromkeys(TESTED), path)  # the notebook as it is handed out does not erase it
    assert read_prediction(path) == {"one": "higher"}


def test_a_prediction_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prediction.json"
    with pytest.raises(KitError, match=r"PREDICTION\['one'\] is 'better': write one of higher, same, lower, or None"):
        write_prediction({"one": "better"}, path)
    with pytest.raises(KitError, match="there is no regime 'two'; choose from one, "):
        write_prediction({"two": "same"}, path)
    path.write_text("[1]")
    with pytest.raises(KitError, match=r"prediction\.json cannot be read .*run notebook 5 again"):
        read_prediction(path)


def test_every_regime_that_was_trained_is_on_the_map_and_in_the_test() -> None:
    (_, cells), (_, tested) = read_table("map"), read_table("confirm")
    assert {r["setting"] for r in tested} == set(TESTED)
    for cell, lam in TESTED.values():
        assert len(pick(cells, cell=cell, lam=lam, method="fgrpo", part="whole")) == 1


def test_the_figure_of_the_map_fills_markers_whose_interval_excludes_1() -> None:
    _, rows = read_table("map")
    (axes,) = promises(rows).axes
    own = [r for r in pick(rows, part="whole", method="fgrpo") if r["efficiency_low"] > 0]
    drawn = [c.lines[0] for c in axes.containers if c.lines[0].get_color() == style_of("fgrpo")["color"]]
    filled = {round(float(x.get_xdata()[0]), 4): x.get_markerfacecolor() != "white" for x in drawn}
    assert filled == {round(r["efficiency"], 4): r["efficiency_low"] > 1 or r["efficiency_high"] < 1 for r in own}
    bold = {label.get_text() for label in axes.get_yticklabels() if label.get_fontweight() == "bold"}
    assert len(bold) == len(TESTED) < len(axes.get_yticklabels())


def test_the_experiments_of_credit_are_those_of_the_tables() -> None:
    rows = credit_experiments()
    ladder = pick(read_table("control-ladder")[1], method="fgrpo minus grpo")
    assert [r["diff"] for r in rows[:3]] == [r["gain"] for r in ladder]
    assert [r["verdict"] for r in rows[:3]] == ["higher" if r["p_holm"] < 0.05 else "undecided" for r in ladder]
    for name, words in (("lab", "own best rate"), ("lab-temperature", "temperature 0.7")):
        (lab,) = pick(read_table(name)[1], method="fgrpo", metric="ndcg@5")
        (own,) = (r for r in rows if words in r["label"])
        assert all(own[key] == lab[key] for key in ("diff", "detectable", "verdict")) and own["low"] == lab["diff_low"]
    assert len(rows) == len(ladder) + len(TESTED) + 2 + 3 + 3


def test_the_figure_of_what_was_seen_fills_what_is_shown() -> None:
    rows = credit_experiments()
    (axes,) = seen(rows).axes
    drawn = [c.lines[0] for c in axes.containers if hasattr(c, "lines")]
    shown = [r["verdict"].partition(":")[0] in SHOWN for r in reversed(rows)]
    assert [x.get_markerfacecolor() != "white" for x in drawn] == shown and 0 < sum(shown) < len(rows)
    assert [label.get_text() for label in axes.get_yticklabels()] == [r["label"] for r in reversed(rows)]


def test_the_shares_of_reading_and_counting_fill_a_bar() -> None:
    (axes,) = choices({"reads": (0.97, 0.0), "counts": (0.0, 0.4)}).axes
    bars = [b for c in axes.containers for b in c if b.get_width()]
    ends = {round(b.get_y() + b.get_height() / 2): b.get_x() + b.get_width() for b in bars}
    assert ends == {0: pytest.approx(1), 1: pytest.approx(1)}
    assert {text.get_text() for text in axes.texts} == {"97%", "60%", "40%"}
