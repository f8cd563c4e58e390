"""kill -9 at any moment: whole checkpoints remain, and a resumed run ends bit-identical, alone or in a comparison.

Runs train on a file of 14 queries, on the stream of the lab task, and in the comparison on that as well.

One kill of each kind by default. In full, 50 of `train` and 10 of `compare --jobs 2`:
`FGRPO_KILLS=50 python -m pytest tests/runs/test_kills.py`.
"""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fgrpo.cli.main import main
from tests.runs.test_faults import STEPS, check_whole, finish, lines_of, result, start, tiny

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("FGRPO_KILLS", "4"))
CASES: dict[str, tuple[int, list[str]]] = {
    "rl": (1, []),
    "sft": (1, ["--sft", "--sft-steps", str(STEPS), "--sft-batch", "4"]),
    "rl on a stream": (1, ["--task", "lab-rec"]),
    "sft on a stream": (1, ["--task", "lab-rec", "--sft", "--sft-steps", str(STEPS), "--sft-batch", "4"]),
    "kl": (1, ["--beta", "0.1", "--epochs", "2"]),
    "two processes": (2, []),
}
"""number of processes and options of each case"""
EACH = -(-KILLS // len(CASES))


def options(folder: Path, more: list[str]) -> list[str]:
    """Those of a run of a second; SFT has no RL steps."""
    found = tiny(folder)
    if "--sft" in more:
        at = found.index("--steps")
        del found[at : at + 2]
    return [*found, *more]


def between(run: Path, rng: random.Random, alive: Callable[[], bool]) -> None:
    """Wait for a random moment of a run: any, or one while a checkpoint is written or an old one deleted."""
    kind = rng.choice((".writing-*", ".writing-*", ".leaving-*", ""))
    after = rng.randrange(1, 4)  # checkpoints of this life
    seen = {p.name for p in run.glob("checkpoints/step-*")}
    while alive() and len({p.name for p in run.glob("checkpoints/step-*")} - seen) < after - 1:
        time.sleep(0.0005)
    while kind and alive() and not any(run.glob(f"checkpoints/{kind}")):
        pass
    time.sleep(rng.uniform(0, 0.01 if kind == ".writing-*" else 0.2 if not kind else 0.0005))


def to_the_end(run: Path, argv: list[str], size: int) -> tuple[Any, ...]:
    """Train a run to its end; what it leaves behind."""
    said = run.with_name(f"{run.name}.said")
    finish(start(["train", "--out", str(run), *argv], said, size), 0, said)
    return result(run)


@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_again_and_again_ends_bit_identical(tmp_path: Path, case: str) -> None:
    size, more = CASES[case]
    argv, rng, killed, cut_short, number = options(tmp_path, more), random.Random(case), 0, 0, 0
    wanted = to_the_end(tmp_path / "whole", argv, size)
    assert len(wanted[0]) == STEPS
    while killed < EACH or cut_short < EACH // 5:  # more, until some fell into the writing of a checkpoint
        assert number < 2 * EACH + 3
        run, number = tmp_path / f"cut-{number}", number + 1
        for life in range(min(4, max(1, EACH - killed))):
            resume = ["--resume"] if life else []
            started = start(["train", "--out", str(run), *argv, *resume], tmp_path / "said", size)
            between(run, rng, lambda started=started: all(p.is_alive() for p in started))
            rng.shuffle(started)
            for process in started:
                process.kill()  # SIGKILL
            for process in started:
                process.join()
            killed += all(p.exitcode == -signal.SIGKILL for p in started)
            cut_short += any(run.glob("checkpoints/.writing-*"))
            check_whole(run)
        assert to_the_end(run, [*argv, "--resume"], size) == wanted
        hidden = [p for p in run.rglob(".*") if p.name != ".lock"]
        assert not [p for p in hidden if p.is_file() or p.name.startswith((".writing", ".leaving"))]
    print(f"{case}: {killed} kills, {cut_short} of them while a checkpoint was written or renamed, {number} runs")


def comparing(folder: Path, *more: str) -> list[str]:
    """The arguments of a comparison of two methods."""
    size = ["--hidden-size", "16", "--layers", "1", "--heads", "2", "--sft-steps", "4", "--sft-batch", "4"]
    return ["compare", "--credits", "grpo,fgrpo", "--seeds", "1", "--every", "5", "--limit", "16",
            "--steps", "60", "--queries", "4", "--group", "4", "--baselines", "random", "--out", str(folder), "--json",
            *size, *more]  # fmt: skip


def comparison(folder: Path, *more: str) -> subprocess.Popen[str]:
    """`compare` with both methods at a time, started in a session of its own."""
    argv = comparing(folder, "--jobs", "2", *more)
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "fgrpo", *argv], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=environ, start_new_session=True,
    )  # fmt: skip


def in_session(leader: int) -> list[str]:
    """The processes of a session that are alive, by their names in /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:  # it ended meanwhile
            continue
        if int(session) == leader and state != "Z":
            found.append(path.parent.name)
    return found


def gone_within(leader: int, seconds: float) -> bool:
    """Whether no process of a session is left after so many seconds."""
    until = time.monotonic() + seconds
    while in_session(leader) and time.monotonic() < until:
        time.sleep(0.01)
    return not in_session(leader)


def outcome(folder: Path) -> tuple[Any, ...]:
    """All that a comparison leaves behind but times."""
    rows = csv.DictReader(folder.joinpath("comparison.csv").read_text().splitlines()[1:])
    curves = [folder.joinpath(f"{m}-seed0/curve.json").read_bytes() for m in ("grpo", "fgrpo")]
    table = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    return table, curves, [result(folder / f"{m}-seed0") for m in ("grpo", "fgrpo")]


def until_trained(process: subprocess.Popen[str], folder: Path, steps: int) -> None:
    """Wait until the two runs have logged so many steps together."""
    logs = [folder / f"{m}-seed0/metrics.jsonl" for m in ("grpo", "fgrpo")]
    while process.poll() is None and sum(map(lines_of, logs)) < steps:
        time.sleep(0.005)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are counted in /proc")
def test_a_comparison_killed_again_and_again_ends_bit_identical(tmp_path: Path) -> None:
    """Only the parent is killed: its workers end by themselves, at once, so that --resume finds nobody writing."""
    whole, cut, rng = tmp_path / "whole", tmp_path / "cut", random.Random(0)
    assert main(comparing(whole, "--jobs", "1")) == 0
    for kill in range(max(1, KILLS // 5)):
        process = comparison(cut, *(["--resume"] if kill else []))
        until_trained(process, cut, rng.randrange(4, 100))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert gone_within(process.pid, 5)
        for run in cut.glob("*-seed0"):
            check_whole(run)
    assert main(comparing(cut, "--jobs", "1", "--resume")) == 0
    assert outcome(cut) == outcome(whole)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are counted in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_comparison_and_its_workers(tmp_path: Path, number: signal.Signals) -> None:
    process = comparison(tmp_path / "c", "--steps", "5000", "--no-sft-more")  # which would be trained first
    until_trained(process, tmp_path / "c", 4)
    os.killpg(process.pid, number)  # as a terminal does with Ctrl-C
    try:
        assert gone_within(process.pid, 5)  # a moment, on a busy machine
    finally:
        if in_session(process.pid):  # it would take every core for minutes
            os.killpg(process.pid, signal.SIGKILL)
    said = process.communicate()[1]
    assert process.returncode == 128 + number and said.count("\n") == 1, said
    assert said.startswith("fgrpo: stopped; to go on: python -m fgrpo compare --credits") and "--resume" in said
