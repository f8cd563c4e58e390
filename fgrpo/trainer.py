"""F-GRPO, whole: `step` is the algorithm, `fit` repeats it with data, metrics and checkpoints.

Deviations from the paper are listed in the README.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from tqdm import tqdm

from .checkpoint import Run
from .config import Config, KitError, RLConfig
from .credit import assign_credit, check_credit, spread, zero_variance
from .data import Example
from .distributed import ALONE, Team, slices
from .loss import policy_loss
from .policy import Policy, Sampling
from .prompt import PHASE_RANK, PHASE_SLATE
from .rewards import Rewards, add_noise, score
from .rollout import Rollouts, rollout
from .stopping import Stopped

Logs = dict[str, float]


def step(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    queries: Sequence[Example],
    config: Config,
    generator: torch.Generator,
    reference: Policy | None = None,
    team: Team = ALONE,
) -> Logs:
    """One RL step: sample, score, assign credit, update. Of several processes, each samples and learns from its share."""
    own = rollouts = sample(policy, queries, config, generator, team)  # B = Q * G completions
    if team.size > 1:
        rollouts = team.gather(own, policy.encode(queries, config.grammar), config.lm.micro, policy.pad)
    rewards = score(rollouts, queries, config.rl)  # slate, rank, format: (Q, G) each
    if config.rl.slate_noise or config.rl.rank_noise:
        rewards = add_noise(rewards, config.rl, generator)
    advantages = assign_credit(rewards, rollouts, config.rl)  # (B, T): one number per token
    credit = team.mine(advantages, len(queries), config.lm.micro)
    for _ in range(config.rl.epochs):
        logs: Logs = {}
        losses = loss_parts(policy, own, credit, config, reference, logs)
        logs["grad_norm"] = update(policy, optimizer, losses, config.rl.max_grad_norm, team)
    return team.mean(logs, own) | describe(rollouts, rewards, advantages, config.rl)


def loss_parts(
    policy: Policy, rollouts: Rollouts, advantages: torch.Tensor, config: Config, reference: Policy | None, logs: Logs
) -> Iterator[torch.Tensor]:
    """The loss in parts of `micro` queries that sum to it, each made when it is asked for; its logs are added up."""
    n_queries = len(rollouts.outputs) // rollouts.group
    for some in slices(n_queries, config.lm.micro):
        part, rows, share = rollouts, slice(None), (some.stop - some.start) / n_queries
        if share < 1:
            part, rows = rollouts.rows(some), slice(some.start * rollouts.group, some.stop * rollouts.group)
        loss, found = policy_loss(policy, part, advantages[rows, : part.mask.shape[1]], config.rl, reference)
        for name, value in found.items():
            logs[name] = logs.get(name, 0.0) + share * value
        yield share * loss


Demonstrate = Callable[[Example, Config, torch.Generator], tuple[Sequence[int], Sequence[int]]]
"""(example, config, generator) -> slate and rank to imitate, as pool indices."""


def sft_step(
    policy: Policy, optimizer: torch.optim.Optimizer, queries: Sequence[Example], config: Config,
    generator: torch.Generator, reference: Policy | None = None, demonstrate: Demonstrate | None = None,
    learn: Sequence[int] = (PHASE_SLATE, PHASE_RANK), team: Team = ALONE,
) -> Logs:  # fmt: skip
    """One step of the warm start: maximum likelihood of one demonstration per query, under the same grammar.

    Only tokens of the phases `learn` count.
    """
    shown = [(demonstrate or demonstration)(example, config, generator) for example in queries]
    ids, mask = policy.spell(queries, shown)
    learned = torch.isin(policy.labels.phases(ids, mask), torch.tensor(learn, device=ids.device))
    total = []

    def losses() -> Iterator[torch.Tensor]:
        for some in team.parts(len(queries), config.lm.micro):
            prompts = policy.encode(queries[some], config.grammar)
            logp, _ = policy.logprobs(prompts, ids[some], mask[some], sampling_of(config))
            loss = -team.size * (logp * learned[some]).sum() / learned.sum().clamp(min=1)
            total.append(loss.item())
            yield loss

    norm = update(policy, optimizer, losses(), 1.0, team)
    return team.mean({"loss": sum(total)}) | {"grad_norm": norm, "tokens": int(learned.sum())}


def update(
    policy: Policy, optimizer: torch.optim.Optimizer, losses: torch.Tensor | Iterable[torch.Tensor], max_norm: float,
    team: Team = ALONE,
) -> float:  # fmt: skip
    """One optimizer step on a loss, or on the sum of several, one in memory at a time; the mean over all processes.

    Returns the gradient's norm before clipping. Raises FloatingPointError if loss or gradient is not finite.
    """
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for loss in [losses] if isinstance(losses, torch.Tensor) else losses:
        loss.backward()
        total += loss.item()
    total = team.mean_gradients(policy.model.parameters(), total)
    norm = float(torch.nn.utils.clip_grad_norm_(policy.model.parameters(), max_norm))
    if not (math.isfinite(total) and norm < float("inf")):
        raise FloatingPointError(f"loss {total:.4g}, gradient norm {norm:.4g}")
    optimizer.step()
    return norm


def describe(rollouts: Rollouts, rewards: Rewards, advantages: torch.Tensor, config: RLConfig) -> Logs:
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


def sample(
    policy: Policy, queries: Sequence[Example], config: Config, generator: torch.Generator, team: Team = ALONE
) -> Rollouts:
    """The rollouts of one step, or this process's share: G per query, or M slates with K rankings each."""
    parts, draws = slices(len(queries), team.size * config.lm.micro), team.draws(generator)
    kept = len(parts) == 1
    done = []
    for part in parts:
        (own,) = team.parts(part.stop - part.start, 0)
        done.append(
            rollout(
                policy, queries[part], sampling_of(config), config.rl.group, draws, kept, config.rl.rankings, own=own
            )
        )
    return Rollouts.join(done, policy.pad)


