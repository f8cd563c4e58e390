"""The runs that the app can open, and their files. Runs are looked up by name in a list, never by a path from a user."""

import hashlib
import math
import os
import shutil
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from fgrpo.config import Config, KitError, LMConfig
from fgrpo.data import Example
from fgrpo.lm.pretrained import POLICY_FILE
from fgrpo.lm.text import TextPolicy
from fgrpo.policy import Policy
from fgrpo.runs.policies import is_whole_model, load_policy, policy_folder
from fgrpo.runs.run import read_config, read_metrics
from fgrpo.runs.trace import Group, Trace, group_of, parse_trace
from fgrpo.tasks import DATA
from fgrpo.tasks.reading import read_object

from .markup import printable

BUNDLED = DATA / "checkpoints"
TRACES_KEPT, BYTES_KEPT, POLICIES_KEPT = 12, 64_000_000, 3
"""limits of the caches"""
TRACE_BYTES, LINE_BYTES, METRICS_BYTES, CONFIG_BYTES = 64_000_000, 16_000_000, 32_000_000, 1_000_000
"""maximum sizes of a trace, of one line in it, of metrics.jsonl and of config.json: what is read takes several times that"""
INVALID_LINES = 1000
"""number of invalid lines after which an upload is refused"""
QUERY_LIMITS = {"candidates": 2000, "candidates in a list": 500, "rollouts": 64, "tokens in a rollout": 2000}
"""maximum sizes of one query: the memory for its rewards grows with their product"""
SPACE, FILE_BYTES = 1_000_000_000, 16_000
"""default maximum of bytes that visitors' files take in all, and what a file counts at least: all are walked through"""
LIST_SECONDS = 1.0
"""age at which the list of runs is read again"""


@dataclass(frozen=True)
class Mark:
    """A query of a trace: where its line begins in the file (bytes), and what lists need to know without reading it.

    `same`: equal for queries with the same id and pool. `sampled`: number of sampled rollouts.
    """

    position: int
    id: str
    same: int
    step: int | None
    sampled: int
    greedy: bool


@dataclass(frozen=True, eq=False)
class Opened:
    """A trace whose queries are read from its file one at a time, and a short name for each, used in lists and links.

    trace: without groups. keys: number of each query by its name. marks: of each query, by number.
    """

    path: Path
    trace: Trace
    keys: dict[str, int]
    marks: list[Mark]

    @property
    def config(self) -> Config:
        """Configuration of the run that the trace comes from."""
        return self.trace.config

    def mark(self, key: str) -> Mark:
        """What is known of the query with this name. Raises KitError if there is none."""
        if key not in self.keys:
            trace = printable(self.trace.name, 60)
            raise KitError(f"query {printable(key, 60)!r} is not in {trace}; choose one from the list.")
        return self.marks[self.keys[key]]

    def group(self, key: str) -> Group:
        """The query with this name. Raises KitError if there is none, and if the file has changed or is gone."""
        mark, name = self.mark(key), printable(self.trace.name, 60)
        try:
            with self.path.open("rb") as file:
                file.seek(mark.position)
                group = group_of(read_object(file.readline(LINE_BYTES)))
        except OSError as error:
            raise KitError(f"{name}: its trace cannot be read ({error.strerror}).") from None
        except KitError:
            raise KitError(f"{name}: its trace has changed meanwhile; choose the run again.") from None
        _check_size(group, name)
        return group

    def groups(self) -> Iterator[Group]:
        """All queries, one at a time: a file may be larger than memory."""
        return (self.group(key) for key in self.keys)

    def find(self, example: Example) -> Group | None:
        """The last group with the same query and pool, or None."""
        same = identity(example)
        return next((self.group(k) for k, n in reversed(self.keys.items()) if self.marks[n].same == same), None)


def identity(example: Example) -> int:
    """A number that queries with the same id and pool share, in this process."""
    return hash((example.id, example.candidates))


