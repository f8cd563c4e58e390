"""Ctrl-C and SIGTERM during training: the current step is finished and saved; a second Ctrl-C stops at once."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType


def processes() -> int:
    """Number of processes that a launcher started, including this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


class Stop:
    """Whether this process was asked to stop. As a context, it handles the signals, in the main thread only."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT and processes() == 1:  # a launcher may forward one Ctrl-C twice
            raise KeyboardInterrupt
        self.asked = True


def how_to_resume(argv: Sequence[str] | None) -> str:
    """The command that resumes a run, from the arguments of the command that was stopped."""
    args = list(sys.argv[1:] if argv is None else argv)
    start = "python -m fgrpo" if processes() == 1 else "under the same launcher, -m fgrpo"
    return f"{start} {shlex.join(args if '--resume' in args else [*args, '--resume'])}"
