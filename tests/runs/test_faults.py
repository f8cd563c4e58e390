"""What goes wrong around a run: signals, a full disk, a read-only folder, a clock that jumps. test_kills.py: kill -9.

Every run is a process of its own, and the whole command line runs in it; a server that has imported everything forks it.
"""

import hashlib
import os
import pty
import resource
import shlex
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from fgrpo import trainer
from fgrpo.cli import compare as cli
from fgrpo.cli.main import main
from fgrpo.config import Config
from fgrpo.runs import run as checkpoint
from fgrpo.runs import warm_start
from fgrpo.runs.policies import load_policy
from fgrpo.runs.run import Run, read_metrics
from fgrpo.runs.seal import SUMS
from fgrpo.runs.trace import read_trace
from fgrpo.tasks import load_task
from fgrpo.tasks.jsonl import write_jsonl
from fgrpo.trainer import step

STEPS = 12
FORK = get_context("forkserver")
FORK.set_forkserver_preload(["tests.runs.test_faults", "fgrpo.study.compare", "accelerate"])
Trouble = Callable[[], None]


def tiny(folder: Path) -> list[str]:
    """A run of a second: the task is a file of 14 queries."""
    task = folder / "few.jsonl"
    if not task.exists():
        write_jsonl(task, load_task(Config())[0].train[:14])
    return ["--task", str(task), "--queries", "4", "--group", "4", "--hidden-size", "16", "--layers", "1", "--heads", "2",
            "--init", "base", "--steps", str(STEPS), "--save-every", "1", "--json"]  # fmt: skip


def child(argv: list[str], said: Path, environ: dict[str, str], trouble: Trouble | None) -> None:
    """One process: the command line with its output in a file."""
    import torch

    os.setsid()  # what a launcher or a terminal sends to others does not reach it
    os.environ.update(environ)
    torch.set_num_threads(1)
    with said.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        if trouble:
            trouble()
        status = main(argv)
    os._exit(status)  # no thread of gloo is waited for


def start(argv: list[str], said: Path, size: int = 1, trouble: Trouble | None = None) -> list[Any]:
    """The `size` processes of one command."""
    shared: dict[str, str] = {}
    if size > 1:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = str(found.getsockname()[1])
        shared = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
                  "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}  # fmt: skip
    started = []
    for n in range(size):
        environ = {**shared, "RANK": str(n), "LOCAL_RANK": str(n)} if size > 1 else {}
        process = FORK.Process(target=child, args=(argv, said.with_name(f"{said.name}.{n}"), environ, trouble))
        process.start()
        started.append(process)
    return started


def finish(started: list[Any], status: int = 0, said: Path | None = None) -> str:
    """Wait for all; what the first one said."""
    for process in started:
        process.join(120)
    text = said.with_name(f"{said.name}.0").read_text(encoding="utf-8") if said else ""
    assert [process.exitcode for process in started] == [status] * len(started), text
    return text


def train(out: Path, *more: str, size: int = 1, status: int = 0, trouble: Trouble | None = None) -> str:
    """A run from its beginning or its latest checkpoint to its end."""
    said = out.with_name(out.name + ".said")
    for old in out.parent.glob(f"{said.name}.*"):
        old.unlink()
    return finish(start(["train", "--out", str(out), *tiny(out.parent), *more], said, size, trouble), status, said)


def result(run: Path) -> tuple[Any, ...]:
    """All that a run leaves behind but times: metrics, traces, weights, optimizer of the last checkpoint."""
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(run)]
    last = max(run.glob("checkpoints/step-*"))
    told = (SUMS, "tokenizer_config.json")  # transformers notes there that a tokenizer was read from a folder
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(last.iterdir()) if p.name not in told}
    return rows, run.joinpath("trace.jsonl").read_bytes().splitlines()[1:], last.name, files


