"""The folder of a run: its configuration, metrics, traces and checkpoints.

    config.json                   the configuration; command, versions, hardware, date, origin (fgrpo.runs.origin)
    metrics.jsonl                 one line per step
    trace.jsonl                   rollouts token by token (fgrpo.runs.trace)
    checkpoints/step-000025/      policy (safetensors, tokenizer), trainer.safetensors (optimizer), trainer.json;
                                  SHA256SUMS of all files, checked whenever they are read

A checkpoint is written under a temporary name and renamed when it is complete, and renamed again before it is deleted,
so that a kill at any moment leaves only complete checkpoints. The first one (step 0) is kept as the reference policy,
and the last KEEP; one that is a link is never removed. trace.jsonl keeps the first FIRST and the last LAST traced
steps. No file in the folder holds the folder's path, so it can be moved. One process at a time writes (fgrpo.runs.lock).
"""

import io
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import safetensors.torch
import torch
import transformers
from safetensors import SafetensorError

from .. import __version__
from ..config import Config, KitError
from ..policy import Policy
from ..tasks.atomic import write_text
from ..tasks.reading import read_object
from .lock import check_writable, lock
from .origin import Origin, check_origin
from .policies import checkpoints, is_whole_model, reference_of, refuse_adapter, reloaded, step_of, write_policy
from .seal import check_seal, seal
from .signals import processes

if TYPE_CHECKING:
    from .track import Tracker

KEEP = 2
FIRST = LAST = 20
MAY_DIFFER = ("device",)
SFT_READS = ("rl.temperature", "rl.decoding")
"""the RL options that the likelihood of a demonstration is taken under; the others change nothing in SFT"""
PATHS = ("task", "data", "lm.model")
"""options that hold a path. A run may be resumed with another path, if its last part is the same"""


