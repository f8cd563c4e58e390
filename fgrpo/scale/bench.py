"""Speed and memory of one training step: with the prompt shared, with the prompt repeated, and of TRL's GRPOTrainer.

All three use the same random Qwen3-architecture model, prompts, group size, optimizer, dtype and number of threads, and
write completions of the same length (ours by a grammar with full lists, TRL by min_new_tokens). Their steps alternate,
the first one of each is discarded, and each number is the median of the others, with minimum and maximum. `loss` is the
loss with its backward pass and the optimizer's step. In a whole `step` of ours a prompt is encoded once for sampling and
loss together, so that a step may take less time than its parts. On one thread of a CPU, seconds are CPU seconds, which
other work on the machine changes less than wall time. Beside each figure is the floor of sharing (fgrpo/scale/floor.py),
attention included.
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from .. import trainer
from ..config import Config, KitError
from ..data import Example
from ..lm.rows import RowPolicy
from ..policy import Policy
from ..rollout import Rollouts, drawn_tokens, rollout
from ..runs.fields import config_with
from ..runs.workers import without_ctrl_c, workers
from ..trainer import sampling_of
from .floor import products
from .floor import seconds as seconds_of

P = ParamSpec("P")
R = TypeVar("R")
Row = dict[str, str | int | float]
OURS = ("shared", "unshared")
PARTS = ("loss", "rollout", "step")
RANK = 5
TIMED = ("rollout", "score", "assign_credit", "policy_loss", "update")


@dataclass(frozen=True)
class Case:
    """One case of the benchmark: tokens of the prompt (P) and of each completion (C), rollouts per query (G), and sizes."""

    prompt: int = 512
    completion: int = 48
    group: int = 8
    pool: int = 64
    queries: int = 2
    layers: int = 4
    hidden_size: int = 256
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1

    def __post_init__(self) -> None:
        slate = self.completion - RANK - 5
        if not RANK <= slate <= self.pool:
            low, high = 2 * RANK + 5, self.pool + RANK + 5
            raise KitError(f"completion {self.completion} must be from {low} to {high} for a pool of {self.pool}.")
        if self.prompt < self.pool + 3:
            raise KitError(f"prompt {self.prompt} must be at least {self.pool + 3} for a pool of {self.pool}.")

    @property
    def ceiling(self) -> float:
        """Tokens with the prompt repeated over tokens with it shared: G (P + C) / (P + G C)."""
        p, c, g = self.prompt, self.completion, self.group
        return g * (p + c) / (p + g * c)

    def config(self) -> Config:
        """The training configuration of this case."""
        return config_with(
            slate_size=self.completion - RANK - 5, rank_size=RANK, full=True, group=self.group, queries=self.queries,
            hidden_size=self.hidden_size, layers=self.layers, heads=4, lr=1e-6, device=self.device,
        )  # fmt: skip

    @property
    def items(self) -> list[str]:
        """The catalogue."""
        return [f"item {n}" for n in range(max(1000, self.prompt))]

    def policy(self) -> Policy:
        """A policy with the same random weights at every call."""
        policy = RowPolicy.tiny(self.items, self.config().model)
        policy.model.config.max_position_embeddings = 4 * self.prompt
        policy.model.to(dtype=getattr(torch, self.dtype))
        return policy.to(self.device)

    def batch(self, number: int) -> list[Example]:
        """The queries of step `number`, which differ between steps; every prompt has exactly `prompt` tokens."""
        rng, queries = random.Random(number), []
        for n in range(self.queries):
            items = rng.sample(self.items, self.prompt - 2)
            pool, history = tuple(items[: self.pool]), tuple(items[self.pool :])
            queries.append(Example(f"{number}-{n}", "", history, pool, frozenset([0, 1])))
        return queries


@dataclass
class Spent:
    """Seconds of one step by function, and what each function returned last."""

    seconds: dict[str, float] = field(default_factory=dict)
    results: dict[str, object] = field(default_factory=dict)


@contextmanager
def timed(owner: object, names: Sequence[str], device: str) -> Iterator[Spent]:
    """Add up the seconds spent in the named functions of a module or object while the block runs."""
    spent, originals = Spent(), {name: getattr(owner, name) for name in names}

    def wrap(name: str, function: Callable[P, R]) -> Callable[P, R]:
        def timed_function(*args: P.args, **kwargs: P.kwargs) -> R:
            began = _now(device)
            result = function(*args, **kwargs)
            spent.seconds[name] = spent.seconds.get(name, 0.0) + _now(device) - began
            spent.results[name] = result
            return result

        return timed_function

    for name, function in originals.items():
        setattr(owner, name, wrap(name, function))
    began = _now(device)
    try:
        yield spent
        spent.seconds["step"] = _now(device) - began
    finally:
        for name, function in originals.items():
            setattr(owner, name, function)


def ours(case: Case, method: str) -> Callable[[int], dict[str, float]]:
    """A function that runs step `number` of the kit's own trainer and returns the seconds of its parts."""
    policy, config = case.policy(), case.config()
    policy.share, policy.checked = method == "shared", {case.group: sys.maxsize}  # nothing is compared
    optimizer = torch.optim.AdamW([p for p in policy.model.parameters() if p.requires_grad], lr=1e-6)

    def run(number: int) -> dict[str, float]:
        with timed(trainer, TIMED, case.device) as spent:
            trainer.step(policy, optimizer, case.batch(number), config, number)
        s, began = spent.seconds, _now(case.device)
        rollouts, advantages = spent.results["rollout"], spent.results["assign_credit"]
        assert isinstance(rollouts, Rollouts) and isinstance(advantages, torch.Tensor)
        if rollouts.mask.sum() != case.queries * case.group * case.completion:
            raise KitError(f"{method}: completions do not have {case.completion} tokens each.")
        alone = replace(rollouts, tree=None)  # by itself, the loss has to encode the prompt
        loss, _ = trainer.policy_loss(policy, alone, advantages, config.rl)
        trainer.update(policy, optimizer, loss, config.rl.max_grad_norm)
        s["loss"] = _now(case.device) - began
        return {"loss": s["loss"], "rollout": s["rollout"], "step": s["step"],
                "credit": s["score"] + s["assign_credit"]}  # fmt: skip

    return run