def check_whole(run: Path) -> None:
    """Every checkpoint that bears its name is whole."""
    for folder in run.glob("checkpoints/step-*"):
        load_policy(folder)  # reads the sums too
        load_file(folder / "trainer.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, ...]]:
    """What a run that nothing happens to leaves behind."""
    done: dict[Any, tuple[Any, ...]] = {}

    def make(*more: str, size: int = 1) -> tuple[Any, ...]:
        if (more, size) not in done:
            run = tmp_path_factory.mktemp("whole") / "run"
            train(run, *more, size=size)
            done[more, size] = result(run)
        return done[more, size]

    return make


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def stopped(argv: list[str], said: Path, log: Path, number: int, size: int = 1, whom: int = 0) -> str:
    """What a run says that gets a signal while it trains, as soon as `log` has two lines."""
    started = start(argv, said, size)
    while lines_of(log) < 2 and all(p.is_alive() for p in started):
        time.sleep(0.001)
    os.kill(started[whom].pid, number)
    return finish(started, 0, said)


@pytest.mark.parametrize(
    ("number", "size", "whom"),
    [(signal.SIGINT, 1, 0), (signal.SIGTERM, 1, 0), (signal.SIGHUP, 1, 0), (signal.SIGTERM, 2, 1)],
)
def test_a_signal_ends_the_step_and_the_command_it_names_goes_on(whole, tmp_path, number, size, whom) -> None:
    """No checkpoint is due before the end: the signal makes the only one. Of two processes, one alone hears it."""
    more, run = ("--steps", "120", "--save-every", "200"), tmp_path / "run"
    argv = ["train", "--out", str(run), *tiny(tmp_path), *more]
    said = stopped(argv, tmp_path / "said", run / "metrics.jsonl", number, size, whom)
    done = lines_of(run / "metrics.jsonl")
    assert 2 <= done < 120 and f"fgrpo: {run}: stopped after step {done} of 120; to go on: " in said
    assert said.count("\n") == 1 and max(run.glob("checkpoints/*")).name == f"step-{done:06d}"
    command = said.strip().split("to go on: ")[1]
    prefix = "python -m fgrpo " if size == 1 else "under the same launcher, -m fgrpo "
    assert command.startswith(prefix)
    again = shlex.split(command.removeprefix(prefix))
    assert again == [*argv, "--resume"]
    finish(start(again, tmp_path / "again", size), 0, tmp_path / "again")
    assert result(run) == whole(*more, size=size)


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of POSIX")
@pytest.mark.parametrize("again", [False, True])
def test_a_closed_terminal_saves_the_run(tmp_path: Path, again: bool) -> None:
    """The terminal takes stdout and stderr with it; a shell may send SIGHUP a second time, at any later moment."""
    log = tmp_path / "run/metrics.jsonl"
    argv = ["train", "--out", str(tmp_path / "run"), *tiny(tmp_path), "--steps", "2000", "--save-every", "2000"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "fgrpo", *argv])
    while lines_of(log) < 2 and not os.waitpid(pid, os.WNOHANG)[0]:
        time.sleep(0.01)
    os.close(terminal)
    while again and not (done := os.waitpid(pid, os.WNOHANG))[0]:
        os.kill(pid, signal.SIGHUP)
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode((done if again else os.waitpid(pid, 0))[1]) == 0
    assert max((tmp_path / "run").glob("checkpoints/*")).name == f"step-{lines_of(log):06d}" != "step-002000"


def test_a_signal_in_the_warm_start_is_heard_too(tmp_path: Path) -> None:
    found = []
    for name in ("whole", "cut"):
        argv = [x for x in tiny(tmp_path) if x not in ("--init", "base")]
        argv = ["train", "--out", str(tmp_path / name), *argv, "--sft-steps", "60", "--sft-batch", "4"]
        if name == "cut":
            said = stopped(argv, tmp_path / "told", tmp_path / name / "warm-start/metrics.jsonl", signal.SIGTERM)
            assert "warm-start: stopped after step" in said and not (tmp_path / name / "metrics.jsonl").exists()
            argv = shlex.split(said.strip().split("python -m fgrpo ")[1])
        finish(start(argv, tmp_path / "said"), 0, tmp_path / "said")
        found.append((result(tmp_path / name), read_metrics(tmp_path / name / "warm-start")[-1]["loss"]))
    assert found[0] == found[1]


def endless() -> None:
    """The third step takes an hour."""

    def slow(*args: Any, **options: Any) -> Any:
        slow.calls += 1  # type: ignore[attr-defined]
        time.sleep(3600 if slow.calls == 3 else 0)  # type: ignore[attr-defined]
        return step(*args, **options)

    slow.calls = 0  # type: ignore[attr-defined]
    trainer.step = slow


def test_a_second_ctrl_c_stops_at_once(whole: Callable, tmp_path: Path) -> None:
    run, said = tmp_path / "run", tmp_path / "said"
    (process,) = start(["train", "--out", str(run), *tiny(tmp_path)], said, trouble=endless)
    while not (run / "checkpoints/step-000002").exists() and process.is_alive():
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    process.join(1)
    assert process.is_alive()  # it finishes its step
    os.kill(process.pid, signal.SIGINT)
    assert "fgrpo: stopped; to go on: python -m fgrpo train --out" in finish([process], 130, said)
    train(run, "--resume")
    assert result(run) == whole()


