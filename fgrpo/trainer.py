"""F-GRPO, whole: `step` is the algorithm, `fit` repeats it with data, metrics and checkpoints.

Deviations from the paper are listed in the README.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from .config import Config, KitError, RLConfig
from .credit import assign_credit, check_credit, spread, zero_variance
from .data import Example
from .loss import accumulated, policy_loss
from .policy import Policy, Sampling, Scorer, slices
from .prompt import PHASE_RANK, PHASE_SLATE
from .rewards import Rewards, add_noise, score
from .rollout import Rollouts, rollout

Logs = dict[str, float]


class Team:
    """The processes that share a run, here one by itself: everything is as it is. fgrpo.scale.Processes are several."""

    size, main = 1, True  # `main`: the process that writes files and prints

    def device(self, device: str) -> str:
        """The device of this process."""
        return device

    def share(self, queries: Sequence[Example]) -> list[Example]:
        """This process's queries of a batch. Raises KitError if the batch cannot be shared evenly."""
        return list(queries)

    def sum(self, value: float) -> float:
        """A number added up over the processes."""
        return value

    def mean_gradients(self, parameters: Sequence[Tensor], loss: float) -> float:
        """Average the gradients over the processes, in place, and the loss, which is returned."""
        return loss

    def reduce(self, logs: Logs, rollouts: Rollouts | None) -> Logs:
        """Logged numbers of the whole batch, from those of each process."""
        return logs

    def agree(self, rollouts: Rollouts) -> Rollouts:
        """The rollouts, with the divisor of the loss (`longest`) that all processes use."""
        return rollouts

    def any(self, here: bool) -> bool:
        """Whether something is so on any of the processes."""
        return here

    def first(self) -> AbstractContextManager[None]:
        """A block that the main process goes through before the others do."""
        return nullcontext()

    def prepare(self, *models: object) -> None:
        """Set the precision in which models compute."""

    def leave(self) -> None:
        """End the work in common."""


ALONE = Team()


def step(
    policy: Policy, optimizer: torch.optim.Optimizer, queries: Sequence[Example], config: Config, number: int = 0,
    reference: Scorer | None = None, team: Team = ALONE,
) -> Logs:  # fmt: skip
    """RL step `number`: sample, score, assign credit, update. `queries` (Q) are those of this process."""
    rollouts = sample(policy, queries, config, number, team)  # B = Q * G completions of T tokens
    rewards = score(rollouts, queries, config.rl)  # slate, rank, format: (Q, G) each
    if config.rl.slate_noise or config.rl.rank_noise:
        rewards = add_noise(rewards, queries, config.rl, config.seed, number)
    advantages = assign_credit(rewards, rollouts, config.rl, team.sum)  # (B, T): one number per token
    for _ in range(config.rl.epochs):
        loss, logs = policy_loss(policy, rollouts, advantages, config.rl, reference, config.lm.micro)  # scalar
        logs["grad_norm"] = update(policy, optimizer, loss, config.rl.max_grad_norm, team)
    return team.reduce(logs | describe(rollouts, rewards, advantages, config.rl), rollouts)


def sample(policy: Policy, queries: Sequence[Example], config: Config, number: int = 0, team: Team = ALONE) -> Rollouts:
    """The rollouts of one step: G per query, or M slates with K rankings each."""
    rl = config.rl
    rollouts = rollout(
        policy, queries, sampling_of(config), rl.group, config.seed, number, rankings=rl.rankings,
        micro=config.lm.micro, keep_prompts=True,
    )  # fmt: skip
    return team.agree(rollouts)


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


def describe(rollouts: Rollouts, rewards: Rewards, advantages: Tensor, config: RLConfig) -> Logs:
    """What happened in one rollout batch, under the names that metrics.jsonl uses."""
    batch = len(rollouts.outputs)
    return {
        "reward/slate": rewards.slate.mean().item(),
        "reward/rank": rewards.rank.mean().item(),
        "reward/format": rewards.format.mean().item(),
        "zero_variance/slate": zero_variance(rewards.slate + rewards.format).float().mean().item(),
        "zero_variance/rank": zero_variance(rewards.rank + rewards.format).float().mean().item(),
        "advantage_std/slate": spread(advantages, rollouts.phase, PHASE_SLATE),
        "advantage_std/rank": spread(advantages, rollouts.phase, PHASE_RANK),
        "slate_length": sum(len(o.slate) for o in rollouts.outputs) / batch,
        "format_errors": sum(bool(o.error) for o in rollouts.outputs) / batch,
        "tokens": sampled_tokens(rollouts),
    }


