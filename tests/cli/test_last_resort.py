"""What is said when memory, disk, terminal or the kit itself fails: one line, no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fgrpo.cli import main as cli
from fgrpo.cli.errors import explain, one_line
from fgrpo.cli.main import main
from fgrpo.config import KitError
from fgrpo.tasks.jsonl import write_jsonl

ROOT = Path(__file__).parents[2]
LAB = str(ROOT / "data/checkpoints/lab-rec")


def command(*argv: str, shell: str = "", **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a process, `shell` being what follows it in a shell or precedes it, up to `;`."""
    before, _, after = shell.rpartition(";")
    line = f"{before or ':'}; {sys.executable} -m fgrpo {' '.join(argv)} {after}"
    shared = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environ}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=shared, errors="replace")


def torch_errors() -> list[Exception]:
    """What torch raises where a size is beyond all memory."""
    found: list[Exception] = []
    for make in (
        lambda: torch.empty(1 << 50),
        lambda: torch.empty(1 << 40, 1 << 40),
        lambda: torch.empty(1 << 62, dtype=torch.float64),
        lambda: [0] * (1 << 80),
        lambda: bytearray(1 << 60),
    ):
        with pytest.raises(Exception) as caught:
            make()
        found.append(caught.value)
    return found


def test_memory_is_named_with_what_to_lower() -> None:
    cuda = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has ...")
    quoted = KitError("runs/a: the checkpoint is damaged (DefaultCPUAllocator: can't allocate memory)")
    library = ImportError("libtorch_cpu.so: failed to map segment from shared object")
    for error in (*torch_errors(), cuda, quoted, library, MemoryError(), RuntimeError("can't start new thread")):
        status, said = explain(error, "train")
        assert status == 2 and said.startswith("out of memory") and "lower --queries, --group" in said, (error, said)
        assert "\n" not in said and len(said) < 300
    assert "--prompt" in explain(MemoryError(), "bench")[1]


def test_an_error_of_the_kit_keeps_its_traceback_in_a_file(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setitem(cli.COMMANDS, "evaluate", lambda args: {}["lost"])
    assert main(["evaluate", "--checkpoint", "x"]) == 1
    said = capsys.readouterr().err
    (kept,) = tmp_path.glob("fgrpo-*.txt")
    assert said.count("\n") == 1 and "KeyError: 'lost'" in said and str(kept) in said
    assert "Traceback" not in said and "Traceback" in kept.read_text()
    monkeypatch.setenv("FGRPO_DEBUG", "1")
    with pytest.raises(KeyError):
        main(["evaluate", "--checkpoint", "x"])


def test_a_message_is_one_line() -> None:
    assert one_line("a\n  b\r\nc") == "a b c" and len(one_line("x" * 9999)) < 2100


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_what_a_terminal_cannot_show_is_escaped(tmp_path, encoding) -> None:
    missing = tmp_path / "\u65e5\u672c.jsonl"
    done = command("data", "check", str(missing), PYTHONIOENCODING=encoding)
    assert (
        done.returncode == 2 and "\\u65e5\\u672c.jsonl: cannot be read" in done.stderr and done.stderr.count("\n") == 1
    )


EVALUATE, CHECK = ("evaluate", "--checkpoint", LAB, "--limit", "2"), ("data", "check", "few.jsonl")


@pytest.mark.parametrize(
    ("argv", "shell", "status", "said"),
    [
        (EVALUATE, "set -o pipefail;| true", 141, ""), (EVALUATE, "ulimit -v 300000;", 2, "fgrpo: out of memory"),
        (CHECK, ";> /dev/full", 2, "fgrpo: output: No space left on device\n"), (CHECK, ";>&-", 0, ""),
    ],
)  # fmt: skip
def test_a_lost_reader_a_full_disk_and_little_memory(argv, shell, status, said, lab, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl("few.jsonl", lab.test[:20])
    done = command(*argv, shell=shell)
    assert done.returncode == status and (done.stderr == said or (said and done.stderr.startswith(said))), done.stderr
    assert done.stderr.count("\n") == bool(said)
