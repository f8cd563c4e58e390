"""The benchmark of the lab: rows of both stages, a floor that counts the products of a step. No test depends on a time."""

import csv
import io
import json

import pytest

from fgrpo.cli.main import main
from fgrpo.config import Config
from fgrpo.runs.sft import sft_step
from fgrpo.scale.bench_lab import bench_lab
from fgrpo.trainer import step


@pytest.mark.parametrize("full", [[], ["--full"]])
def test_command_writes_csv_and_json(full, capsys, tmp_path) -> None:
    out = tmp_path / "lab.csv"
    assert main(["bench", "--lab", *full, "--queries=2", "--group=4", "--repeats=1", "--json", f"--out={out}"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    made, table = out.read_text().split("\n", 1)
    assert json.loads(made[2:])["hardware"] and len(list(csv.DictReader(io.StringIO(table)))) == len(rows) == 2
    assert [(r["stage"], r["queries"], r["group"], r["full"]) for r in rows] == [
        ("sft", 64, 1, 0),
        ("rl", 2, 4, len(full)),
    ]
    for r in rows:
        assert r["min"] <= r["cpu_seconds"] <= r["max"] and r["tokens_per_second"] > 0 < r["times_floor"]
    if full:  # two queries, four rollouts, ten items of a slate and five of a ranking
        assert rows[1]["tokens"] == 2 * 4 * 15


@pytest.mark.parametrize(
    "options",
    ["--prompt=80", "--completion=20", "--peers=trl", "--scaling", "--layers=2", "--hidden-size=64",
     "--dtype=float32", "--device=cpu", "--threads=1", "--no-memory", "--group=2,4"],
)  # fmt: skip
def test_options_without_effect_are_refused(options, capsys) -> None:
    assert main(["bench", "--lab", options]) == 2
    assert options.split("=")[0] in capsys.readouterr().err


def test_full_belongs_to_the_lab(capsys) -> None:
    assert main(["bench", "--full"]) == 2
    assert "--lab" in capsys.readouterr().err


def test_examples_are_used_in_turn_and_nothing_stays_behind(policy, queries, config: Config, monkeypatch) -> None:
    seen: list[str] = []
    for name, do in (("step", step), ("sft_step", sft_step)):
        monkeypatch.setattr(
            f"fgrpo.scale.bench_lab.{name}", lambda p, o, q, *a, do=do: seen.extend(e.id for e in q) or do(p, o, q, *a)
        )
    rows = bench_lab(policy, queries, config, repeats=2)
    assert [r["runs"] for r in rows] == [2, 2] and set(seen) == {q.id for q in queries}
    assert "completion_logits" not in vars(policy)