PLACES: dict[str, tuple[Any, str, str]] = {
    "metrics": (Run, "log", "metrics.jsonl: cannot be written"),
    "weights": (checkpoint, "write_policy", "step-000004: the checkpoint cannot be written"),
    "tokenizer": (PreTrainedTokenizerFast, "save_pretrained", "step-000004: the checkpoint cannot be written"),
    "trainer": (checkpoint, "write_text", "step-000004: the checkpoint cannot be written"),
    "sums": (checkpoint, "seal", "step-000004: the checkpoint cannot be written"),
    "trace": (warm_start, "write_trace", "trace.jsonl: cannot be written"),
    "lock": (checkpoint, "lock", "run: cannot be written"),
}


def when(place: str, call: int, happens: Callable[[], None], after: Callable[[], None]) -> None:
    """Something happens during one call of a function and is over `after` it."""
    owner, name, _ = PLACES[place]
    real, calls = getattr(owner, name), []

    def troubled(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) != call:
            return real(*args, **options)
        happens()
        try:
            return real(*args, **options)
        finally:
            after()

    setattr(owner, name, troubled)


def full_disk(place: str, log: Path) -> None:
    """No file may grow, the metrics by half a line: the kernel refuses the write in the middle of a file."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 100 if place == "metrics" else 10, most))

    call = {"trainer": 7, "trace": 4}.get(place, 5)  # write_text: config.json and metrics.jsonl come first
    when(place, call, full, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)))


@pytest.mark.parametrize("place", [place for place in PLACES if place != "lock"])
def test_a_full_disk_costs_nothing_but_time(whole: Callable, tmp_path: Path, place: str) -> None:
    run = tmp_path / "run"
    said = train(run, status=2, trouble=partial(full_disk, place, run / "metrics.jsonl"))
    assert PLACES[place][2] in said and said.count("\n") == 1
    check_whole(run)
    assert read_metrics(run)[-1]["step"] == 4
    assert place != "metrics" or not (run / "metrics.jsonl").read_bytes().endswith(b"\n")
    train(run, "--resume")
    assert result(run) == whole()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def read_only(place: str, folder: Path) -> None:
    """From some moment on, nothing may be written in a folder; root, who always may, becomes another user."""

    def lock() -> None:
        folder.chmod(0o555)
        if os.geteuid() == 0:
            os.seteuid(65534)

    when(place, 5 if place == "weights" else 1, lock, lambda: None)


def test_a_folder_that_becomes_read_only(whole: Callable, open_folder: Path) -> None:
    run = open_folder / "run"
    said = train(run, status=2, trouble=partial(read_only, "weights", run / "checkpoints"))
    assert "step-000004: the checkpoint cannot be written (Permission denied); the last good one is" in said
    assert said.count("\n") == 1
    (run / "checkpoints").chmod(0o755)
    train(run, "--resume")
    assert result(run) == whole()


def test_a_folder_that_is_read_only_from_the_start(open_folder: Path) -> None:
    parent = open_folder / "parent"
    parent.mkdir()
    tiny(parent)
    said = train(parent / "run", status=2, trouble=partial(read_only, "lock", parent))
    assert "cannot be written (Permission denied)" in said and said.count("\n") == 1 and not (parent / "run").exists()


def clock_runs_back() -> None:
    """Every look at the clock says an hour earlier than the one before."""
    now, real = [time.time()], time.localtime

    def earlier() -> float:
        now[0] -= 3600
        return now[0]

    time.time = earlier
    time.localtime = lambda seconds=None: real(earlier() if seconds is None else seconds)


def test_a_clock_that_jumps_back_changes_nothing(whole: Callable, tmp_path: Path, monkeypatch) -> None:
    train(tmp_path / "run", trouble=clock_runs_back)
    assert result(tmp_path / "run") == whole()
    assert all(0 < row["seconds"] < 60 for row in read_metrics(tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20261125-101010")  # the same second comes again
    names = []
    for _ in range(3):
        names.append(cli.new_folder("compare"))
        names[-1].mkdir(parents=True)
    assert [n.name for n in names] == [f"compare-20261125-101010{x}" for x in ("", "-2", "-3")]


def test_a_run_can_be_moved_and_evaluated_and_resumed(whole: Callable, tmp_path: Path, capsys) -> None:
    here, there = tmp_path / "here", tmp_path / "elsewhere/deep"
    here.mkdir()
    constant = ("--lr-decay", "none")  # so that a run may be made longer
    train(here / "run", "--steps", "7", *constant)
    for path in (here / "run").glob("checkpoints/*/*"):
        assert str(tmp_path).encode() not in path.read_bytes(), path
    there.parent.mkdir()
    here.rename(there)
    assert main(["evaluate", "--checkpoint", str(there / "run"), *tiny(there)[:2], "--json"]) == 0
    assert '"queries"' in capsys.readouterr().out
    assert read_trace(there / "run/trace.jsonl").groups
    train(there / "run", "--resume", *constant)
    assert result(there / "run") == whole(*constant)