def sampling_of(config: Config) -> Sampling:
    """How this run draws its tokens."""
    return Sampling(config.grammar, config.rl.decoding == "constrained", config.rl.temperature)


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


def batch_of(examples: Sequence[Example], size: int, number: int, seed: int) -> list[Example]:
    """Batch `number` of an endless stream of shuffled epochs: a pure function, so that resuming needs no replay."""
    chosen: list[Example] = []
    for position in range(number * size, (number + 1) * size):
        epoch, offset = divmod(position, len(examples))
        if offset == 0 or not chosen:
            order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        chosen.append(examples[int(order[offset])])
    return chosen


Look = Callable[[Policy, int], None]
"""Called with the policy, which it leaves as it is, and the number of steps done."""


def fit(
    policy: Policy, examples: Sequence[Example], config: Config, run: Run, sft: bool = False, quiet: bool = False,
    after_step: Look = lambda policy, number: None, do_step: Callable[..., Logs] | None = None,
    after_save: Look = lambda policy, number: None, team: Team = ALONE, stop: Callable[[], bool] = lambda: False,
) -> Policy:  # fmt: skip
    """Train until the run's last step, from its latest checkpoint if it holds one. Returns the trained policy.

    `after_step` looks at every step (again at steps that a resumed run repeats), `after_save` at every checkpoint once
    it is written, and again at the one that a run resumes from: it may have been stopped in between. `do_step` takes
    the place of `step` or `sft_step`; `team` are the processes that share every step, the main one of which looks.
    Where `stop` says so between two steps, on any process, a checkpoint is written and Stopped raised.

    Raises KitError on options that do not fit together, on examples that do not fit the policy, and when loss or
    gradient is no longer finite.
    """
    check_credit(config.rl)
    check_pools(examples, config)
    steps, size = (config.sft.sft_steps, config.sft.sft_batch) if sft else (config.rl.steps, config.rl.queries)
    team.check(size)
    do_step = do_step or partial(sft_step if sft else step, team=team)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(config.seed)
    policy.to(team.device(config.device))
    with team.first():
        policy, optimizer, start = run.restore(policy, lambda p: _optimizer(p, config, sft), generator)
    reference = run.reference(policy) if config.rl.beta > 0 and not sft else None
    team.prepare(policy, reference)
    look = after_save if team.main else lambda policy, number: None

    def due(done: int) -> bool:
        return done == steps or done % run.save_every == 0

    if start and due(start):
        look(policy, start)
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=run.name, unit="step", disable=quiet or None)
    for number in bar:
        if team.any(stop()):
            run.save(policy, optimizer, generator, number, number * size)
            raise Stopped(f"{run.folder}: stopped after step {number} of {steps}")
        queries, began = batch_of(examples, size, number, config.seed), time.perf_counter()
        if sft:
            optimizer.param_groups[0]["lr"] = config.sft.sft_lr * _schedule(number, steps)
        try:
            logs = do_step(policy, optimizer, queries, config, generator, reference)
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
            run.save(policy, optimizer, generator, number + 1, (number + 1) * size)
            look(policy, number + 1)
    return policy


def check_pools(examples: Sequence[Example], config: Config) -> None:
    """Raise KitError if a pool is smaller than the slate."""
    for e in examples:
        if len(e.candidates) < config.grammar.slate_size:
            raise KitError(
                f"example {e.id!r}: its pool of {len(e.candidates)} candidates is smaller than "
                f"slate_size {config.grammar.slate_size}: lower --slate-size."
            )


def _optimizer(policy: Policy, config: Config, sft: bool) -> torch.optim.Optimizer:
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    if sft:
        return torch.optim.AdamW(parameters, lr=config.sft.sft_lr, weight_decay=config.sft.sft_weight_decay)
    return torch.optim.AdamW(parameters, lr=config.rl.lr, weight_decay=0.0)


def _schedule(number: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    return min((number + 1) / warmup, (steps - number) / max(1, steps - warmup))