class Run:
    """One training run on disk."""

    def __init__(
        self, folder: str | Path, config: Config, resume: bool = False, save_every: int = 25, writes: bool = True,
        origin: Origin | None = None,
    ):  # fmt: skip
        """Open a run folder. Raises KitError if it already holds a run, unless `resume` continues the same one.

        Of several processes only one `writes`; the others read its files. It keeps the folder's lock for as long as
        this object exists. `origin` is what the run begins with besides its options.
        """
        self.folder, self.config, self.save_every, self.writes = Path(folder), config, save_every, writes
        self.name = self.folder.name
        self.metrics, self.trace = self.folder / "metrics.jsonl", self.folder / "trace.jsonl"
        self.tracker: Tracker | None = None  # set by fgrpo.runs.track.tracking
        if not writes:
            return
        origin = origin or {}
        check_folder(self.folder, config, resume, origin)  # before anything is written
        self.lock = lock(self.folder)
        check_folder(self.folder, config, resume, origin)  # another process may have been faster
        self.made = {**provenance(), "processes": processes(), "origin": dict(origin)}
        if not self.metrics.exists():  # a run that is resumed keeps its own until it was read
            self._write_config()

    def _write_config(self) -> None:
        values = {**self.config.to_dict(), "made": self.made}
        write_text(self.folder / "config.json", json.dumps(values, indent=2) + "\n")

    def _pin(self, policy: Policy) -> None:
        """Write the date that the policy's prompts show, if they show one, into config.json: later ones show it too."""
        lm = getattr(policy, "config", self.config.lm)  # a tiny policy has none
        if self.writes and lm.date != self.config.lm.date:
            self.config = replace(self.config, lm=replace(self.config.lm, date=lm.date))
            self._write_config()

    def latest(self) -> Path | None:
        """The newest complete checkpoint, or None."""
        return next(reversed(checkpoints(self.folder)), None)

    def restore(
        self, policy: Policy, make_optimizer: Callable[[Policy], torch.optim.Optimizer]
    ) -> tuple[Policy, torch.optim.Optimizer, int]:
        """Policy, optimizer and number of steps done, from the latest checkpoint, or from `policy` in a new run.

        Also removes from metrics.jsonl the steps after the checkpoint.
        """
        if self.writes:
            self._sweep()
        folder = self.latest()
        if folder is None:
            write_text(self.metrics, "")
            optimizer = make_optimizer(policy)
            self.save(policy, optimizer, 0, 0)
            self._pin(policy)
            return policy, optimizer, 0
        check_seal(folder)
        if not any(folder.glob("trainer.*")):
            raise KitError(f"{folder}: the policy alone was kept, it cannot be resumed; start from it with --init.")
        policy = reloaded(policy, folder)
        self._pin(policy)
        optimizer = make_optimizer(policy)
        try:
            state = read_json(folder / "trainer.json")
            done = state["step"]
            policy.share &= state.get("shared", True) is not False  # an earlier comparison showed that it cannot
            if type(done) is not int or done != step_of(folder):
                raise ValueError("trainer.json is that of another step")
            _load_state(optimizer, safetensors.torch.load_file(folder / "trainer.safetensors"))
        except (KitError, OSError, ValueError, LookupError, RuntimeError, TypeError, SafetensorError) as error:
            raise KitError(
                f"{folder}: the checkpoint is damaged ({str(error)[:150]}); delete it to continue from the one before."
            ) from None
        if self.writes:
            rows = [row for row in read_metrics(self.folder) if row["step"] <= done]
            self._write_config()
            write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))
        return policy, optimizer, done

    def strip(self) -> None:
        """Keep only the last policy, without the files for resuming: a checkpoint to share."""
        *old, last = checkpoints(self.folder)
        for folder in old:
            _remove(folder)
        if last.is_symlink():  # what it points to is not ours
            return
        for path in last.glob("trainer.*"):
            path.unlink()
        seal(last)

    def total(self, name: str) -> float:
        """Sum of a logged number over all steps."""
        rows = read_metrics(self.folder)
        if bad := [row["step"] for row in rows if name not in row]:
            raise KitError(f"{self.metrics}: step {bad[0]} has no field {name!r}; it was not written by this run.")
        return sum(row[name] for row in rows)

    def reference(self, policy: Policy) -> Policy:
        """The policy that the run started from, for the KL penalty."""
        first = self.folder / "checkpoints" / "step-000000"
        if not first.is_dir():
            raise KitError(f"{first}: the reference of the KL penalty is missing; name another --out.")
        check_seal(first)
        return reference_of(policy, first)

    def log(self, row: Mapping[str, object]) -> None:
        """Append one step to metrics.jsonl, and send it to the run's tracker, if it has one."""
        if not self.writes:
            return
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                short = {name: float(f"{x:.6g}") if isinstance(x, float) else x for name, x in row.items()}
                file.write(json.dumps(short) + "\n")
        except OSError as error:
            raise KitError(f"{self.metrics}: cannot be written ({error.strerror}); --resume continues later.") from None
        if self.tracker:
            self.tracker.log(row)

    def save(self, policy: Policy, optimizer: torch.optim.Optimizer, step: int, position: int) -> None:
        """Write a checkpoint atomically, unless it exists; `position` is the number of examples consumed."""
        final = self.folder / "checkpoints" / f"step-{step:06d}"
        if not self.writes or final.exists():
            return
        writing = final.with_name(f".writing-{os.getpid()}")
        try:
            write_policy(policy, writing)
            state = optimizer.state_dict()["state"]
            tensors = {f"{i}.{field}": t.contiguous() for i, fields in state.items() for field, t in fields.items()}
            blob = safetensors.torch.save(tensors)
            (writing / "trainer.safetensors").write_bytes(blob)
            done = {"step": step, "position": position, "shared": policy.share}
            write_text(writing / "trainer.json", json.dumps(done) + "\n")
            seal(writing)
            writing.replace(final)
        except Exception as error:  # tokenizers and safetensors raise their own instead of OSError
            shutil.rmtree(writing, ignore_errors=True)
            raise KitError(
                f"{final}: the checkpoint cannot be written ({getattr(error, 'strerror', None) or error}); "
                f"the last good one is {self.latest() or 'missing'}."
            ) from None
        for old in checkpoints(self.folder)[1:-KEEP]:
            _remove(old)

    def _sweep(self) -> None:
        """Remove the temporary files of a killed process."""
        for kind in ("writing", "leaving"):
            for folder in self.folder.glob(f"checkpoints/.{kind}-*"):
                shutil.rmtree(folder)
        for name in ("config.json", "metrics.jsonl", "trace.jsonl"):
            for file in self.folder.glob(f".{name}.*"):
                file.unlink()


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint, unless it is a link. It is renamed first, so that a kill never leaves a part of it."""
    if checkpoint.is_symlink():
        return
    leaving = checkpoint.with_name(f".leaving-{checkpoint.name}")
    checkpoint.replace(leaving)
    shutil.rmtree(leaving)


def _load_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put AdamW's state back, as `Run.save` wrote it. Raises ValueError or LookupError if it is not this optimizer's."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, field = name.split(".")
        state.setdefault(int(index), {})[field] = tensor
        if tensor.shape != (() if field == "step" else parameters[int(index)].shape):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}")
    if any(fields.keys() != {"step", "exp_avg", "exp_avg_sq"} for fields in state.values()):
        raise ValueError("the optimizer's state is incomplete")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def thinned(lines: list[tuple[int, str]], before: int) -> str:
    """The lines of a trace, given as (step, line), that are kept when lines of step `before` are added."""
    steps = sorted({step for step, _ in lines if step < before})
    kept = {*steps[:FIRST], *steps[max(0, len(steps) - LAST + 1) :]}
    return "".join(line for step, line in lines if step in kept)


def check_folder(folder: Path, config: Config, resume: bool = False, origin: Origin | None = None) -> None:
    """Raise KitError unless a run with these options may be written to a folder. Writes nothing.

    The folder is new or empty, holds other files than a run's, or, with `resume`, the beginning of this run.
    """
    path = folder / "config.json"
    if folder.exists() and not folder.is_dir():
        raise KitError(f"{folder}: is a file; name a folder with --out.")
    for name in ("config.json", "metrics.jsonl", "trace.jsonl"):
        if (folder / name).is_dir():
            raise KitError(f"{folder / name}: is a folder, where a run writes a file; name another --out.")
    if (folder / "metrics.jsonl").exists():  # training began: before that, the command may simply be repeated
        if not resume:
            raise KitError(f"{folder} already holds a run: pass --resume to continue it, or another --out.")
        origin = origin or {}
        before, now = flat(read_config(folder).to_dict()), flat(config.to_dict())
        check_origin(folder, how_made(folder).get("origin"), origin)
        for name, value in now.items():
            was = before.get(name)
            moved = name in PATHS and Path(str(was)).name == Path(str(value)).name
            pinned = name == "lm.date" and not value  # that of the checkpoint is used
            unread = origin.get("stage") in ("sft", "pretrain") and name.startswith("rl.") and name not in SFT_READS
            longer = name == "rl.steps" and config.rl.lr_decay == "none"  # otherwise the learning rates depend on it
            if was != value and not (moved or pinned or unread or longer or name in MAY_DIFFER):
                why = " (its learning rates fall to zero over them)" if name == "rl.steps" else ""
                raise KitError(f"{folder}: cannot resume with {name} = {value!r}, it began with {was!r}{why}.")
        done = max(map(step_of, checkpoints(folder)), default=-1)
        if done < 0 and (folder / "metrics.jsonl").stat().st_size:
            raise KitError(f"{folder}: has the metrics of a run, but no checkpoint to go on from; name another --out.")
        if origin.get("stage") == "rl" and done > config.rl.steps:
            raise KitError(f"{folder}: {done} steps are done, more than --steps {config.rl.steps}: name another --out.")
    elif path.exists() and not how_made(folder):  # of a model, perhaps
        raise KitError(f"{path}: is not the configuration of a run and would be overwritten; name another --out.")
    check_writable(folder)


def read_json(path: Path, most: int = 10_000_000) -> Any:
    """The JSON value in a file. Raises KitError if it cannot be read, is not JSON, or has more than `most` bytes."""
    try:
        with path.open("rb") as file:
            blob = file.read(most + 1)
        if len(blob) > most:
            raise ValueError(f"more than {most:,} bytes")
        return json.loads(blob)
    except OSError as error:
        raise KitError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise KitError(f"{path}: not JSON ({str(error)[:150]}).") from None


def read_config(folder: str | Path) -> Config:
    """The configuration that a run was made with."""
    path = Path(folder) / "config.json"
    values = read_json(path)
    if not isinstance(values, dict):
        raise KitError(f"{path}: not the configuration of a run (expected an object).")
    values.pop("made", None)
    return Config.from_dict(values, str(path))


def how_made(folder: Path) -> dict[str, object]:
    """How a run was made, from its config.json; empty if that is not a run's."""
    try:
        made = read_json(folder / "config.json").get("made")
    except (KitError, AttributeError):
        return {}
    return made if isinstance(made, dict) else {}


