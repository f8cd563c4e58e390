"""One process at a time writes to a run's folder."""

import os
from contextlib import suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ..config import KitError

NAME = ".lock"
WAIT = 1.0
"""seconds that a lock is waited for: a process that was just killed may take a moment to end"""


def lock(folder: Path) -> BaseFileLock:
    """The lock of a folder, which is made if it is missing. It is held for as long as the returned object exists.

    The system gives up the lock of a process that ended, however it ended. Within a process a lock may be taken several
    times. Raises KitError if another process holds it, or if the folder cannot be written to.
    """
    path = folder.resolve() / NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = FileLock(path, timeout=WAIT, thread_local=False, is_singleton=True)
        found.acquire()
    except Timeout:
        raise KitError(
            f"{folder}: {_owner(path)} is writing to it; wait for its end, or name another folder."
        ) from None
    except OSError as error:
        raise KitError(f"{folder}: cannot be written ({error.strerror}).") from None
    with suppress(OSError):  # on Windows a locked file cannot be written
        path.write_text(str(os.getpid()), encoding="ascii")
    return found


def _owner(path: Path) -> str:
    with suppress(OSError, ValueError):
        return f"process {int(path.read_bytes()[:20])}"
    return "another process"


def check_writable(path: Path) -> None:
    """Raise KitError if it can be seen beforehand that a file or folder cannot be written. Nothing is written."""
    there = path.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if there != path.absolute() and not there.is_dir():
        raise KitError(f"{path}: cannot be written ({there} is a file).")
    if not os.access(there, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise KitError(f"{path}: cannot be written (permission denied in {there}).")