def sampled_tokens(rollouts: Rollouts) -> int:
    """Completion tokens drawn, a slate that K rankings share counted once."""
    slate = (rollouts.phase == PHASE_SLATE)[:: rollouts.rankings].sum()
    return int(slate + (rollouts.phase == PHASE_RANK).sum())


def sampling_of(config: Config) -> Sampling:
    """How this run draws its tokens."""
    return Sampling(config.grammar, config.rl.decoding == "constrained", config.rl.temperature)


# --- the warm start ---

Demonstrate = Callable[[Example, Config, torch.Generator], tuple[Sequence[int], Sequence[int]]]
"""(example, config, generator) -> slate and rank to imitate, as pool indices."""


def sft_step(
    policy: Policy, optimizer: torch.optim.Optimizer, queries: Sequence[Example], config: Config, number: int = 0,
    reference: Scorer | None = None, team: Team = ALONE, demonstrate: Demonstrate | None = None,
    learn: Sequence[int] = (PHASE_SLATE, PHASE_RANK),
) -> Logs:  # fmt: skip
    """Step `number` of the warm start: maximum likelihood of one demonstration per query, under the same grammar.

    Only tokens of the phases `learn` count. A demonstration depends on (seed, step, query id) alone.
    """
    generators = [generator_of(config.seed, number, e.id, "demonstration") for e in queries]
    shown = [(demonstrate or demonstration)(e, config, g) for e, g in zip(queries, generators, strict=True)]
    ids, mask = policy.spell(queries, shown)  # (Q, T)
    learned = torch.isin(policy.labels.phases(ids, mask), torch.tensor(learn, device=ids.device))
    count = int(team.sum(int(learned.sum())))

    def losses() -> Iterator[Tensor]:
        for some in slices(len(queries), config.lm.micro):
            prompts = policy.encode(queries[some], config.grammar)
            logp, _ = policy.logprobs(prompts, ids[some], mask[some], sampling_of(config))
            # the mean over the tokens of all processes, whose gradients are averaged afterwards
            yield -team.size * (logp * learned[some]).sum() / max(1, count)

    parts = losses() if 0 < config.lm.micro < len(queries) else None
    loss = next(losses()) if parts is None else accumulated(parts, policy.parameters())
    norm = update(policy, optimizer, loss, 1.0, team)
    return team.reduce({"loss": loss.item()}, None) | {"grad_norm": norm, "tokens": count}


def demonstration(example: Example, config: Config, generator: torch.Generator) -> tuple[list[int], list[int]]:
    """One good output for the warm start: (slate, rank) as pool indices.

    The slate holds the relevant candidates and a random number of others, in random order; the rank puts the relevant
    ones first, then others of the slate. The length is uniform, so that RL can move it either way.
    """
    grammar, pool = config.grammar, len(example.candidates)
    order = torch.randperm(pool, generator=generator).tolist()
    relevant = [i for i in order if i in example.relevant][: grammar.slate_size]
    others = [i for i in order if i not in example.relevant]
    most = min(grammar.slate_size, pool) - len(relevant)
    slate = relevant + others[: int(torch.randint(most + 1, (), generator=generator))]
    shuffled = [slate[i] for i in torch.randperm(len(slate), generator=generator).tolist()]
    return shuffled, slate[: grammar.rank_size]


def generator_of(*names: object) -> torch.Generator:
    """A generator seeded by a hash of the names."""
    name = "\0".join(map(str, names)).encode("utf-8", "surrogatepass")
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:7]))


def batch_of(examples: Sequence[Example], size: int, number: int, seed: int) -> list[Example]:
    """Batch `number` of an endless stream of shuffled epochs: a pure function, so that resuming needs no replay."""
    chosen: list[Example] = []
    for position in range(number * size, (number + 1) * size):
        epoch, offset = divmod(position, len(examples))
        if offset == 0 or not chosen:
            order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        chosen.append(examples[int(order[offset])])
    return chosen


# --- the loop ---


