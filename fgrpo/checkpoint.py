"""A run's folder: what it was, what it logged, and checkpoints that are whole or absent.

    config.json                   the configuration; command, versions, hardware, date
    metrics.jsonl                 one line per step
    trace.jsonl                   what the policy wrote, token by token (fgrpo.trace)
    checkpoints/step-000025/      policy (safetensors, tokenizer), trainer.safetensors (optimizer, RNG), trainer.json

A checkpoint is written under another name and renamed when it is complete, so that a kill at any moment leaves the
checkpoints before it. The first one (step 0) is kept as the reference policy, of the others the last two.
"""

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from safetensors import SafetensorError

from . import __version__
from .config import Config, KitError
from .data import write_text
from .distributed import processes
from .lm import POLICY_FILE
from .policy import Policy

KEEP = 2


class Run:
    """One training run on disk."""

    def __init__(
        self, folder: str | Path, config: Config, resume: bool = False, save_every: int = 25, writes: bool = True
    ):
        """Open a run folder. Raises KitError if it holds another run, or one that `resume` was not asked to go on.

        Of several processes one alone `writes`; the others read what it wrote.
        """
        self.folder, self.config, self.save_every, self.writes = Path(folder), config, save_every, writes
        self.name = self.folder.name
        self.metrics, self.trace = self.folder / "metrics.jsonl", self.folder / "trace.jsonl"
        if not writes:
            return
        if self.metrics.exists():  # it began to train: a call that failed before may simply be repeated
            if not resume:
                raise KitError(f"{self.folder} already holds a run: pass --resume to go on, or another --out.")
            self._compare(read_config(self.folder))
        made = {**provenance(), "processes": processes()}
        write_text(self.folder / "config.json", json.dumps({**config.to_dict(), "made": made}, indent=2) + "\n")

    def _compare(self, old: Config) -> None:
        before, now = (_flat(c.to_dict()) for c in (old, self.config))
        for name, value in now.items():
            if name not in ("rl.steps", "device") and before.get(name) != value:
                raise KitError(
                    f"{self.folder}: cannot resume with {name} = {value!r}, it began with {before.get(name)!r}."
                )

    def latest(self) -> Path | None:
        """The newest whole checkpoint, or None."""
        return max(self.folder.glob("checkpoints/step-*"), default=None)

    def restore(
        self,
        policy: Policy,
        make_optimizer: Callable[[Policy], torch.optim.Optimizer],
        generator: torch.Generator,
    ) -> tuple[Policy, torch.optim.Optimizer, int]:
        """Policy, optimizer and steps done, from the latest checkpoint, or from `policy` in a new run.

        Also sets the generator, and cuts metrics.jsonl back to the steps that the checkpoint holds.
        """
        for left in self.folder.glob("checkpoints/.writing-*") if self.writes else ():
            shutil.rmtree(left)
        folder = self.latest()
        if folder is None:
            write_text(self.metrics, "")
            optimizer = make_optimizer(policy)
            self.save(policy, optimizer, generator, 0, 0)
            return policy, optimizer, 0
        policy = policy.reload(folder, self.config.lm)
        optimizer = make_optimizer(policy)
        try:
            tensors = safetensors.torch.load_file(folder / "trainer.safetensors")
            done = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))["step"]
            generator.set_state(tensors.pop("generator"))
            state: dict[int, dict[str, torch.Tensor]] = {}
            for name, tensor in tensors.items():
                index, field = name.split(".")
                state.setdefault(int(index), {})[field] = tensor
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise KitError(
                f"{folder}: the checkpoint is damaged ({str(error)[:150]}); delete it to go on from the one before."
            ) from None
        if self.writes:
            rows = [row for row in read_metrics(self.folder) if row["step"] <= done]
            write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))
        return policy, optimizer, done

    def strip(self) -> None:
        """Keep the last policy alone, without what resuming needs: for a checkpoint to be handed on."""
        *old, last = sorted(self.folder.glob("checkpoints/step-*"))
        for folder in old:
            shutil.rmtree(folder)
        for path in last.glob("trainer.*"):
            path.unlink()

    def total(self, name: str) -> float:
        """Sum of a logged number over all steps."""
        return sum(row[name] for row in read_metrics(self.folder))

    def reference(self, policy: Policy) -> Any:
        """The policy that the run started from, for the KL penalty."""
        return policy.reference(self.folder / "checkpoints" / "step-000000")

    def log(self, row: dict[str, Any]) -> None:
        """Append one step to metrics.jsonl."""
        if not self.writes:
            return
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise KitError(f"{self.metrics}: cannot be written ({error.strerror}); --resume goes on later.") from None

    def save(
        self, policy: Policy, optimizer: torch.optim.Optimizer, generator: torch.Generator, step: int, position: int
    ) -> None:
        """Write a checkpoint, whole or not at all; `position` is the number of examples consumed."""
        if not self.writes:
            return
        final = self.folder / "checkpoints" / f"step-{step:06d}"
        writing = final.with_name(f".writing-{os.getpid()}")
        try:
            policy.save(writing)
            state = optimizer.state_dict()["state"]
            tensors = {f"{i}.{field}": t.contiguous() for i, fields in state.items() for field, t in fields.items()}
            blob = safetensors.torch.save({**tensors, "generator": generator.get_state()})
            (writing / "trainer.safetensors").write_bytes(blob)
            write_text(writing / "trainer.json", json.dumps({"step": step, "position": position}) + "\n")
            writing.replace(final)
        except (OSError, SafetensorError, KitError) as error:
            shutil.rmtree(writing, ignore_errors=True)
            raise KitError(
                f"{final}: the checkpoint cannot be written ({getattr(error, 'strerror', None) or error}); "
                f"the last good one is {self.latest()}."
            ) from None
        for old in sorted(self.folder.glob("checkpoints/step-*"))[1:-KEEP]:
            shutil.rmtree(old)


def read_config(folder: str | Path) -> Config:
    """The configuration that a run was made with."""
    path = Path(folder) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values.pop("made", None)
    except (OSError, ValueError, AttributeError) as error:
        raise KitError(f"{path}: not the configuration of a run ({error}).") from None
    return Config.from_dict(values, str(path))


def read_metrics(folder: str | Path) -> list[dict[str, float]]:
    """All whole lines of metrics.jsonl; a last line that a kill cut short is left out."""
    rows = []
    path = Path(folder) / "metrics.jsonl"
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if line.endswith("\n"):
                raise KitError(f"{path}, line {number}: not JSON; delete the line.") from None
    return rows


def policy_folder(path: str | Path) -> Path:
    """Where a policy lies: the folder itself, or the latest checkpoint of a run's folder."""
    path = Path(path)
    if (path / "items.json").is_file() or (path / POLICY_FILE).is_file():
        return path
    return max(path.glob("checkpoints/step-*"), default=path)


def provenance() -> dict[str, Any]:
    """Command, versions, hardware and date, for config.json and result files."""
    return {
        "command": " ".join(["python -m fgrpo", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "versions": {
            "fgrpo": __version__, "python": platform.python_version(), "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "hardware": f"{os.cpu_count()} CPU cores ({platform.machine()}), {torch.get_num_threads()} threads",
    }  # fmt: skip


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