def config_of_checkpoint(path: str | Path) -> Config:
    """The configuration of the run that a checkpoint belongs to: its folder, a checkpoint in it, or an adapter's folder.

    Raises KitError if no config.json of a run is there.
    """
    path = Path(path)
    if path.parent.name == "checkpoints" and (path.parents[1] / "config.json").is_file():
        return read_config(path.parents[1])
    if not path.is_dir():
        raise KitError(f"{path}: no policy here; name the folder of a run, or a checkpoint in it.")
    refuse_adapter(path)
    if (path / "items.json").is_file() or is_whole_model(path) or not (path / "config.json").is_file():
        raise KitError(f"{path}: no run here (its config.json is missing); name the folder of a run.")
    return read_config(path)


def read_metrics(folder: str | Path) -> list[dict[str, float]]:
    """All complete lines of metrics.jsonl, one per step. A last line that a kill truncated is left out."""
    rows: dict[int, dict[str, float]] = {}
    path = Path(folder) / "metrics.jsonl"
    lines = io.BytesIO(path.read_bytes())  # a line ends with \n, and with nothing else
    for number, line in enumerate(lines, start=1):
        try:
            row = read_object(line)
            step, odd = row.get("step"), [name for name, x in row.items() if not isinstance(x, (int, float))]
            if type(step) is not int:
                raise KitError("field 'step' must be a whole number")
            if odd:
                raise KitError(f"field {odd[0][:80]!r} must be a number")
            rows[step] = cast("dict[str, float]", row)
        except KitError as error:
            if line.endswith(b"\n"):
                raise KitError(f"{path}, line {number}: {error}; delete the line.") from None
    return list(rows.values())


