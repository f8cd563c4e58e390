"""Speed of the lab on one core: SFT and RL steps of the tiny policy, against the time of their matrix products alone.

Each round takes one SFT step, one RL step and the products of both, in turn, so that other work on the machine slows all
of them alike; the first round is discarded, and each number is the median of the others. Seconds are CPU seconds of the
process on one thread, which others' work changes less than wall time; that is given beside them.

The floor is a lower limit for any implementation on this library of matrix products: torch.mm on matrices of the same
shapes, once through every linear layer for each prompt token and each token fed in sampling, forward and backward (three
products for one) for each token of the loss, and a head of the grammar's choices. RL's prompts count once for sampling
and loss together, as do tokens after the last choice: not at all. Attention's own products are left out.
"""

import statistics
import time
from collections import Counter
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

Shape = tuple[int, int, int]  # (m, k) times (k, n)


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
    shapes = products(policy, *read[-1], sampled)  # of the loss, after any comparison
    matrices = {s: (torch.randn(s[0], s[1]), torch.randn(s[1], s[2])) for s in shapes}
    cpu = time.process_time()
    for shape, count in shapes.items():
        a, b = matrices[shape]
        for _ in range(count):
            torch.mm(a, b)
    return spent | {"floor": time.process_time() - cpu}


def products(policy: Policy, prompts: Prompts, wanted: torch.Tensor, sampled: bool) -> Counter[Shape]:
    """Shapes of the matrix products that a step cannot do without, and how many of each.

    wanted (B, T): tokens that were chosen. A token is fed if another one of its row is chosen after it.
    """
    head = policy.model.get_output_embeddings()
    layers = [m for m in policy.model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    each = (wanted.sum(1, keepdim=True) > wanted.cumsum(1)).sum(1)  # tokens fed of each row
    encoded, fed, chosen = int(prompts.mask.sum()), int(each.sum()), int(wanted.sum())
    sizes = [(encoded + fed, m.in_features, m.out_features) for m in layers]
    sizes.append((chosen, head.in_features, prompts.choices.tokens.shape[1]))
    found: Counter[Shape] = Counter()
    for n, inputs, outputs in sizes:
        found.update([(n, inputs, outputs), (n, outputs, inputs), (outputs, n, inputs)])
    if sampled and fed:
        steps = int(each.max())
        for n, inputs, outputs in [(fed, m.in_features, m.out_features) for m in layers] + sizes[-1:]:
            found[-(-n // steps), inputs, outputs] += steps
    return found


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
