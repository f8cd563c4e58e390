"""Which runs there are, and what lies in them: found by name among those listed, never by a path from outside."""

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

from .markup import shown

BUNDLED = DATA / "checkpoints"
TRACES_KEPT, BYTES_KEPT, POLICIES_KEPT = 12, 64_000_000, 3
LARGEST = 64_000_000
"""bytes of the largest trace that is opened"""
MOST = {"candidates": 2000, "candidates in a list": 500, "rollouts": 64, "tokens in a rollout": 2000}
"""what a query may hold to be shown: rewards take memory by the product of these"""
FRESH = 1.0
"""seconds for which the list of runs is taken as it is"""


@dataclass(frozen=True, eq=False)
class Opened:
    """A trace with a short name for each of its queries, as the page and its links call them."""

    trace: Trace
    keys: dict[str, int]

    @property
    def config(self) -> Config:
        """The run that it was made by."""
        return self.trace.config

    def group(self, key: str) -> Group:
        """The query of this name. Raises KitError if there is none."""
        if key not in self.keys:
            raise KitError(f"query {shown(key, 60)!r} is not in {shown(self.trace.name, 60)}; choose one of the list.")
        return self.trace.groups[self.keys[key]]

    def find(self, example: Example) -> Group | None:
        """The last group on the same query and pool."""
        same = (g for g in reversed(self.trace.groups) if g.example.id == example.id)
        return next((g for g in same if g.example.candidates == example.candidates), None)


class Library:
    """The bundled runs, and those below a folder; what was read last is kept, within bounds."""

    def __init__(self, runs: str | Path, base: LMConfig | None = None):
        """`base`: the pretrained model that adapters are put on, wherever the one lies that they were trained on."""
        self.runs, self.base = Path(runs), base
        self._listed: tuple[float, dict[str, Path]] = (-FRESH, {})
        self._traces, self._policies = Cache(TRACES_KEPT, BYTES_KEPT), Cache(POLICIES_KEPT)

    def folders(self) -> dict[str, Path]:
        """Every run by name: `lab-rec` of the bundled ones, `runs/demo/fgrpo-seed0` of yours, newest first."""
        if time.monotonic() < self._listed[0] + FRESH:
            return self._listed[1]
        found = {p.name: p for p in sorted(BUNDLED.iterdir()) if (p / "config.json").is_file()}
        mine = []
        for at, inner, files in os.walk(self.runs):
            inner[:] = [d for d in inner if d != "checkpoints" and not d.startswith(".")]
            if "config.json" in files:
                mine.append(Path(at))
        mine.sort(key=lambda p: (-(p / "config.json").stat().st_mtime, str(p)))
        found |= {shown(f"runs/{p.relative_to(self.runs).as_posix()}", 200): p for p in mine}
        self._listed = (time.monotonic(), found)
        return found

    def having(self, file: str) -> list[str]:
        """Names of the runs that hold this file."""
        return [name for name, folder in self.folders().items() if (folder / file).is_file()]

    def with_policy(self) -> list[str]:
        """Names of the runs whose policy can generate."""
        places = ((name, policy_folder(folder)) for name, folder in self.folders().items())
        return [name for name, at in places if any((at / f).is_file() for f in ("items.json", POLICY_FILE))]

    def folder(self, name: str) -> Path:
        """Folder of a listed run. Raises KitError on any other name."""
        folders = self.folders()
        if name not in folders:
            raise KitError(f"run {shown(name, 80)!r} is not here; choose one of the list.")
        return folders[name]

    def path(self, name: str, own: Mapping[str, str]) -> Path:
        """The trace of a listed run, or one of the visitor's `own`."""
        return Path(own[name]) if name in own else self.folder(name) / "trace.jsonl"

    def trace(self, name: str, own: Mapping[str, str]) -> Opened:
        """The trace of that name. Raises KitError if it is missing, broken, newer or too large."""
        path = self.path(name, own)
        try:
            facts = path.stat()
            if facts.st_size > LARGEST:
                raise KitError(f"{name}: the trace has {facts.st_size:,} bytes; the app opens up to {LARGEST:,}.")
            stamp = (str(path), facts.st_mtime_ns, facts.st_size)
            bad: list[str] | None = [] if name in own else None  # told when it was uploaded
            return self._traces.get(stamp, lambda: open_trace(path, name, bad), facts.st_size)
        except OSError as error:
            what = "is no longer kept: upload or generate it again" if name in own else "cannot be read"
            raise KitError(f"{name}: its trace {what} ({error.strerror}).") from None

    def metrics(self, name: str) -> list[dict[str, float]]:
        """What a run logged so far, a row per step."""
        try:
            return read_metrics(self.folder(name))
        except OSError as error:
            raise KitError(f"{name}: metrics.jsonl cannot be read ({error.strerror}).") from None

    def config(self, name: str) -> Config:
        """The configuration of a run."""
        return read_config(self.folder(name))

    def policy(self, name: str) -> Policy:
        """The latest policy of a run, loaded once. Raises KitError if it is damaged or its base model is not at hand."""
        folder = policy_folder(self.folder(name))
        lm = self.base or replace(self.config(name).lm, trust_remote_code=False)
        return self._policies.get((str(folder),), lambda: load_policy(folder, lm=lm))


def open_trace(path: Path, name: str, bad: list[str] | None = None) -> Opened:
    """Read a trace and name its queries: by id, with its step where ids come again, by number where that fails."""
    trace = parse_trace(io.BytesIO(path.read_bytes()), name, bad)
    keys: dict[str, int] = {}
    for number, group in enumerate(trace.groups):
        _check_size(group, f"{name}, query {number + 1}")
        names = (group.example.id, f"{group.example.id}@{group.step}", f"#{number + 1}")
        fits = (n for n in names if n not in keys and len(n) <= 80 and shown(n) == n)
        keys[next(fits, f"#{number + 1}")] = number
    return Opened(trace, keys)


def _check_size(group: Group, where: str) -> None:
    rollouts = [*group.rollouts, *([group.greedy] if group.greedy else [])]
    sizes = (
        len(group.example.candidates), max((len(r.output.slate) for r in rollouts), default=0), len(rollouts),
        max((len(r.tokens) for r in rollouts), default=0),
    )  # fmt: skip
    for (what, most), size in zip(MOST.items(), sizes, strict=True):
        if size > most:
            raise KitError(f"{where}: {size:,} {what}; the app shows up to {most:,}.")


class Cache:
    """The values used last: so many, and so many bytes of what they were read from."""

    def __init__(self, most: int, most_bytes: int = 0):
        self.most, self.most_bytes = most, most_bytes
        self._kept: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Any, make: Callable[[], Any], size: int = 0) -> Any:
        """The value of a key, made if it is not kept; one is made at a time."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = (make(), size)
            self._kept.move_to_end(key)
            value = self._kept[key][0]
            while len(self._kept) > 1 and (
                len(self._kept) > self.most or 0 < self.most_bytes < sum(s for _, s in self._kept.values())
            ):
                self._kept.popitem(last=False)
            return value
