"""The runs that the app can open, and their files. Runs are looked up by name in a list, never by a path from a user."""

import io
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from fgrpo.config import Config, KitError, LMConfig
from fgrpo.data import Example
from fgrpo.lm.pretrained import POLICY_FILE
from fgrpo.policy import Policy
from fgrpo.runs.policies import load_policy, policy_folder
from fgrpo.runs.run import read_config, read_metrics
from fgrpo.runs.trace import Group, Trace, parse_trace
from fgrpo.tasks import DATA

from .markup import printable

BUNDLED = DATA / "checkpoints"
TRACES_KEPT, BYTES_KEPT, POLICIES_KEPT = 12, 64_000_000, 3
"""limits of the caches"""
TRACE_BYTES = 64_000_000
"""maximum size of a trace file"""
QUERY_LIMITS = {"candidates": 2000, "candidates in a list": 500, "rollouts": 64, "tokens in a rollout": 2000}
"""maximum sizes of one query: the memory for its rewards grows with their product"""
LIST_SECONDS = 1.0
"""age at which the list of runs is read again"""


@dataclass(frozen=True, eq=False)
class Opened:
    """A trace and a short name for each of its queries, used in lists and links."""

    trace: Trace
    keys: dict[str, int]

    @property
    def config(self) -> Config:
        """Configuration of the run that the trace comes from."""
        return self.trace.config

    def group(self, key: str) -> Group:
        """The query with this name. Raises KitError if there is none."""
        if key not in self.keys:
            trace = printable(self.trace.name, 60)
            raise KitError(f"query {printable(key, 60)!r} is not in {trace}; choose one from the list.")
        return self.trace.groups[self.keys[key]]

    def find(self, example: Example) -> Group | None:
        """The last group with the same query and pool, or None."""
        same = (g for g in reversed(self.trace.groups) if g.example.id == example.id)
        return next((g for g in same if g.example.candidates == example.candidates), None)


class Library:
    """The bundled runs and those below a folder; recently read traces and policies are cached."""

    def __init__(self, runs: str | Path, base: LMConfig | None = None):
        """`base`: the pretrained model to load adapters on, in place of the path recorded when they were trained."""
        self.runs, self.base = Path(runs), base
        self._listed: tuple[float, dict[str, Path]] = (-LIST_SECONDS, {})
        self._traces, self._policies = Cache(TRACES_KEPT, BYTES_KEPT), Cache(POLICIES_KEPT)

    def folders(self) -> dict[str, Path]:
        """Folder of every run by name: the bundled ones (`lab-rec`), then yours (`runs/demo/fgrpo-seed0`), newest first."""
        if time.monotonic() < self._listed[0] + LIST_SECONDS:
            return self._listed[1]
        found = {p.name: p for p in sorted(BUNDLED.iterdir()) if (p / "config.json").is_file()}
        mine = []
        for at, inner, files in os.walk(self.runs):
            inner[:] = [d for d in inner if d != "checkpoints" and not d.startswith(".")]
            if "config.json" in files:
                mine.append(Path(at))
        mine.sort(key=lambda p: (-(p / "config.json").stat().st_mtime, str(p)))
        found |= {printable(f"runs/{p.relative_to(self.runs).as_posix()}", 200): p for p in mine}
        self._listed = (time.monotonic(), found)
        return found

    def having(self, file: str) -> list[str]:
        """Names of the runs that contain this file."""
        return [name for name, folder in self.folders().items() if (folder / file).is_file()]

    def with_policy(self) -> list[str]:
        """Names of the runs whose policy can generate."""
        policies = ((name, policy_folder(folder)) for name, folder in self.folders().items())
        return [name for name, folder in policies if any((folder / f).is_file() for f in ("items.json", POLICY_FILE))]

    def folder(self, name: str) -> Path:
        """Folder of a listed run. Raises KitError on any other name."""
        folders = self.folders()
        if name not in folders:
            raise KitError(f"run {printable(name, 80)!r} was not found; choose one from the list.")
        return folders[name]

    def path(self, name: str, own: Mapping[str, str]) -> Path:
        """Path of the trace of a listed run, or of one of the visitor's own traces (`own`: name to file)."""
        return Path(own[name]) if name in own else self.folder(name) / "trace.jsonl"

    def trace(self, name: str, own: Mapping[str, str]) -> Opened:
        """The trace with this name. Raises KitError if it is missing, invalid, of a newer version or too large."""
        path = self.path(name, own)
        try:
            status = path.stat()
            if status.st_size > TRACE_BYTES:
                raise KitError(f"{name}: the trace has {status.st_size:,} bytes; the app opens up to {TRACE_BYTES:,}.")
            stamp = (str(path), status.st_mtime_ns, status.st_size)
            bad: list[str] | None = [] if name in own else None  # broken lines were reported at the upload
            return self._traces.get(stamp, lambda: open_trace(path, name, bad), status.st_size)
        except OSError as error:
            problem = "was deleted: upload or generate it again" if name in own else "cannot be read"
            raise KitError(f"{name}: its trace {problem} ({error.strerror}).") from None

    def metrics(self, name: str) -> list[dict[str, float]]:
        """The metrics that a run has logged so far, one row per step."""
        try:
            return read_metrics(self.folder(name))
        except OSError as error:
            raise KitError(f"{name}: metrics.jsonl cannot be read ({error.strerror}).") from None

    def config(self, name: str) -> Config:
        """The configuration of a run."""
        return read_config(self.folder(name))

    def policy(self, name: str) -> Policy:
        """The latest policy of a run, cached. Raises KitError if it is damaged or its base model is not available."""
        folder = policy_folder(self.folder(name))
        lm = self.base or replace(self.config(name).lm, trust_remote_code=False)
        return self._policies.get((str(folder),), lambda: load_policy(folder, lm=lm))


def open_trace(path: Path, name: str, bad: list[str] | None = None) -> Opened:
    """Read a trace and name its queries: by id, by id and step where ids repeat, else by number."""
    trace = parse_trace(io.BytesIO(path.read_bytes()), name, bad)
    keys: dict[str, int] = {}
    for number, group in enumerate(trace.groups):
        _check_size(group, f"{name}, query {number + 1}")
        names = (group.example.id, f"{group.example.id}@{group.step}", f"#{number + 1}")
        fits = (n for n in names if n not in keys and len(n) <= 80 and printable(n) == n)
        keys[next(fits, f"#{number + 1}")] = number
    return Opened(trace, keys)


def _check_size(group: Group, where: str) -> None:
    rollouts = [*group.rollouts, *([group.greedy] if group.greedy else [])]
    sizes = (
        len(group.example.candidates), max((len(r.output.slate) for r in rollouts), default=0), len(rollouts),
        max((len(r.tokens) for r in rollouts), default=0),
    )  # fmt: skip
    for (what, limit), size in zip(QUERY_LIMITS.items(), sizes, strict=True):
        if size > limit:
            raise KitError(f"{where}: {size:,} {what}; the app shows up to {limit:,}.")


class Cache:
    """The most recently used values: at most `count`, read from at most `size` bytes in all (0: any)."""

    def __init__(self, count: int, size: int = 0):
        self.count, self.size = count, size
        self._kept: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Any, make: Callable[[], Any], size: int = 0) -> Any:
        """The value of a key; a missing one is made by `make`, one at a time. `size`: bytes it is read from."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = (make(), size)
            self._kept.move_to_end(key)
            value = self._kept[key][0]
            while len(self._kept) > 1 and (
                len(self._kept) > self.count or 0 < self.size < sum(s for _, s in self._kept.values())
            ):
                self._kept.popitem(last=False)
            return value
