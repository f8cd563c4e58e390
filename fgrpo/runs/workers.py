"""Worker processes that never outlive the process that started them."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection

from tqdm import tqdm

from ..config import KitError
from .own import packed, unpack


@contextmanager
def workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of `count` processes for the block. An exception in the block ends them at once, as does our own death.

    Raises KitError if a worker dies of something else, such as the system's out-of-memory killer.
    """
    tqdm.set_lock(threading.RLock())  # its own lock is a semaphore, which an exit at once would leave behind
    context = get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(theirs, packed()))
    try:
        yield pool
        pool.shutdown()
    except BaseException as error:
        ours.close()  # the workers see it and exit, in the middle of whatever they do
        pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise KitError("a worker process was killed, perhaps for want of memory: lower --jobs.") from None
        raise
    finally:
        ours.close()
        theirs.close()


def _begin(parent: Connection, functions: bytes) -> None:
    """Exit as soon as the other end of the pipe is closed: by its owner, or by the system when its owner is gone.

    `functions` are the user's own (fgrpo.runs.own).
    """

    def watch() -> None:
        with suppress(OSError):
            parent.poll(None)
        os._exit(1)

    tqdm.set_lock(threading.RLock())
    threading.Thread(target=watch, daemon=True).start()
    unpack(functions)


@contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Processes started in this block do not get a terminal's Ctrl-C, which goes to all: their owner ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a new process inherits it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
