"""Trackers: the numbers of a run and its traced rollouts also go to trackio or TensorBoard, where one is installed.

They are sent through accelerate's trackers under the names of TRL's GRPOTrainer, with the `train/` that its reports put
before them, so that curves of both lie in one chart. What TRL has no name for keeps the kit's. TRL's `reward_std`,
`frac_reward_zero_std` and `num_tokens` are not sent: they do not follow from metrics.jsonl.

A resumed run goes on where it was: the run's folder keeps its name in the tracker (track.json), steps that are repeated
after a kill are sent once, and steps that were made before there was a tracker are sent first. A tracker that fails is
reported once and then left alone.
"""

import json
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from typing import Any

import torch

from ..config import Config, KitError
from ..prompt import PHASE_RANK, PHASE_SLATE
from ..tasks.atomic import write_text
from ..trainer import Stage
from .run import Run, flat, read_json, read_metrics
from .trace import Group, credit_of

TRACKERS = {"trackio": ("trackio",), "tensorboard": ("tensorboard", "tensorboardX")}
"""by name, the packages of which one is needed"""
PROJECT = "fgrpo"
NAMES = {
    "kl_reference": "kl", "seconds": "step_time", "reward/slate": "rewards/slate/mean",
    "reward/rank": "rewards/rank/mean", "reward/format": "rewards/format/mean",
}  # fmt: skip
"""names of metrics.jsonl and TRL's"""
COLUMNS = ("step", "prompt", "completion", "slate", "rank", "error", "reward_slate", "reward_rank", "advantage_slate",
           "advantage_rank")  # fmt: skip


def check_tracker(name: str) -> None:
    """Raise KitError unless a tracker of this name is known, and installed."""
    if name not in TRACKERS:
        raise KitError(f"--track {name}: choose one of {', '.join(TRACKERS)}.")
    if not any(find_spec(package) for package in TRACKERS[name]):
        raise KitError(
            f"--track {name}: the package {TRACKERS[name][0]} is not installed; pip install it, or leave it out."
        )


def trl_names(row: Mapping[str, float], config: Config, lr: float) -> dict[str, float]:
    """One step of metrics.jsonl under TRL's names, without `train/`. `lr`: the step's learning rate.

    `reward` is slate + lam * rank + format. TRL has one entropy and one clip ratio, over all tokens: here they are the mean
    of the two phases, each of which has its own number beside it. `completions/mean_length` counts the tokens drawn, not
    those that the grammar forces.
    """
    found = {NAMES.get(name, name): value for name, value in row.items() if name not in ("step", "tokens")}
    found["learning_rate"] = lr
    if "reward/slate" in row:
        found["reward"] = row["reward/slate"] + config.rl.lam * row["reward/rank"] + row["reward/format"]
        found["completions/mean_length"] = row["tokens"] / (config.rl.queries * config.rl.group)
    for ours, theirs in (("entropy", "entropy"), ("clipfrac", "clip_ratio/region_mean")):
        phases = [row[f"{ours}/{phase}"] for phase in ("slate", "rank") if f"{ours}/{phase}" in row]
        if phases:
            found[theirs] = sum(phases) / len(phases)
    return found | ({"tokens": row["tokens"]} if "tokens" in row else {})


def completions(groups: Sequence[Group], config: Config) -> list[dict[str, object]]:
    """The sampled rollouts of some groups as rows of a table (COLUMNS): lists by title, advantages as means over a phase."""
    rows: list[dict[str, object]] = []
    for group in groups:
        if not group.rollouts:
            continue
        try:
            rewards, advantages = credit_of(group, config)
            scores = torch.stack((rewards.slate[0], rewards.rank[0]), dim=1).tolist()  # (G, 2)
        except KitError:  # of one rollout, for example: it has no advantage
            scores, advantages = [[None, None]] * len(group.rollouts), None
        for i, rollout in enumerate(group.rollouts):
            row: list[object] = [group.step, group.example.query, " ".join(rollout.tokens)]
            row += [
                "; ".join(group.example.candidates[j] for j in part)
                for part in (rollout.output.slate, rollout.output.rank)
            ]
            row += [rollout.output.error, *scores[i]]
            for phase in (PHASE_SLATE, PHASE_RANK):
                places = [j for j, p in enumerate(rollout.phases) if p == phase]
                mean = None if advantages is None or not places else advantages[i, places].mean()
                row.append(None if mean is None else float(mean))
            rows.append(dict(zip(COLUMNS, row, strict=True)))
    return rows