def trl(case: Case, method: str = "trl") -> Callable[[int], dict[str, float]]:
    """Like `ours`, for TRL's GRPOTrainer with its Dr. GRPO loss, without gradient checkpointing."""
    try:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        raise KitError(f"--peers trl needs the extra `peers`: pip install -e '.[peers]' ({error}).") from None
    policy = case.policy()
    prompts = [[policy.labels.prompt(e) for e in case.batch(n)] for n in range(50)]
    folder = tempfile.mkdtemp(prefix="fgrpo-bench-")
    options = GRPOConfig(
        output_dir=folder, use_cpu=case.device == "cpu", per_device_train_batch_size=case.queries * case.group,
        num_generations=case.group, max_completion_length=case.completion, loss_type="dr_grpo", scale_rewards="none",
        beta=0.0, temperature=1.0, gradient_checkpointing=False, bf16=case.dtype == "bfloat16", report_to=[],
        generation_kwargs={"min_new_tokens": case.completion}, learning_rate=1e-6, logging_steps=10_000,
    )  # fmt: skip
    rng = random.Random(0)
    peer = GRPOTrainer(
        model=deepcopy(policy.model), args=options, processing_class=policy.tokenizer,
        reward_funcs=lambda completions, **_: [rng.random() for _ in completions],  # type: ignore[arg-type]
        train_dataset=Dataset.from_list([{"prompt": p} for row in prompts for p in row]),
    )  # fmt: skip
    peer.create_optimizer()
    peer.current_gradient_accumulation_steps = 1

    def run(number: int) -> dict[str, float]:
        rows = [{"prompt": p} for p in prompts[number] for _ in range(case.group)]
        with timed(peer, ("_generate_and_score_completions",), case.device) as spent:
            peer.training_step(peer.model, rows, None)
            peer.optimizer.step()  # type: ignore[union-attr]
            peer.optimizer.zero_grad()  # type: ignore[union-attr]
        rollout = spent.seconds["_generate_and_score_completions"]
        return {"loss": spent.seconds["step"] - rollout, "rollout": rollout, "step": spent.seconds["step"]}

    return run


