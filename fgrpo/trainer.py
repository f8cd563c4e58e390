"""F-GRPO, whole: `step` is the algorithm, `fit` repeats it with data, metrics and checkpoints.

Deviations from the paper are listed in the README.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .config import Config, KitError
from .credit import assign_credit, check_credit, zero_variance
from .data import Example, Stream
from .loss import masked_mean, policy_loss
from .policy import Policy, Sampling
from .prompt import PHASE_RANK, PHASE_SLATE
from .rewards import Rewards, score
from .rollout import Rollouts, drawn_tokens, rollout

Logs = dict[str, float]


class Team:
    """The processes that share a run. Here one by itself; fgrpo.scale.processes.Processes are several."""

    size, main = 1, True  # `main`: this process writes the files and prints

    def device(self, device: str) -> str:  # of this process
        return device

    def share(self, queries: Sequence[Example]) -> list[Example]:  # this process's queries of a batch
        return list(queries)

    def sum(self, value: float) -> float:  # over the processes
        return value

    def agree(self, rollouts: Rollouts) -> Rollouts:  # on the divisor of the loss, `longest`
        return rollouts

    def mean_gradients(self, parameters: Sequence[Tensor], loss: float) -> float:  # in place; returns the mean loss
        return loss

    def reduce(self, logs: Logs, rollouts: Rollouts | None) -> Logs:  # numbers of the whole batch, from those of each
        return logs

    def first(self) -> AbstractContextManager[None]:  # a block that the main process goes through before the others
        return nullcontext()

    def prepare(self, *models: object) -> None: ...  # set the precision in which models compute
    def leave(self) -> None: ...  # the work in common is done


ALONE = Team()


def step(
    policy: Policy, optimizer: torch.optim.Optimizer, queries: Sequence[Example], config: Config, number: int = 0,
    reference: Policy | None = None, team: Team = ALONE,
) -> Logs:  # fmt: skip
    """RL step `number`: sample, score, assign credit, update. `queries` (Q) are those of this process."""
    rollouts = rollout(
        policy, queries, sampling_of(config), config.rl.group, config.seed, number, rankings=config.rl.rankings,
        micro=config.lm.micro, keep_prompts=True,
    )  # B = Q * G completions of T tokens  # fmt: skip
    rollouts = team.agree(rollouts)
    rewards = score(rollouts, queries, config.rl, config.seed, number)  # slate, rank, format: (Q, G) each
    advantages = assign_credit(rewards, rollouts, config.rl, team.sum)  # (B, T): one number per token
    for _ in range(config.rl.epochs):
        loss, logs = policy_loss(policy, rollouts, advantages, config.rl, reference)  # scalar
        logs["grad_norm"] = update(policy, optimizer, loss, config.rl.max_grad_norm, team)
    return team.reduce(logs | describe(rollouts, rewards, advantages), rollouts)


def update(
    policy: Policy, optimizer: torch.optim.Optimizer, loss: Tensor, max_norm: float, team: Team = ALONE
) -> float:
    """One optimizer step, on the mean of the gradients of all processes.

    Returns the gradient's norm before clipping. Raises FloatingPointError if loss or gradient is not finite.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    total = team.mean_gradients(policy.parameters(), loss.item())
    norm = float(torch.nn.utils.clip_grad_norm_(policy.parameters(), max_norm))
    if not (math.isfinite(total) and norm < float("inf")):
        raise FloatingPointError(f"loss {total:.4g}, gradient norm {norm:.4g}")
    optimizer.step()
    return norm


def describe(rollouts: Rollouts, rewards: Rewards, advantages: Tensor) -> Logs:
    """What happened in one rollout batch, under the names that metrics.jsonl uses."""
    outputs, logs = rollouts.outputs, {"reward/format": rewards.format.mean().item()}
    for name, phase in (("slate", PHASE_SLATE), ("rank", PHASE_RANK)):
        reward = getattr(rewards, name)
        logs[f"reward/{name}"] = reward.mean().item()
        paid = reward + getattr(rewards, f"{name}_format")
        logs[f"zero_variance/{name}"] = zero_variance(paid).float().mean().item()
        logs[f"advantage_std/{name}"] = masked_mean(advantages.square(), rollouts.phase == phase).sqrt().item()
    logs["slate_length"] = sum(len(o.slate) for o in outputs) / len(outputs)
    logs["format_errors"] = sum(bool(o.error) for o in outputs) / len(outputs)
    return logs | {"tokens": sampled_tokens(rollouts)}


def sampled_tokens(rollouts: Rollouts) -> int:
    """Completion tokens drawn, not forced by the grammar; a slate that K rankings share is counted once."""
    drawn = drawn_tokens(rollouts)
    slate = ((rollouts.phase == PHASE_SLATE) & drawn)[:: rollouts.rankings].sum()
    return int(slate + ((rollouts.phase == PHASE_RANK) & drawn).sum())


def sampling_of(config: Config) -> Sampling:
    """How this run draws its tokens."""
    return Sampling(config.grammar, config.rl.decoding == "constrained", config.rl.temperature)


