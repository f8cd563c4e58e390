"""What the server holds of one visitor: their own traces, and the order of their events."""

import asyncio
import secrets
import shutil
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import anyio
import gradio as gr

from .markup import message

OWN = 5
"""maximum number of traces kept for one visitor"""
WAITING = 8
"""maximum number of events of one visitor that wait or are at work: each holds one of the server's 40 places"""
WORKERS = anyio.CapacityLimiter(4)
"""page events at work at the same time, of all visitors"""
HEAVY = anyio.CapacityLimiter(1)
"""uploads and what reads large traces, beside them: one at a time, so that their memory and work are bounded"""
KNOWN: "WeakValueDictionary[str, Visitor]" = WeakValueDictionary()
"""every visitor by ticket, as long as one of their sessions holds them"""


class Visitor:
    """The traces that a visitor opened or generated (name to file), and a lock that keeps their events in order.

    A page that is loaded again has a new session, but the same `ticket`, a secret in the browser's session storage, and so
    the same visitor. The files are removed with the last session.
    """

    def __init__(self) -> None:
        self.traces: dict[str, str] = {}
        self.ticket = secrets.token_urlsafe()
        self.turn, self.waiting = asyncio.Lock(), 0
        self.going: set[str] = set()  # what began and has not come to its own end: a generation, a race
        KNOWN[self.ticket] = self

    def __deepcopy__(self, memo: object) -> "Visitor":
        return Visitor()  # gradio copies the first value of a state for each session

    def __del__(self) -> None:
        remove_files(list(self.traces.values()))

    def answered(self, _: object) -> None:
        """An event of this visitor is over, whatever its end."""
        self.waiting -= 1

    def add(self, name: str, path: Path) -> None:
        """Keep a trace. Of more than OWN, the oldest are removed with their files."""
        kept = {k: v for k, v in self.traces.items() if k != name} | {name: str(path)}
        removed = [self.traces[name]] if name in self.traces else []
        while len(kept) > OWN:
            removed.append(kept.pop(next(iter(kept))))
        self.traces = kept
        remove_files(removed)


def remove_files(paths: list[str]) -> None:
    """Remove traces that were kept for a visitor, each with its folder."""
    for path in paths:
        shutil.rmtree(Path(path).parent, ignore_errors=True)


def in_turn(work: Callable[..., Any], heavy: Callable[..., bool] = lambda *_: False) -> Callable[..., Any]:
    """An event with a Visitor among its inputs, which waits for the earlier ones of this visitor and for no other's.

    A turn ends when the answer is sent, with the server's task of this event, and not before: gradio prepares an answer
    in many small steps, in which that of the next event could overtake it, and the page would end on the older view.
    Where `heavy` is true of the inputs from the visitor on, it waits for other heavy work, and nobody else waits for it.
    """

    @wraps(work)
    async def event(*values: Any) -> Any:
        place = next(i for i, v in enumerate(values) if isinstance(v, Visitor))
        visitor = values[place]
        if visitor.waiting >= WAITING:
            raise gr.Error("Too many clicks at once: wait for the answers.", print_exception=False)
        task = asyncio.current_task()
        assert task is not None
        visitor.waiting += 1
        task.add_done_callback(visitor.answered)
        await visitor.turn.acquire()
        task.add_done_callback(lambda _: visitor.turn.release())
        limiter = HEAVY if heavy(*values[place:]) else WORKERS
        return await anyio.to_thread.run_sync(work, *values, limiter=limiter)

    return event


def stopped_by(button: gr.Button, event: Any, own: gr.State, status: gr.HTML, what: str, words: str) -> None:
    """A button that cancels a long event, which keeps `what` in its visitor's `going` until it has its last answer.

    The words are shown once the event is over, so that none of its answers comes after them. The status stays as it is
    if the event had not begun or had its last answer already.
    """

    def stopped(visitor: Visitor) -> Any:
        began = what in visitor.going
        visitor.going.discard(what)
        return message(words) if began else gr.skip()

    button.click(None, cancels=[event], api_visibility="private")
    # a cancelled event counts as failed
    event.failure(stopped, [own], [status], api_visibility="private", preprocess=False, show_progress="hidden")
