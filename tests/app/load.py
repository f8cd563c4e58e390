"""A class at once: `python -m tests.app.load [VISITORS]` opens the app for many visitors.

Prints the median and the longest time of a click and the server's largest memory: of one visitor alone, of many who read
for 2 to 8 seconds between clicks, of many who click again at once, and of others while one opens a trace of 18 MB.
"""

import random
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from .serving import CONTROLS, ROOT, Server

RUN = ROOT / "data/checkpoints/lab-rec-fgrpo"
CLICKS = (
    {"Query": "test-3"},
    {"Rollout": "4"},
    {"Credit_method": "item"},
    {"at-view": "queries"},
    {"Query": "test-9"},
    {"at-view": "compare"},
)
"""what each visitor changes, one click after the other: five of Inspect and Group, and two tabs that read whole traces"""


@dataclass
class Load:
    """Seconds of each click that was answered, and what went wrong."""

    seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)


def visit(server: Server, name: str, load: Load, pause: tuple[float, float] = (0, 0)) -> None:
    """One visitor's clicks, each after the answer to the one before, and after a pause of so many seconds."""
    wait = random.Random(name)
    try:
        refresh, chosen = server.event("Run", "Rollout", "B"), {**CONTROLS, "at-view": "inspect"}
        for change in CLICKS:
            chosen |= change
            time.sleep(wait.uniform(*pause))
            began = time.perf_counter()
            answer = server.ask(refresh, name, **chosen)
            load.seconds.append(time.perf_counter() - began)
            if not answer["success"] or "data-strip" not in str(answer["output"]["at-strip"]):
                load.problems.append(f"{name}, {change}: {answer}"[:300])
    except Exception as error:
        load.problems.append(f"{name}: {error!r:.300}")


def visitors(server: Server, count: int, prefix: str = "visitor", pause: tuple[float, float] = (0, 0)) -> Load:
    """As many visitors at once."""
    load = Load()
    threads = [threading.Thread(target=visit, args=(server, f"{prefix} {n}", load, pause)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return load


def large_trace(size: int) -> bytes:
    """A trace of about `size` bytes: the shipped queries again and again, under other ids."""
    header, *lines = (RUN / "trace.jsonl").read_bytes().splitlines(keepends=True)
    parts, total, n = [header], len(header), 0
    while total < size:
        line = lines[n % len(lines)].replace(b'{"query":{"id":"test-', b'{"query":{"id":"%d-' % n, 1)
        parts.append(line)
        total, n = total + len(line), n + 1
    return b"".join(parts)


def upload_and_compare(server: Server, load: Load, size: int = 18_000_000) -> None:
    """One visitor opens a large trace, and looks at what reads the whole of it."""
    try:
        answer = server.upload("large.jsonl", large_trace(size), "uploader")
        if "queries. Select it" not in str(answer["output"]["at-uploaded"]):
            load.problems.append(str(answer)[:300])
        own = "yours: large.jsonl"
        chosen = {**CONTROLS, "Run": own, "Query": "", "Rollout": "", "A": own, "B": own, "Runs_to_compare": [own]}
        for view in ("queries", "compare", "runs"):
            began = time.perf_counter()
            answer = server.ask(server.event("Run", "Rollout", "B"), "uploader", **{**chosen, "at-view": view})
            load.seconds.append(time.perf_counter() - began)
            if not answer["success"]:
                load.problems.append(str(answer)[:300])
    except Exception as error:
        load.problems.append(f"uploader: {error!r:.300}")


def main() -> None:
    """Measure."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            visitors(server, 1)  # traces are read once
            alone = visitors(server, 1, "alone")
            print(f"alone: median {alone.median:.2f} s, longest {max(alone.seconds):.2f} s")
            for words, pause in (("who read for 2 to 8 s", (2, 8)), ("who click without a pause", (0, 0))):
                many = visitors(server, count, words, pause)
                print(f"{count} {words}: {len(many.seconds)} clicks answered, median {many.median:.2f} s, longest "
                      f"{max(many.seconds):.2f} s, {server.memory():.0f} MB at most", *many.problems)  # fmt: skip
            heavy, others = Load(), Load()
            work = threading.Thread(target=upload_and_compare, args=(server, heavy))
            work.start()
            while work.is_alive():
                visit(server, f"other {len(others.seconds)}", others)
            print(f"beside an upload of 18 MB: {len(others.seconds)} clicks, median {others.median:.2f} s, longest "
                  f"{max(others.seconds):.2f} s; its own {', '.join(f'{s:.1f}' for s in heavy.seconds)} s; "
                  f"{server.memory():.0f} MB at most", *heavy.problems, *others.problems)  # fmt: skip
        finally:
            server.stop(2)


if __name__ == "__main__":
    main()
