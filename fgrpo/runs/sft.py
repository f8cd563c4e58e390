"""Supervised fine-tuning on demonstrations, the stage before RL: `sft_step`, and `sft_stage` for fgrpo.trainer.fit."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..config import Config
from ..data import Example
from ..lm.text import TextPolicy
from ..loss import accumulated
from ..policy import Policy, Sampling, slices
from ..prompt import PHASE_RANK, PHASE_SLATE
from ..rollout import key_of, rollout
from ..trainer import ALONE, Logs, Stage, Team, sampling_of, update

BOTH = (PHASE_SLATE, PHASE_RANK)
Lists = tuple[Sequence[int], Sequence[int]]
"""slate and rank, as pool indices"""
Demonstrate = Callable[[Sequence[Example], Config, Sequence[torch.Generator]], Sequence[Lists]]
"""(examples, config, a generator for each) -> what to imitate for each"""
Ranker = Callable[[Sequence[Example]], Sequence[Sequence[int]]]
"""examples -> the order of each pool, best first"""


def sft_stage(config: Config, demonstrate: Demonstrate | None = None, learn: Sequence[int] = BOTH) -> Stage:
    """The warm start as a stage of `fit`."""
    sft, do_step = config.sft, partial(sft_step, demonstrate=demonstrate, learn=learn)
    lr = rising_and_falling(sft.sft_lr, sft.sft_steps)
    return Stage(do_step, sft.sft_steps, sft.sft_batch, lr, "sft", sft.sft_weight_decay)


def teacher(policy: Policy, config: Config, demonstrate: Demonstrate | None = None) -> Demonstrate | None:
    """What writes the demonstrations of a stage that begins with a policy: `demonstrate` if given, else the default.

    A policy that reads texts ranks those of the kind `ranked` itself, others need `demonstrate`.
    """
    if demonstrate is None and config.sft.demonstrations == "ranked" and isinstance(policy, TextPolicy):
        return own_demonstrations(policy)
    return demonstrate


def rising_and_falling(peak: float, steps: int) -> Callable[[int], float]:
    """Learning rates: linear warm-up over 5 % of the steps, then linear decay to zero."""
    warmup = max(1, steps // 20)
    return lambda number: peak * min((number + 1) / warmup, (steps - number) / max(1, steps - warmup))


def sft_step(
    policy: Policy, optimizer: torch.optim.Optimizer, queries: Sequence[Example], config: Config, number: int = 0,
    reference: Policy | None = None, team: Team = ALONE, demonstrate: Demonstrate | None = None,
    learn: Sequence[int] = BOTH,
) -> Logs:  # fmt: skip
    """Step `number` of the warm start: maximum likelihood of one demonstration per query, under the same grammar.

    Demonstrations may be short, so `full` is not asked of them.
    The loss is over the tokens of the phases `learn`. A demonstration depends only on (seed, step, query id).
    """
    config = without_full(config)
    generators = [generator_of(config.seed, number, e.id, "demonstration") for e in queries]
    targets = (demonstrate or demonstrations)(queries, config, generators)
    ids, mask = policy.spell(queries, targets)  # (Q, T)
    learned = torch.isin(policy.labels.phases(ids, mask), torch.tensor(learn, device=ids.device))
    count = int(team.sum(int(learned.sum())))

    def losses() -> Iterator[Tensor]:
        for some in slices(len(queries), config.lm.micro):
            prompts = policy.encode(queries[some], config.grammar)
            _check_sharing(policy, queries[some], config, prompts.mask, ids.shape[1])
            logp, _ = policy.logprobs(prompts, ids[some], mask[some], sampling_of(config))
            # the mean over the tokens of all processes, whose gradients are averaged afterwards
            yield -team.size * (logp * learned[some]).sum() / max(1, count)

    in_parts = 0 < config.lm.micro < len(queries)
    loss = accumulated(losses(), policy.parameters()) if in_parts else next(losses())
    norm = update(policy, optimizer, loss, 1.0, team)
    return team.reduce({"loss": loss.item()}, None) | {"grad_norm": norm, "tokens": count}


def _check_sharing(policy: Policy, queries: Sequence[Example], config: Config, prompts: Tensor, written: int) -> None:
    """Roll out the longest and the shortest prompt, if none as long was: it shows whether this model can share prompts."""
    length, lengths = prompts.shape[1] + written, prompts.sum(1)
    if length > max(policy.checked.values(), default=0):
        some = [queries[int(lengths.argmax())], queries[int(lengths.argmin())]]
        longest = Sampling(replace(config.grammar, full=True), temperature=config.rl.temperature)
        rollout(policy, some, longest, 2, config.seed, micro=config.lm.micro)
        policy.checked[2] = max(policy.checked[2], length)  # its own completions may be shorter than those written


def demonstrations(
    examples: Sequence[Example], config: Config, generators: Sequence[torch.Generator], ranker: Ranker | None = None
) -> list[Lists]:
    """One `demonstration` for each example. Those of the kind `ranked` need a `ranker`."""
    ranked = config.sft.demonstrations == "ranked"
    assert ranker or not ranked, "demonstrations 'ranked' need a ranker (fgrpo.baselines.demonstrator)"
    orders = ranker(examples) if ranker and ranked else [()] * len(examples)
    return [demonstration(e, config, g, o) for e, g, o in zip(examples, generators, orders, strict=True)]


def own_demonstrations(policy: TextPolicy) -> Demonstrate:
    """Demonstrations `ranked` by a policy as it is now, which reads texts: by its order of the pool after the prompt."""
    frozen = deepcopy(policy)

    @torch.no_grad()
    def ranker(examples: Sequence[Example]) -> list[list[int]]:
        prompts = frozen.encode(examples)
        logits = frozen.grow(prompts.ids, prompts.mask, prompts.choices.tokens).logits  # (Q, pool + 5)
        pools = [scores[: len(e.candidates)] for e, scores in zip(examples, logits, strict=True)]
        return [pool.argsort(descending=True, stable=True).tolist() for pool in pools]

    return partial(demonstrations, ranker=ranker)


def demonstration(
    example: Example, config: Config, generator: torch.Generator, order: Sequence[int] = ()
) -> tuple[list[int], list[int]]:
    """One good output for the warm start, (slate, rank) as pool indices, of the kind `config.sft.demonstrations`.

    relevant: the relevant candidates alone, in random order in the slate, in another one in the rank (graded ones by
    falling gain). filled: a random number of others follows, drawn uniformly, so that RL can move the length either
    way; the slate's order is random, the rank has the relevant ones first. ranked: the best others by `order`, that of
    a ranker, fill both lists.
    """
    grammar, pool, kind = config.grammar, len(example.candidates), config.sft.demonstrations
    order = list(order) if kind == "ranked" else torch.randperm(pool, generator=generator).tolist()
    relevant = [i for i in order if i in example.relevant]
    if example.gains:
        relevant.sort(key=lambda i: -example.gains[i])
    relevant = relevant[: grammar.slate_size]
    others = [i for i in order if i not in example.relevant][: grammar.slate_size - len(relevant)]
    if kind == "relevant":
        others = []
    elif kind == "filled":
        others = others[: int(torch.randint(len(others) + 1, (), generator=generator))]
    slate = relevant + others
    shuffled = [slate[i] for i in torch.randperm(len(slate), generator=generator).tolist()]
    return slate if kind == "ranked" else shuffled, slate[: grammar.rank_size]


def without_full(config: Config) -> Config:
    """The run with lists of free length."""
    return replace(config, grammar=replace(config.grammar, full=False))


def generator_of(*names: object) -> torch.Generator:
    """A generator seeded by a hash of the names."""
    return torch.Generator().manual_seed(key_of(*names) >> 72)  # 56 of its 128 bits
