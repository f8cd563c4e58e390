"""Trackers: what is sent, under which names, to the end of a run that is stopped, resumed, or whose tracker fails."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fgrpo.cli.main import main
from fgrpo.runs.run import read_config, read_metrics
from fgrpo.runs.signals import Stop
from fgrpo.runs.trace import credit_of, read_trace
from fgrpo.runs.track import COLUMNS, as_markdown, trl_names
from fgrpo.trainer import rl_stage

ROOT = Path(__file__).parents[2]
START = str(ROOT / "data/checkpoints/lab-rec")
RL = ("--queries", "4", "--group", "4", "--device", "cpu", "--init", START, "--json")
FAKE = """
import json, os

class Table:
    def __init__(self, columns, data):
        self.rows = [dict(zip(columns, row, strict=True)) for row in data]

class Run:
    def __init__(self, options):
        self.options = options

    def log(self, values, step=None):
        if os.environ.get("TRACK_FAILS") == str(step):
            raise ConnectionError("no way to\\nthe server")
        rows = {k: v.rows if isinstance(v, Table) else v for k, v in values.items()}
        write({"name": self.options["name"], "step": step, **rows})

def finish():
    write({"name": current.options["name"], "finished": True})

def write(row):
    with open(os.environ["TRACK_LOG"], "a") as file:
        file.write(json.dumps(row) + "\\n")

def init(**options):
    print("* a line that no JSON reader expects")
    if os.environ.get("TRACK_FAILS") == "init":
        raise RuntimeError("no disk")
    write(options)
    global current
    current = Run(options)
    return current
