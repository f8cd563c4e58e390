"""Chat templates: the text that a model was trained to see around a user's message and around its own answer.

A template is a program that comes with a model. It is run in a forked process with limits of time and memory (where
the system has fork), and shows the date that the run began with, not today's.
"""

import json
import os
import re
import select
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ..config import KitError

HERE, THERE = "(prompt)", "(answer)"
"""markers of the user's text and of the answer in a rendered template"""
SECONDS, MEMORY, CHARACTERS = 10, 2**30, 1_000_000
"""limits of a template: seconds of time, bytes of memory in addition to the process's own, length of its text"""
DIRECTIVES = "aAwdbBmyYHIpMSfjUWcxXGuV"
"""format directives of strftime that a pinned date replaces; the time is midnight"""
CHANGED = "the chat template of this model changes or leaves out the text of a message: it cannot be used."
RANDOM = re.compile(r"""\|\s*random\b|["']random["']|\blipsum\b""")
NO_DATE = "date {!r}: the prompt of this model shows no date; leave it out."


class Frame(NamedTuple):
    """Text before the user's message, between it and the answer, and after the answer; the date shown, if any."""

    before: str
    between: str
    after: str
    date: str = ""


def frame_of(tokenizer: PreTrainedTokenizerBase, day: str = "") -> Frame:
    """What the chat template of a tokenizer writes around a message and its answer. `day`: date to show (default: today).

    The answer begins where the template puts an assistant's content. A template that cannot show an answer is taken at
    its generation prompt, as is one whose generation prompt goes on from there (an empty block of thoughts), unless it
    leaves a block open. Raises KitError on a template that fails, takes too long or changes the text of a message.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise KitError(f"this model has no default chat template ({_line(error)}).") from None
    if RANDOM.search(template):
        raise KitError("the chat template of this model draws at random: no prompt would be the same twice.")
    shown = iso(day or date.today().isoformat()) if "strftime_now" in template or (day and _DATE in template) else ""
    if day and not shown:
        raise KitError(NO_DATE.format(day))
    texts = bounded(lambda: _texts(tokenizer, template, shown, bool(day)))
    whole, opening, reason = texts["whole"], texts["opening"], texts["reason"]
    before, _, rest = opening.partition(HERE)
    if whole.count(HERE) == whole.count(THERE) == 1 and whole.index(HERE) < whole.index(THERE):
        head, _, tail = whole.partition(HERE)
        between, _, after = tail.partition(THERE)
        if opening.count(HERE) == 1 and rest.startswith(between) and not _leaves_open(rest[len(between) :]):
            return Frame(before, rest, after, shown)
        return Frame(head, between, after, shown)
    if opening.count(HERE) != 1:
        raise KitError(f"the chat template of this model fails: {reason}." if reason else CHANGED)
    return Frame(before, rest, "", shown)


_DATE = "date_string"  # the name under which Llama's templates take a date


def _leaves_open(text: str) -> bool:
    """Whether a text opens a block, as <think> or [THINK], that it does not close: an answer would be part of it."""
    return any(f"/{name}" not in text for name in re.findall(r"[^\w\s/|]([A-Za-z_]+)[^\w\s|]", text))


def _texts(tokenizer: PreTrainedTokenizerBase, template: str, day: str, given: bool) -> dict[str, str]:
    """A rendered exchange, a rendered message with its generation prompt ("" where that fails), and the first reason."""
    options: dict[str, Any] = {"tokenize": False, "enable_thinking": False}
    if day:
        options["chat_template"] = pinned(template, day)
        options |= {_DATE: date.fromisoformat(day).strftime("%d %b %Y")} if given else {}
    found = {"whole": "", "opening": "", "reason": ""}
    for form in (str, lambda text: [{"type": "text", "text": text}]):  # some templates read text as a list of parts
        exchange: list[Any] = [{"role": r, "content": form(t)} for r, t in (("user", HERE), ("assistant", THERE))]
        for name, messages, opens in (("whole", exchange, False), ("opening", exchange[:1], True)):
            try:
                text = tokenizer.apply_chat_template(messages, add_generation_prompt=opens, **options)
            except Exception as error:  # a template raises whatever it likes
                found["reason"] = found["reason"] or _line(error)
                continue
            assert isinstance(text, str)
            if len(text) > CHARACTERS:
                return {**found, "reason": f"it writes more than {CHARACTERS:,} characters"}
            found[name] = text
        if HERE in found["whole"] + found["opening"]:
            break
    return found


def pinned(template: str, day: str) -> str:
    """The template with a date of its own: a macro stands in for the function that gives today's."""
    shown = {f"%{d}": date.fromisoformat(day).strftime(f"%{d}") for d in DIRECTIVES}
    shown |= {f"%-{d}": shown[f"%{d}"].lstrip("0") or "0" for d in "dmHIMSj"}
    replaced = "".join(f"|replace({json.dumps(a)}, {json.dumps(b)})" for a, b in shown.items())
    return f"{{%- macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{%- endmacro %}}\n{template}"


def iso(day: str) -> str:
    """A date as it is written in options and files. Raises KitError if it is not one."""
    try:
        return date.fromisoformat(day).isoformat()
    except ValueError:
        raise KitError(f"date {day[:40]!r} must be written as 2026-11-26.") from None


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:200].rstrip(".") or type(error).__name__


def bounded(work: Callable[[], dict[str, str]]) -> dict[str, str]:
    """What `work` returns, made in a forked process within SECONDS and MEMORY. Raises KitError if it needs more."""
    if not hasattr(os, "fork"):
        return work()
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads beside it: the child runs this function alone
        child = os.fork()
    if not child:
        try:
            os.close(read)
            _limit()
            with os.fdopen(write, "wb") as file:
                file.write(json.dumps(work()).encode())
        finally:
            os._exit(0)  # no exit handlers, no second flush of what the parent has yet to print
    os.close(write)
    blob, end = b"", time.monotonic() + SECONDS
    try:
        with os.fdopen(read, "rb", buffering=0) as file:
            while select.select([file], [], [], max(0.0, end - time.monotonic()))[0]:
                part = file.read(2**16)
                blob += part
                if not part:
                    break
    finally:
        os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):  # where SIGCHLD is ignored, nobody has to wait for it
            os.waitpid(child, 0)
    try:
        return json.loads(blob)
    except ValueError:
        raise KitError(
            f"the chat template of this model was stopped: it takes more than {SECONDS} seconds or {MEMORY >> 20} MiB."
        ) from None


def _limit() -> None:
    """Limit the time of this process, and its memory where /proc tells how much it has."""
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    pages, (_, hard) = Path("/proc/self/statm"), resource.getrlimit(resource.RLIMIT_AS)
    if pages.exists():
        most = int(pages.read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
