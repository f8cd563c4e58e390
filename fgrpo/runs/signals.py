"""Ctrl-C, SIGTERM and SIGHUP (a closed terminal) during training: the current step is finished and saved.

A second Ctrl-C stops at once.
"""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from ..config import KitError


def processes() -> int:
    """Number of processes that a launcher started, including this one. Raises KitError if its variables are odd."""
    if "RANK" not in os.environ:
        return 1
    rank, size = os.environ["RANK"], os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise KitError(f"RANK {rank!r} and WORLD_SIZE {size!r} are not those of a launcher: unset them.")
    return int(size)


class Stop:
    """Whether this process was asked to stop. As a context, it handles the signals, in the main thread only."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            wanted = (signal.SIGINT, signal.SIGTERM, *_hangup())
            self._before = {s: signal.signal(s, self._handle) for s in wanted}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():  # a terminal that is closed may send SIGHUP twice
            again = self.asked and number in _hangup()
            signal.signal(number, signal.SIG_IGN if again else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT and processes() == 1:  # a launcher may forward one Ctrl-C twice
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def ending() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block like Ctrl-C, with a KeyboardInterrupt that holds their number."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {s: signal.signal(s, interrupt) for s in (signal.SIGTERM, *_hangup())}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) != signal.SIG_IGN:  # a terminal that is closed may still send its second SIGHUP
                signal.signal(number, handler)


def _hangup() -> list[signal.Signals]:
    """SIGHUP where there is one. Under nohup it is ignored, and stays so."""
    hangup = getattr(signal, "SIGHUP", None)
    return [hangup] if hangup and signal.getsignal(hangup) != signal.SIG_IGN else []


def how_to_resume(argv: Sequence[str] | None, out: object = "") -> str:
    """The command that resumes a run, from the arguments of the command that was stopped.

    `out` is the folder of the run, which is added if the arguments do not name it.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    named = any(x == "--out" or x.startswith("--out=") for x in args)
    more = [*(() if named or not out else ("--out", str(out))), *(() if "--resume" in args else ("--resume",))]
    start = "python -m fgrpo" if processes() == 1 else "under the same launcher, -m fgrpo"
    return f"{start} {shlex.join([*args, *more])}"