class Library:
    """The bundled runs and those below a folder; recently read traces and policies are cached."""

    def __init__(self, runs: str | Path, base: LMConfig | None = None, space: int = SPACE):
        """`base`: the pretrained model to load adapters on, in place of the path recorded when they were trained.

        `space`: bytes that uploads and generated rollouts may take in all; 0: no uploads.
        """
        self.runs, self.base, self.space = Path(runs), base, space
        self._listed: tuple[float, dict[str, Path]] = (-LIST_SECONDS, {})
        self._traces, self._policies = Cache(TRACES_KEPT, BYTES_KEPT), Cache(POLICIES_KEPT)

    def folders(self) -> dict[str, Path]:
        """Folder of every run by name: the bundled ones (`lab-rec`), then yours (`runs/demo/fgrpo-seed0`), newest first."""
        if time.monotonic() < self._listed[0] + LIST_SECONDS:
            return self._listed[1]
        found = {p.parent.name: p.parent for p in sorted(BUNDLED.glob("*/config.json"))}
        mine = []
        for at, inner, files in os.walk(self.runs):
            inner[:] = [d for d in inner if d != "checkpoints" and not d.startswith(".")]
            if "config.json" in files:
                mine.append(Path(at))
        mine.sort(key=lambda p: (-_modified(p / "config.json"), str(p)))
        found |= {printable(f"runs/{p.relative_to(self.runs).as_posix()}", 200): p for p in mine}
        self._listed = (time.monotonic(), found)
        return found

    def having(self, file: str) -> list[str]:
        """Names of the runs that contain this file."""
        return [name for name, folder in self.folders().items() if (folder / file).is_file()]

    def bundled(self) -> list[str]:
        """Names of the shipped runs that have a trace."""
        return [name for name in self.having("trace.jsonl") if not name.startswith("runs/")]

    def with_policy(self) -> list[str]:
        """Names of the runs whose policy can generate: of adapters those whose base model is on this machine."""
        policies = ((name, policy_folder(folder)) for name, folder in self.folders().items())
        return [n for n, folder in policies if (folder / "items.json").is_file() or self._has_base(n, folder)]

    def _has_base(self, name: str, folder: Path) -> bool:
        """Whether this is a whole pretrained model, or an adapter with its base in a folder or in the cache of the hub."""
        if not (folder / POLICY_FILE).is_file():
            return False
        try:
            if is_whole_model(folder):
                return True
            model = (self.base or self.config(name).lm).model
            return Path(model).is_dir() or isinstance(try_to_load_from_cache(model, "config.json"), str)
        except (KitError, HFValidationError):
            return False

    def folder(self, name: str) -> Path:
        """Folder of a listed run. Raises KitError on any other name."""
        folders = self.folders()
        if name not in folders:
            raise KitError(f"run {printable(name, 80)!r} was not found; choose one from the list.")
        return folders[name]

    def path(self, name: str, own: Mapping[str, str]) -> Path:
        """Path of the trace of a listed run, or of one of the visitor's own traces (`own`: name to file)."""
        return Path(own[name]) if name in own else self.folder(name) / "trace.jsonl"

    def trace(self, name: str, own: Mapping[str, str], bad: list[str] | None = None) -> Opened:
        """The trace with this name. Raises KitError if it is missing, invalid, of a newer version or too large.

        `bad` gets the invalid lines of one of the visitor's own, if it is read now.
        """
        path = self.path(name, own)
        try:
            status = bounded(path, f"{name}: its trace", TRACE_BYTES)
            stamp = (str(path), status.st_mtime_ns, status.st_size)
            left_out = (bad if bad is not None else []) if name in own else None
            return self._traces.get(stamp, lambda: open_trace(path, name, left_out), status.st_size)
        except OSError as error:
            problem = "was deleted: upload or generate it again" if name in own else "cannot be read"
            raise KitError(f"{name}: its trace {problem} ({error.strerror}).") from None

    def stamp(self, name: str, own: Mapping[str, str]) -> str:
        """Changes with the file of a trace; empty if it is gone."""
        try:
            status = self.path(name, own).stat()
            return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"
        except (KitError, OSError):
            return ""

    def size_of(self, name: str, own: Mapping[str, str]) -> int:
        """Size of the file of a trace, 0 if there is none."""
        try:
            return self.path(name, own).stat().st_size
        except (KitError, OSError):
            return 0

    def download(self, name: str, own: Mapping[str, str], folder: Path) -> Path | None:
        """A copy of a trace below `folder`, the only one that the server gives files from; None if it cannot be opened."""
        try:
            self.trace(name, own)
            path = self.path(name, own)
            if path.is_relative_to(folder):
                return path
            status = path.stat()
            key = hashlib.sha256(repr((str(path), status.st_mtime_ns, status.st_size)).encode()).hexdigest()
            copy = folder / "downloads" / key / "trace.jsonl"
            if not copy.is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy.with_suffix(".part")).replace(copy)
            return copy
        except (KitError, OSError):  # `show` reports why
            return None

    def room(self, folder: Path, more: int) -> None:
        """Raise KitError unless `more` bytes of uploads fit below `folder`, which holds what the app writes."""
        used = 0
        for at, inner, files in os.walk(folder):
            if Path(at) == folder:
                inner[:] = [name for name in inner if name != "downloads"]
            used += sum(max(FILE_BYTES, _size(Path(at, name))) for name in files)
        if used + more > self.space:
            taken, most, needs = (x / 1e6 for x in (used, self.space, more))
            raise KitError(
                f"the app's space for uploads is full: visitors' files take {taken:,.1f} of {most:,.1f} MB, and this one "
                f"needs {needs:,.1f}. Files are removed after two hours: try again later, or restart it with more --space."
            )

    def metrics(self, name: str) -> list[dict[str, float]]:
        """The finite numbers that a run has logged so far, one row per step. Raises KitError if there is no such file."""
        folder = self.folder(name)
        try:
            bounded(folder / "metrics.jsonl", f"{name}: its metrics.jsonl", METRICS_BYTES)
            rows = read_metrics(folder)
        except OSError as error:
            raise KitError(f"{name}: metrics.jsonl cannot be read ({error.strerror}).") from None
        return [{k: x for k, x in row.items() if _plotted(x)} | {"step": _step(name, row["step"])} for row in rows]

    def config(self, name: str) -> Config:
        """The configuration of a run."""
        folder = self.folder(name)
        try:
            bounded(folder / "config.json", f"{name}: its config.json", CONFIG_BYTES)
        except OSError as error:
            raise KitError(f"{name}: config.json cannot be read ({error.strerror}).") from None
        return read_config(folder)

    def policy(self, name: str) -> Policy:
        """The latest policy of a run, cached. Raises KitError if it is damaged or its base model is not available."""
        folder = policy_folder(self.folder(name))
        lm = self.base or replace(self.config(name).lm, trust_remote_code=False)
        policy = self._policies.get((str(folder),), lambda: load_policy(folder, lm=lm))
        if isinstance(policy, TextPolicy):  # what visitors type stays neither on disk nor in memory
            policy.keep = False
            policy.forget()
        return policy


