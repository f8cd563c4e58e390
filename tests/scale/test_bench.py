"""The benchmark: the same work for every method, its parts, its memory. No test depends on a time."""

import csv
import io
import json
from pathlib import Path

import pytest

from fgrpo.cli.main import main
from fgrpo.scale.bench import Case, bench, ours

SMALL = ["--prompt=80", "--completion=20", "--group=4", "--repeats=2", "--layers=1", "--hidden-size=32"]


def test_prompts_and_completions_have_the_length_of_the_case() -> None:
    case = Case(prompt=90, completion=24, group=4, layers=1, hidden_size=32)
    policy = case.policy()
    for number in (0, 1):
        prompts = policy.encode(case.batch(number))
        assert prompts.ids.shape == (2, 90) and prompts.mask.all()
    assert case.ceiling == pytest.approx(4 * (90 + 24) / (90 + 4 * 24))
    for method in ("shared", "unshared"):
        seconds = ours(case, method)(0)  # raises if a completion is not 24 tokens long
        assert 0 < seconds["credit"] < seconds["step"]
        assert seconds["rollout"] + seconds["credit"] <= seconds["step"] and seconds["loss"] > 0


def test_rows_of_a_case() -> None:
    case = Case(prompt=80, completion=20, group=4, layers=1, hidden_size=32)
    rows = bench(case, repeats=3, memory=False)
    assert [(r["part"], r["method"]) for r in rows] == [
        (part, method) for part in ("loss", "rollout", "step") for method in ("shared", "unshared")
    ]
    assert all(r["min"] <= r["seconds"] <= r["max"] and r["runs"] == 3 for r in rows)
    assert [r["method"] for r in rows if r["of_ceiling"] != ""] == ["shared"]
    assert all(r["floor_seconds"] > 0 < r["times_floor"] for r in rows)
    assert [r["part"] for r in rows if r["tokens_per_second"] != ""] == ["rollout"] * 2


def test_command_writes_csv_figure_and_json(capsys, tmp_path) -> None:
    assert main(["bench", *SMALL, "--out", str(tmp_path / "b.csv"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    made, table = (tmp_path / "b.csv").read_text().split("\n", 1)
    assert json.loads(made[2:])["hardware"] and len(list(csv.DictReader(io.StringIO(table)))) == len(rows) == 6
    assert all(r["peak_mb"] > 0 for r in rows if r["part"] == "step")
    assert (tmp_path / "b.png").stat().st_size > 10_000


def test_committed_results_name_command_hardware_and_date() -> None:
    files = sorted((Path(__file__).parents[2] / "data/results").glob("*.csv"))
    assert files
    for path in files:
        made = json.loads(path.read_text().split("\n", 1)[0][2:])
        assert made["command"].startswith(("python -m fgrpo", "python data/results/make.py", "python tests/study/")), (
            path
        )
        assert made["hardware"] and made["date"], path