def floor(case: Case) -> Callable[[int], dict[str, float]]:
    """Like `ours`, for the matrix products alone."""
    policy, config = case.policy(), case.config()
    policy.checked = {case.group: sys.maxsize}
    r = rollout(policy, case.batch(0), sampling_of(config), case.group, 0)
    shapes = {part: products(policy, r.prompts, drawn_tokens(r), part, attention=True) for part in PARTS}
    like = policy.parameters()[0].detach()
    return lambda number: {part: seconds_of(found, like, lambda: _now(case.device)) for part, found in shapes.items()}


def bench(
    case: Case, peers: Sequence[str] = (), repeats: int = 5, memory: bool = True, own: Sequence[str] = OURS
) -> list[Row]:
    """Rows of one case: for each method its loss with backward pass and update, its rollout, and its whole step.

    `own`: the kit's ways that are measured; what needs one that is left out is empty.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    makers = {**dict.fromkeys(own, ours), **({"trl": trl} if "trl" in peers else {})}
    runs = {method: make(case, method) for method, make in makers.items()}
    timed_runs = {**runs, "floor": floor(case)}
    rounds: dict[str, list[dict[str, float]]] = {method: [] for method in timed_runs}
    for number in range(repeats + 1):
        for method, run in timed_runs.items():
            rounds[method].append(run(number))
    torch.set_num_threads(threads)
    on_gpu, peaks = case.device.startswith("cuda"), {}
    for method, run in runs.items() if memory else ():
        peaks[method] = allocated(partial(run, repeats + 1)) if on_gpu else peak_memory(case, method)
    middle = {m: {p: statistics.median(r[p] for r in rounds[m][1:]) for p in rounds[m][0]} for m in rounds}
    rows: list[Row] = []
    for part in PARTS:
        for method in runs:
            seconds = [r[part] for r in rounds[method][1:]]
            share = middle[method].get("credit", 0.0) / middle[method]["step"]
            gain = middle["unshared"][part] / middle[method][part] if "unshared" in runs else None
            written, least = case.queries * case.group * case.completion / middle[method][part], middle["floor"][part]
            rows.append({
                "prompt": case.prompt, "completion": case.completion, "group": case.group, "pool": case.pool,
                "part": part, "method": method, "seconds": round(middle[method][part], 4),
                "min": round(min(seconds), 4), "max": round(max(seconds), 4), "runs": repeats,
                "trl_over_this": round(middle["trl"][part] / middle[method][part], 2) if "trl" in runs else "",
                "tokens_per_second": round(written) if part == "rollout" else "", "floor_seconds": round(least, 4),
                "times_floor": round(middle[method][part] / least, 2),
                "unshared_over_this": round(gain, 2) if gain else "",
                "ceiling": round(case.ceiling, 2),
                "of_ceiling": round(gain / case.ceiling, 3)
                if gain and method == "shared" and part == "loss" else "",
                "peak_mb": round(peaks[method], 1) if memory and part == "step" else "",
                "credit_share": round(share, 5) if method in OURS and part == "step" else "",
            })  # fmt: skip
    return rows


def allocated(step: Callable[[], object]) -> float:
    """Peak memory (MB) that a step allocates on a GPU, above what was allocated before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = float(torch.cuda.memory_allocated())
    step()
    return float(torch.cuda.max_memory_allocated() - before) / 1e6


def peak_memory(case: Case, method: str) -> float:
    """Peak memory (MB, resident set) of one step on the CPU, above that of model, prompts and libraries.

    These are loaded before it. Each method runs in its own process, so that none reuses memory of another.
    """
    with workers(1) as pool:
        with without_ctrl_c():
            peak = pool.submit(_peak_memory, case, method)
        return peak.result()


def _peak_memory(case: Case, method: str) -> float:
    torch.set_num_threads(case.threads)
    run = trl(case) if method == "trl" else ours(case, method)
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        raise KitError("peak memory on the CPU is read from /proc, which this system does not have: pass --no-memory.")
    reset.write_text("5")
    before = _status("VmRSS")
    run(0)
    return (_status("VmHWM") - before) / 1e3


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(name + ":")).split()[1])


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.process_time() if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def format_bench(rows: list[Row]) -> str:
    """The rows as an aligned text table."""
    head = list(rows[0])
    lines = [[str(row[name]) for name in head] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in lines)) for i, name in enumerate(head)]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in [head, *lines])