def bounded(path: Path, name: str, limit: int) -> os.stat_result:
    """The status of a file. Raises KitError on anything but a file (a pipe never ends) and on a file above `limit` bytes."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise KitError(f"{name} cannot be read: it is not a file.")
    if status.st_size > limit:
        raise KitError(f"{name} has {status.st_size:,} bytes; the app opens up to {limit:,}.")
    return status


def _modified(path: Path) -> float:
    """Time of the last change, 0 if the file is gone: a run may be deleted while the list is read."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    """Bytes of a file, 0 if it is gone."""
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _plotted(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e30 and math.isfinite(value)


def _step(name: str, step: float) -> int:
    if not 0 <= step < 2**53:
        raise KitError(f"{name}: metrics.jsonl has a step that is not the number of a step; delete the line.")
    return int(step)


def open_trace(path: Path, name: str, bad: list[str] | None = None) -> Opened:
    """Read a trace once and name its queries: by id, by id and step where ids repeat, else by number."""
    keys, marks = dict[str, int](), list[Mark]()

    def keep(group: Group, position: int) -> None:
        number, example = len(marks) + 1, group.example
        _check_size(group, f"{name}, query {number}")
        names = (example.id, f"{example.id}@{group.step}", f"#{number}")
        fits = (n for n in names if n not in keys and len(n) <= 80 and printable(n) == n)
        keys[next(fits, f"#{number}")] = number - 1
        sampled, greedy = len(group.rollouts), group.greedy is not None
        marks.append(Mark(position, example.id[:80], identity(example), group.step, sampled, greedy))

    with path.open("rb") as file:
        trace = parse_trace(_lines(file, name, bad), name, bad, keep)
    return Opened(path, trace, keys, marks)


def _lines(file: BinaryIO, name: str, bad: list[str] | None) -> Iterator[bytes]:
    """The lines of a file. Raises KitError on one that is too long, and once there are too many invalid ones."""
    number = 0
    while line := file.readline(LINE_BYTES + 1):
        number += 1
        if len(line) > LINE_BYTES:
            raise KitError(f"{name}, line {number}: more than {LINE_BYTES:,} bytes; the app opens shorter lines only.")
        if bad and len(bad) > INVALID_LINES:
            raise KitError(f"{name}: more than {INVALID_LINES:,} invalid lines; this is neither a trace nor examples.")
        yield line


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
        self._making: dict[Any, Lock] = {}

    def get(self, key: Any, make: Callable[[], Any], size: int | Callable[[Any], int] = 0) -> Any:
        """The value of a key. A missing one is made by `make`, once; other keys do not wait for it.

        `size`: of the file that it is read from, or what tells the size of a value that was made.
        """
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
            making = self._making.setdefault(key, Lock())
        with making:
            try:
                if (found := self._kept.get(key)) is None:
                    value = make()
                    found = value, size(value) if callable(size) else size
                with self._lock:
                    self._kept[key] = found
                    self._kept.move_to_end(key)
                    while len(self._kept) > 1 and (
                        len(self._kept) > self.count or 0 < self.size < sum(s for _, s in self._kept.values())
                    ):
                        self._kept.popitem(last=False)
            finally:
                with self._lock:
                    self._making.pop(key, None)
        return found[0]