"""


@pytest.fixture
def sent(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package trackio that writes down what it gets; returns what it got."""
    (tmp_path / "packages/trackio").mkdir(parents=True)
    (tmp_path / "packages/trackio/__init__.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    monkeypatch.setenv("TRACK_LOG", str(tmp_path / "sent.jsonl"))
    yield lambda: [json.loads(line) for line in (tmp_path / "sent.jsonl").read_text().splitlines()]
    sys.modules.pop("trackio", None)


def train(folder: Path, *more: str, steps: int = 4) -> int:
    return main(["train", "--out", str(folder), "--steps", str(steps), "--save-every", "2", *RL, *more])


def test_names_are_those_of_trl(sent, tmp_path, capsys) -> None:
    assert train(tmp_path / "run", "--track", "trackio", "--beta", "0.01", "--lam", "0.5") == 0
    out, _ = capsys.readouterr()
    assert json.loads(out) and out.count("\n") == 1  # what the tracker prints is elsewhere
    config, rows = read_config(tmp_path / "run"), read_metrics(tmp_path / "run")
    options, *messages = sent()
    assert options["project"] == "fgrpo" and options["name"].startswith("run-") and options["resume"] == "allow"
    assert options["config"]["rl.lam"] == 0.5 and messages[-1] == {"name": options["name"], "finished": True}
    numbers = {m["step"]: m for m in messages if "train/loss" in m}
    assert [*numbers] == [1, 2, 3, 4]
    for row in rows:
        m, n = numbers[row["step"]], config.rl.queries * config.rl.group
        assert m["train/reward"] == pytest.approx(
            row["reward/slate"] + 0.5 * row["reward/rank"] + row["reward/format"], 1e-4
        )
        assert m["train/rewards/rank/mean"] == pytest.approx(row["reward/rank"], 1e-4)
        assert m["train/kl"] == pytest.approx(row["kl_reference"], 1e-4)
        assert m["train/entropy"] == pytest.approx((row["entropy/slate"] + row["entropy/rank"]) / 2, 1e-4)
        assert m["train/clip_ratio/region_mean"] == pytest.approx(
            (row["clipfrac/slate"] + row["clipfrac/rank"]) / 2, 1e-4
        )
        assert m["train/completions/mean_length"] == pytest.approx(row["tokens"] / n)
        assert m["train/learning_rate"] == pytest.approx(rl_stage(config).lr(int(row["step"]) - 1))
        assert m["train/loss"] == pytest.approx(row["loss"], 1e-4) and m["train/step_time"] == row["seconds"]
        assert m["train/zero_variance/rank"] == pytest.approx(row["zero_variance/rank"], 1e-4)  # no name in TRL


def test_the_names_are_in_trl() -> None:
    """Those that the docstring says are TRL's are what its GRPOTrainer writes."""
    trl = pytest.importorskip("trl")
    text = (Path(trl.__file__).parent / "trainer/grpo_trainer.py").read_text(encoding="utf-8")
    row = dict.fromkeys(
        ("reward/slate", "reward/rank", "reward/format", "kl_reference", "entropy/slate", "entropy/rank", "clipfrac/slate",
         "clipfrac/rank", "tokens", "seconds", "loss", "grad_norm", "approx_kl", "step"), 1.0)  # fmt: skip
    names = {*trl_names(row, read_config(START), 0.1)} - {*row}
    assert {x for x in names if f'"{x}"' not in text} == {
        "learning_rate",  # of the Trainer below it
        *(f"rewards/{name}/mean" for name in ("slate", "rank", "format")),  # rewards/{reward_func_name}/mean
    }
    assert 'f"rewards/{reward_func_name}/mean"' in text


def test_rollouts_are_sent_with_rewards_and_advantages(sent, tmp_path) -> None:
    assert train(tmp_path / "run", "--track", "trackio", "--credit", "fgrpo") == 0
    tables = {m["step"]: m["completions"] for m in sent() if "completions" in m}
    trace = read_trace(tmp_path / "run/trace.jsonl")
    assert [*tables] == [2, 4]
    for step, rows in tables.items():
        groups = [g for g in trace.groups if g.step == step]
        assert len(rows) == sum(len(g.rollouts) for g in groups) == 16
        by_group = iter(rows)
        for group in groups:
            rewards, advantages = credit_of(group, trace.config)
            for i, rollout in enumerate(group.rollouts):
                row = next(by_group)
                assert [*row] == [*COLUMNS] and row["step"] == step and row["prompt"] == group.example.query
                assert row["slate"].split("; ") == [group.example.candidates[j] for j in rollout.output.slate]
                assert row["reward_slate"] == pytest.approx(float(rewards.slate[0, i]), abs=1e-5)
                assert row["reward_rank"] == pytest.approx(float(rewards.rank[0, i]), abs=1e-5)
                # under fgrpo every token of a phase has the same advantage
                first = rollout.phases.index(2)
                assert row["advantage_slate"] == pytest.approx(float(advantages[i, 0]), abs=1e-5)
                assert row["advantage_rank"] == pytest.approx(float(advantages[i, first]), abs=1e-5)


def test_a_resumed_run_goes_on(sent, tmp_path, monkeypatch) -> None:
    """Stopped after step 3; its folder moves; what was made untracked is sent first; nothing is sent twice."""
    monkeypatch.setattr(
        Stop, "asked", property(lambda self: len(steps()) >= 3, lambda self, value: None), raising=False
    )

    def steps() -> list[int]:
        folder = tmp_path / "run/metrics.jsonl"
        return [json.loads(line)["step"] for line in folder.read_text().splitlines()] if folder.exists() else []

    constant = ("--lr-decay", "none")
    assert train(tmp_path / "run", *constant) == 0 and steps() == [1, 2, 3]
    monkeypatch.undo()
    again = pytest.MonkeyPatch()
    again.syspath_prepend(tmp_path / "packages")
    again.setenv("TRACK_LOG", str(tmp_path / "sent.jsonl"))
    try:
        assert train(tmp_path / "run", "--resume", "--track", "trackio", *constant) == 0
        (tmp_path / "run").rename(tmp_path / "moved")
        assert train(tmp_path / "moved", "--resume", "--track", "trackio", *constant, steps=6) == 0
    finally:
        again.undo()
    messages = sent()
    assert [m["step"] for m in messages if "train/loss" in m] == [1, 2, 3, 4, 5, 6]
    assert len({m["name"] for m in messages}) == 1 and sum("finished" in m for m in messages) == 2


@pytest.mark.parametrize(("when", "before"), [("init", []), ("2", [1])])
def test_a_tracker_that_fails_stops_nothing(sent, tmp_path, monkeypatch, capsys, when, before) -> None:
    monkeypatch.setenv("TRACK_FAILS", when)
    (tmp_path / "sent.jsonl").touch()
    assert train(tmp_path / "run", "--track", "trackio") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) and err.count("the tracker trackio failed") == 1 and "Traceback" not in err
    reason = "RuntimeError: no disk" if when == "init" else "ConnectionError: no way to the server"
    assert f"fgrpo: the tracker trackio failed ({reason}); the run goes on without it." in err
    assert [m["step"] for m in sent() if "train/loss" in m] == before and len(read_metrics(tmp_path / "run")) == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wandb", "--track wandb: choose one of trackio, tensorboard."),
        ("trackio", "--track trackio: the package trackio is not installed; pip install it, or leave it out."),
        ("tensorboard", "--track tensorboard: the package tensorboard is not installed"),
    ],
)
def test_a_tracker_that_is_missing_is_one_line(tmp_path, capsys, monkeypatch, name, words) -> None:
    monkeypatch.setattr("fgrpo.runs.track.find_spec", lambda package: None)
    assert train(tmp_path / "run", "--track", name) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and words in err and not (tmp_path / "run").exists()


