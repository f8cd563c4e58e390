"""What a command says when it fails: one line on stderr, whatever went wrong, and nothing that a terminal cannot show."""

import io
import os
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path

from ..config import KitError
from ..runs.signals import processes

MEMORY = (
    "allocate memory", "not enough memory", "out of memory", "invalid buffer size", "bad_alloc", "alloc_failed",
    "multiplication overflow", "size calculation overflow", "size is inconsistent", "index-sized integer",
    "failed to map segment", "can't start new thread", "array is too big", "unable to allocate",
)  # fmt: skip
"""parts of what torch, the linker and others say when memory is short, or a size is beyond all memory"""
NETWORK = ("gloo", "nccl", "connection", "c10d", "tcpstore")
LOWER = {
    "bench": "--prompt, --group, --queries or --hidden-size",
    "analyse": "--groups, --pools or --jobs",
    "trace": "--sampled",
    "evaluate": "--limit",
    "data": "the size of the data",
}


def explain(error: Exception, command: str = "") -> tuple[int, str]:
    """Exit status and sentence for an error: 2 where the user can do something, 1 for a mistake of the kit's own."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(part in text for part in MEMORY):  # a KitError may quote one
        lower = LOWER.get(command, "--queries, --group or the model's size, or set --micro")
        return 2, f"out of memory{f' ({one_line(error, 150)})' if text else ''}: lower {lower}, or allow more memory."
    if isinstance(error, KitError):
        return 2, one_line(error)
    if isinstance(error, OSError):
        return 2, one_line(f"{error.filename or 'output'}: {error.strerror or error}")
    if processes() > 1 and isinstance(error, RuntimeError) and any(part in text for part in NETWORK):
        return 2, f"the other processes of this run cannot be reached ({one_line(error, 120)})."
    if os.environ.get("FGRPO_DEBUG"):
        raise error
    kind, path = type(error).__name__, "nowhere: no folder for temporary files can be written"
    with suppress(OSError):
        handle, path = tempfile.mkstemp(prefix="fgrpo-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
    return 1, f"an error of the kit ({kind}: {one_line(error, 200)}); please report it with the traceback in {path}."


def one_line(message: object, most: int = 2000) -> str:
    """A message without line breaks, cut to `most` characters."""
    text = " ".join(str(message).split())
    return text if len(text) <= most else f"{text[:most]}..."


def say(sentence: str) -> None:
    """Print one line on stderr, if there still is one: a terminal may be gone."""
    with suppress(OSError, ValueError):
        if sys.stderr:
            print(f"fgrpo: {sentence}", file=sys.stderr, flush=True)


def make_printable() -> None:
    """What stdout and stderr cannot encode is printed as an escape, as in a terminal of another language."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_unwritten() -> None:
    """Drop what stdout holds and cannot write, as its reader is gone or the disk full: Python would complain at exit."""
    try:
        print(end="", flush=True)  # stdout may be missing altogether
    except OSError:
        with suppress(OSError, ValueError), Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