class Run(Protocol):
    """Where a run is kept: fgrpo.runs.Run, or anything else that does this."""

    name: str
    folder: Path
    save_every: int

    def restore(
        self, policy: Policy, make_optimizer: Callable[[Policy], torch.optim.Optimizer]
    ) -> tuple[Policy, torch.optim.Optimizer, int]:
        """Policy, optimizer and steps done, from the latest checkpoint, or from `policy` in a new run."""

    def reference(self, policy: Policy) -> Scorer:
        """The policy that the run started from, for the KL penalty."""

    def log(self, row: dict[str, Any]) -> None:
        """Keep the numbers of one step."""

    def save(self, policy: Policy, optimizer: torch.optim.Optimizer, step: int, position: int) -> None:
        """Write a checkpoint, unless it is there; `position` is the number of examples consumed."""

    def latest(self) -> Path | None:
        """The newest whole checkpoint, or None."""


class Stopped(Exception):
    """Training ended before its last step because it was asked to; what was done so far is saved."""


Callback = Callable[[Policy, int], None]
"""Called with the policy, which it leaves as it is, and the number of steps done."""


def fit(
    policy: Policy, examples: Sequence[Example], config: Config, run: Run, sft: bool = False, quiet: bool = False,
    after_step: Callback = lambda policy, number: None, do_step: Callable[..., Logs] | None = None,
    after_save: Callback = lambda policy, number: None, team: Team = ALONE, stop: Callable[[], bool] = lambda: False,
) -> Policy:  # fmt: skip
    """Train until the run's last step, from its latest checkpoint if it holds one. Returns the trained policy.

    `after_step` is called after every step (again at steps that a resumed run repeats), `after_save` after every
    checkpoint, and again at the one that a run resumes from: it may have been stopped in between. `do_step` takes the
    place of `step` or `sft_step`; `team` are the processes that share every step, the main one of which is called back.
    Where `stop` returns true between two steps, on any process, a checkpoint is written and Stopped raised.

    Raises KitError on options that do not fit together, on examples that do not fit the policy, and when loss or
    gradient is no longer finite.
    """
    check_credit(config.rl)
    check_pools(examples, config)
    steps, size = (config.sft.sft_steps, config.sft.sft_batch) if sft else (config.rl.steps, config.rl.queries)
    team.share(batch_of(examples, size, 0, config.seed))  # refused before anything is written
    do_step = do_step or (sft_step if sft else step)
    policy.to(team.device(config.device))
    with team.first():
        policy, optimizer, start = run.restore(policy, partial(make_optimizer, config=config, sft=sft))
    reference = run.reference(policy) if config.rl.beta > 0 and not sft else None
    team.prepare(policy, reference)
    callback = after_save if team.main else lambda policy, number: None

    def due(done: int) -> bool:
        return done == steps or done % run.save_every == 0

    if start and due(start):
        callback(policy, start)
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=run.name, unit="step", disable=quiet or None)
    for number in bar:
        if team.any(stop()):
            run.save(policy, optimizer, number, number * size)
            raise Stopped(f"{run.folder}: stopped after step {number} of {steps}")
        queries, began = batch_of(examples, size, number, config.seed), time.perf_counter()
        if sft:
            optimizer.param_groups[0]["lr"] = config.sft.sft_lr * _schedule(number, steps)
        try:
            logs = do_step(policy, optimizer, team.share(queries), config, number, reference, team)
        except FloatingPointError as error:
            ids = ", ".join(e.id for e in queries)
            raise KitError(
                f"{run.name}: not finite at step {number + 1} ({error}); queries {ids}; "
                f"last good checkpoint: {run.latest()}. Lower the learning rate."
            ) from None
        run.log({"step": number + 1, **logs, "seconds": round(time.perf_counter() - began, 4)})
        bar.set_postfix_str(f"slate {logs['reward/slate']:.2f} rank {logs['reward/rank']:.2f}" if not sft else "")
        after_step(policy, number + 1)
        if due(number + 1):
            run.save(policy, optimizer, number + 1, (number + 1) * size)
            callback(policy, number + 1)
    return policy


def check_pools(examples: Sequence[Example], config: Config) -> None:
    """Raise KitError if a pool is smaller than the slate."""
    for e in examples:
        if len(e.candidates) < config.grammar.slate_size:
            raise KitError(
                f"example {e.id!r}: its pool of {len(e.candidates)} candidates is smaller than "
                f"slate_size {config.grammar.slate_size}: lower --slate-size."
            )


def make_optimizer(policy: Policy, config: Config, sft: bool) -> torch.optim.Optimizer:
    """AdamW over the weights that are trained, with the options of either stage."""
    lr, decay = (config.sft.sft_lr, config.sft.sft_weight_decay) if sft else (config.rl.lr, 0.0)
    return torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=decay)


def _schedule(number: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    return min((number + 1) / warmup, (steps - number) / max(1, steps - warmup))