def provenance() -> dict[str, object]:
    """Command, versions, hardware and date, for config.json and result files; of a clone of the kit its commit, too."""
    script = Path(sys.argv[0])  # a script by its relative path, as in python data/results/make.py NAME
    called = f"python {script}" if script.suffix == ".py" and not script.is_absolute() else "python -m fgrpo"
    return {
        "command": f"{called} {shlex.join(sys.argv[1:])}".strip(),
        "date": date.today().isoformat(),
        "versions": {
            "fgrpo": __version__, "python": platform.python_version(), "torch": torch.__version__,
            "transformers": transformers.__version__, **commit(),
        },
        "hardware": f"{os.cpu_count()} CPU cores ({platform.machine()}), {torch.get_num_threads()} threads",
    }  # fmt: skip


@cache
def commit() -> dict[str, str]:
    """The kit's own commit, with a `+` where tracked files differ from it; nothing where the kit is not in a clone of it."""
    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        call = ["git", "-C", str(package), *arguments]
        return subprocess.run(call, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != package.parent:  # installed below another repository
            return {}
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")}
    except (OSError, subprocess.SubprocessError):
        return {}


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested values by dotted name: `{"rl": {"lr": 1}}` becomes `{"rl.lr": 1}`."""
    found: dict[str, object] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found