def test_a_markdown_table_holds_any_text() -> None:
    row = dict.fromkeys(COLUMNS) | {"step": 1, "prompt": "a | b\nc"}
    assert as_markdown([row]).splitlines()[2].startswith("| 1 | a \\| b c |  |")


def test_tensorboard(tmp_path) -> None:
    """The real one: what its own reader finds, in a run and in its continuation."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    constant = ("--lr-decay", "none", "--track", "tensorboard")
    assert train(tmp_path / "run", *constant, steps=2) == 0
    assert train(tmp_path / "run", "--resume", *constant) == 0
    found = reader.EventAccumulator(str(tmp_path / "run/tensorboard"))
    found.Reload()
    assert {"train/reward", "train/entropy", "train/learning_rate", "train/clip_ratio/region_mean"} <= {
        *found.Tags()["scalars"]
    }
    rows = read_metrics(tmp_path / "run")
    points = found.Scalars("train/rewards/slate/mean")
    assert [p.step for p in points] == [1, 2, 3, 4]
    assert [p.value for p in points] == pytest.approx([row["reward/slate"] for row in rows], rel=1e-4)
    (text,) = found.Tensors("completions/text_summary")[:1]
    assert b"| step | prompt |" in text.tensor_proto.string_val[0]


def test_trackio(tmp_path, monkeypatch) -> None:
    """The real one, in a folder of its own: what its own store holds, in a run and in its continuation."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    for steps in ("2", "4"):
        call = (
            "train",
            "--out",
            str(tmp_path / "run"),
            "--steps",
            steps,
            "--save-every",
            "2",
            "--lr-decay",
            "none",
            *RL,
        )
        done = subprocess.run(
            [sys.executable, "-m", "fgrpo", *call, "--track", "trackio", "--resume"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and json.loads(done.stdout) and "Traceback" not in done.stderr, done
    name = json.loads((tmp_path / "run/track.json").read_text())["trackio"]
    store = trackio.SQLiteStorage
    assert store.get_runs("fgrpo") == [name]
    logs = [row for row in store.get_logs("fgrpo", name) if "train/reward" in row]
    assert [row["step"] for row in logs] == [1, 2, 3, 4]
    assert [row["train/loss"] for row in logs] == pytest.approx(
        [row["loss"] for row in read_metrics(tmp_path / "run")], 1e-4
    )
    tables = [row["completions"] for row in store.get_logs("fgrpo", name) if "completions" in row]
    assert [len(t["_value"]) for t in tables] == [16, 16]
