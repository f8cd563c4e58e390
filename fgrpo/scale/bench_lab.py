"""Speed of the lab on one core: SFT and RL steps of the tiny policy, against the time of their matrix products alone.

Each round takes one SFT step, one RL step and the products of both, in turn, so that other work on the machine slows all
of them alike; the first round is discarded, and each number is the median of the others. Seconds are CPU seconds of the
process on one thread, which others' work changes less than wall time; that is given beside them.

The floor (fgrpo/scale/floor.py) leaves attention's products out.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ..config import Config
from ..data import Example
from ..policy import Policy, Prompts
from ..runs.sft import sft_step, without_full
from ..trainer import Logs, step
from .bench import Row
from .floor import products, seconds


@dataclass(frozen=True)
class Stage:
    """What is timed: a step of training, on how many queries."""

    name: str
    step: Callable[..., Logs]
    queries: int
    config: Config


def bench_lab(policy: Policy, examples: Sequence[Example], config: Config, repeats: int = 15) -> list[Row]:
    """One row for SFT and one for RL. The policy is trained meanwhile; `examples` are used in turn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    free = without_full(config)  # demonstrations are of any length
    stages = [Stage("sft", sft_step, config.sft.sft_batch, free), Stage("rl", step, config.rl.queries, config)]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)
    rounds: dict[str, list[dict[str, float]]] = {stage.name: [] for stage in stages}
    for number in range(repeats + 1):
        for stage in stages:
            queries = [examples[(number * stage.queries + i) % len(examples)] for i in range(stage.queries)]
            do = partial(stage.step, policy, optimizer, queries, stage.config, number)
            rounds[stage.name].append(_timed_step(policy, do, stage.name == "rl"))
    torch.set_num_threads(threads)
    return [_row(stage, rounds[stage.name][1:]) for stage in stages]


def _timed_step(policy: Policy, do: Callable[[], Logs], sampled: bool) -> dict[str, float]:
    """CPU and wall seconds of a step and of its matrix products, and the tokens it drew or imitated."""
    read: list[tuple[Prompts, torch.Tensor]] = []
    original = policy.completion_logits

    def recorded(prompts: Prompts, completions: torch.Tensor, wanted: torch.Tensor, *args: object) -> torch.Tensor:
        read.append((prompts, wanted))
        return original(prompts, completions, wanted, *args)  # type: ignore[arg-type]

    setattr(policy, "completion_logits", recorded)  # noqa: B010
    try:
        cpu, wall = time.process_time(), time.perf_counter()
        logs = do()
        spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "tokens": logs["tokens"]}
    finally:
        delattr(policy, "completion_logits")
    shapes = products(policy, *read[-1], "step" if sampled else "loss")  # of the loss, after any comparison
    return spent | {"floor": seconds(shapes, policy.parameters()[0])}


def _row(stage: Stage, rounds: list[dict[str, float]]) -> Row:
    cpu = [r["cpu"] for r in rounds]
    middle = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    return {
        "stage": stage.name, "queries": stage.queries, "group": stage.config.rl.group if stage.name == "rl" else 1,
        "full": int(stage.config.grammar.full), "tokens": round(middle["tokens"]), "cpu_seconds": round(middle["cpu"], 4),
        "min": round(min(cpu), 4), "max": round(max(cpu), 4), "wall_seconds": round(middle["wall"], 4),
        "runs": len(rounds), "steps_per_second": round(1 / middle["cpu"], 2),
        "tokens_per_second": round(middle["tokens"] / middle["cpu"]), "floor_seconds": round(middle["floor"], 4),
        "times_floor": round(middle["cpu"] / middle["floor"], 2),
    }  # fmt: skip