def batch_of(examples: Sequence[Example], size: int, number: int, seed: int, use: str = "rl") -> list[Example]:
    """Batch `number` of a stream, or of shuffled epochs: a pure function, so that resuming needs no replay."""
    if isinstance(examples, Stream):
        return examples.take(number * size, size, seed, use)
    chosen: list[Example] = []
    for position in range(number * size, (number + 1) * size):
        epoch, offset = divmod(position, len(examples))
        if offset == 0 or not chosen:
            order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        chosen.append(examples[int(order[offset])])
    return chosen


class Run(Protocol):
    """Where a run is kept: fgrpo.runs.run.Run, or anything else that does this. Steps are counted from 0."""

    name: str
    folder: Path
    save_every: int

    def restore(
        self, policy: Policy, make_optimizer: Callable[[Policy], torch.optim.Optimizer]
    ) -> tuple[Policy, torch.optim.Optimizer, int]: ...  # as they were at the latest checkpoint, and the steps done
    def reference(self, policy: Policy) -> Policy: ...  # the policy that the run started from
    def log(self, row: Logs) -> None: ...  # numbers of one step
    def save(self, policy: Policy, optimizer: torch.optim.Optimizer, step: int, position: int) -> None: ...
    def latest(self) -> Path | None: ...  # the newest whole checkpoint


class Stopped(Exception):
    """Training ended before its last step because it was asked to; what was done so far is saved."""


Callback = Callable[[Policy, int], None]
"""Called with the policy, which it leaves as it is, and the number of steps done."""


@dataclass(frozen=True)
class Stage:
    """What `fit` repeats: a step (of the signature of `step`), how often, on how many queries, and AdamW's options."""

    step: Callable[..., Logs]
    steps: int
    queries: int
    lr: Callable[[int], float]  # number of the step -> learning rate
    use: str = "rl"  # of a stream of examples: another one has other examples
    weight_decay: float = 0.0
    beta: float = 0.0  # above 0: a reference policy is kept


def rl_stage(config: Config) -> Stage:
    """F-GRPO. The other stage is the warm start, fgrpo.runs.sft.sft_stage."""
    rl, decay = config.rl, config.rl.lr_decay == "linear"
    return Stage(step, rl.steps, rl.queries, lambda number: rl.lr * (1 - decay * number / rl.steps), beta=rl.beta)


def fit(
    policy: Policy, examples: Sequence[Example], config: Config, run: Run, stage: Stage | None = None,
    quiet: bool = False, after_step: Callback = lambda policy, number: None,
    after_save: Callback = lambda policy, number: None, team: Team = ALONE, stop: Callable[[], bool] = lambda: False,
) -> Policy:  # fmt: skip
    """Train until the last step of a stage (default: RL), from the run's latest checkpoint if it holds one.

    Returns the trained policy. `after_step` is called after every step, `after_save` after every checkpoint and again
    at the one that a run resumes from; of a `team` of processes, in the main one. Where `stop` returns true between two
    steps, on any process, a checkpoint is written and Stopped raised.

    Raises KitError on options or examples that do not fit, and when loss or gradient is no longer finite.
    """
    stage = stage or rl_stage(config)
    check_credit(config.rl)
    team.share(batch_of(examples, stage.queries, 0, config.seed, stage.use))  # an uneven one is refused before writing
    policy.to(team.device(config.device))
    with team.first():
        policy, optimizer, start = run.restore(policy, partial(make_optimizer, stage=stage))
    reference = run.reference(policy) if stage.beta > 0 else None
    team.prepare(policy, reference)
    callback = after_save if team.main else lambda policy, number: None

    def due(done: int) -> bool:
        return done == stage.steps or done % run.save_every == 0

    if start and due(start):
        callback(policy, start)
    numbers = range(start, stage.steps)
    bar = tqdm(numbers, run.name, stage.steps, initial=start, unit="step", disable=quiet or None)
    for number in bar:
        if team.sum(stop()):
            run.save(policy, optimizer, number, number * stage.queries)
            raise Stopped(f"{run.folder}: stopped after step {number} of {stage.steps}")
        queries, began = batch_of(examples, stage.queries, number, config.seed, stage.use), time.perf_counter()
        optimizer.param_groups[0]["lr"] = stage.lr(number)
        try:
            logs = stage.step(policy, optimizer, team.share(queries), config, number, reference, team)
        except FloatingPointError as error:
            raise KitError(
                f"{run.name}: not finite at step {number + 1} ({error}); queries {', '.join(e.id for e in queries)}; "
                f"last good checkpoint: {run.latest()}. Lower the learning rate."
            ) from None
        run.log({"step": number + 1, **logs, "seconds": round(time.perf_counter() - began, 4)})
        bar.set_postfix({name: f"{logs[name]:.2f}" for name in ("reward/slate", "reward/rank", "loss") if name in logs})
        after_step(policy, number + 1)
        if due(number + 1):
            run.save(policy, optimizer, number + 1, (number + 1) * stage.queries)
            callback(policy, number + 1)
    return policy


def make_optimizer(policy: Policy, stage: Stage) -> torch.optim.Optimizer:
    """AdamW over the weights that are trained, in one pass: with 20,000 id vectors several cost a tenth of a step."""
    return torch.optim.AdamW(policy.parameters(), lr=stage.lr(0), weight_decay=stage.weight_decay, fused=True)