def as_markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as a table for TensorBoard's texts."""
    lines = [[*COLUMNS], ["---"] * len(COLUMNS)]
    lines += [["" if row[name] is None else str(row[name]).replace("|", "\\|") for name in COLUMNS] for row in rows]
    return "\n".join(f"| {' | '.join(' '.join(cell.split()) for cell in line)} |" for line in lines)


class Tracker:
    """A run's connection to a tracker. No method raises an Exception: the first one ends the connection."""

    def __init__(self, name: str, run: Run, stage: Stage):
        """`name`: one of TRACKERS. Connects, and sends what the run has logged already but not yet sent."""
        self.name, self.run, self.stage = name, run, stage
        self.tracker: Any = None
        self.sent = self.before = 0  # last step that was sent, and that was sent before this process began
        with self._guarded():
            rows = read_metrics(run.folder) if run.metrics.exists() else []
            self.tracker = self._connect([int(row["step"]) for row in rows])
            for row in rows:
                self.log(row)

    def _connect(self, steps: Sequence[int]) -> Any:
        from accelerate import PartialState
        from accelerate.tracking import TensorBoardTracker, TrackioTracker

        PartialState()  # which their log messages ask for; there is one already if several processes train
        path = self.run.folder / "track.json"
        known = read_json(path) if path.is_file() else {}
        if known.get(self.name):
            self.sent = self.before = max(steps, default=0)
        else:
            known[self.name] = f"{self.run.name}-{uuid.uuid4().hex[:6]}"  # names of folders repeat: seed0, seed1, ...
            write_text(path, json.dumps(known) + "\n")
        if self.name == "trackio":
            tracker: Any = TrackioTracker(
                PROJECT, name=known[self.name], config=flat(self.run.config.to_dict()), resume="allow", embed=False,
                auto_log_cpu=False, auto_log_gpu=False,
            )  # fmt: skip
        else:
            tracker = TensorBoardTracker("tensorboard", self.run.folder)
        tracker.start()
        return tracker

    def log(self, row: Mapping[str, object]) -> None:
        """Send the numbers of one step, as metrics.jsonl has them, unless they were sent."""
        step = int(row["step"])  # type: ignore[call-overload]
        with self._guarded():
            if self.tracker and step > self.sent:
                values = trl_names(row, self.run.config, self.stage.lr(step - 1))  # type: ignore[arg-type]
                self.tracker.log({f"train/{name}": value for name, value in values.items()}, step=step)
                self.sent = step

    def rollouts(self, groups: Sequence[Group]) -> None:
        """Send the traced rollouts of a step as a table."""
        with self._guarded():
            # a run that is resumed traces the step that it begins with once more
            rows = (
                completions([g for g in groups if (g.step or 0) > self.before], self.run.config) if self.tracker else []
            )
            if not rows:
                return
            table: object = as_markdown(rows)
            if self.name == "trackio":
                import trackio

                table = trackio.Table(columns=[*COLUMNS], data=[[*row.values()] for row in rows])
            self.tracker.log({"completions": table}, step=groups[0].step)

    def finish(self) -> None:
        """Send what is still waiting, and disconnect."""
        with self._guarded():
            if self.tracker and self.name == "trackio":
                import trackio

                trackio.finish()  # the tracker's own leaves the run open until the process ends
            elif self.tracker:
                self.tracker.finish()
        self.tracker = None

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """What trackers print goes to stderr; what they raise ends the connection, and is reported."""
        try:
            with redirect_stdout(sys.stderr):
                yield
        except Exception as error:
            self.tracker = None
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            print(f"fgrpo: the tracker {self.name} failed ({reason}); the run goes on without it.", file=sys.stderr)


@contextmanager
def tracking(name: str, run: Run, stage: Stage) -> Iterator[None]:
    """While a run trains, send it to a tracker; with an empty `name`, or where another process writes, do nothing."""
    if not name or not run.writes:
        yield
        return
    run.tracker = Tracker(name, run, stage)
    try:
        yield
    except KeyboardInterrupt:  # a second Ctrl-C does not wait
        run.tracker = None
        raise
    finally:  # of a run that is stopped or fails, what was done so far is sent
        if run.tracker:
            run.tracker.finish()
            run.tracker = (
                None  # each knows the other: without this, the folder's lock would be held until both are collected
            )
