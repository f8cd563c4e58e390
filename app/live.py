"""Live training from the page: one RL step on a group of a trace, and a short race of credit methods.

Both use the kit's own rewards, credit, loss and update, on deep copies of the policy that they are given.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from markupsafe import Markup

from fgrpo.config import Config, GrammarConfig, KitError
from fgrpo.credit import assign_credit, check_credit, with_credit
from fgrpo.data import Example, Splits
from fgrpo.evaluate import evaluate, greedy
from fgrpo.lm.rows import RowPolicy
from fgrpo.loss import policy_loss
from fgrpo.policy import Policy, Sampling, constrained_logps, free_logps
from fgrpo.prompt import PHASE_RANK, PHASE_SLATE, Output
from fgrpo.rewards import score
from fgrpo.rollout import Rollouts
from fgrpo.runs.fields import with_fields
from fgrpo.runs.trace import Group
from fgrpo.study.check import LEAST_SEEDS
from fgrpo.study.plots import OTHERS, STYLES
from fgrpo.trainer import Logs, batch_of, make_optimizer, rl_stage, sampling_of, update

from .markup import html_table, join, number, printable, signed, tag
from .measures import fitting, scores

CELLS = 4_000_000
"""maximum of tokens x candidates (at least 100) in one step, which bounds its memory and time"""
METHODS_AT_ONCE, STEPS, ROLLOUTS = 4, 500, 256
"""maximum number of methods, of steps of a race, and of rollouts in one of its steps"""
SLIGHT = 0.005
"""change of a log-probability, in nats, below which a reading calls nothing more or less likely"""
WORDS = {"slate": "slate", "rank": "ranking"}
"""what a phase writes"""
RATE = 1e-4
"""learning rate of one step: at 4e-4, that of training, a step on one group alone overshoots"""
RATES = (1e-6, 1e-2)
"""smallest and largest learning rate"""


# --- one step on one group --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Likelihoods:
    """What one policy makes of a query with N candidates and of G given rollouts.

    `slate`, `rank`: log-probability of the slate and of the rank tokens of each rollout (G), in nats. `first_slate`,
    `first_rank`: probability of each candidate (N) to be the first of the slate, and the first ranked of a given slate.
    `greedy`: its greedy output; `rewards`: those of that output, by name.
    """

    slate: tuple[float, ...]
    rank: tuple[float, ...]
    first_slate: tuple[float, ...]
    first_rank: tuple[float, ...]
    greedy: Output
    rewards: dict[str, float]


@dataclass(frozen=True)
class StepResult:
    """One step on a group of G rollouts: the policy before, and after one step from there under each method.

    `slate_reward`, `rank_reward`: of the rollouts (G). `advantages`: by method, the mean advantage of each rollout's
    slate and rank tokens, (G) each. `given`: the slate of which `first_rank` is; empty if the greedy one is ill-formed.
    """

    lr: float
    slate_reward: tuple[float, ...]
    rank_reward: tuple[float, ...]
    before: Likelihoods
    after: dict[str, Likelihoods]
    advantages: dict[str, tuple[tuple[float, ...], tuple[float, ...]]]
    given: tuple[int, ...]
    of_another: bool


def take_step(
    policy: Policy, group: Group, config: Config, methods: Sequence[str] = ("grpo", "fgrpo"), lr: float = RATE,
    of_another: bool = False,
) -> StepResult:  # fmt: skip
    """One RL update on the sampled rollouts of a group alone, apart for each method. `policy` stays as it is.

    `config` is that of the run of the policy: its rewards (noise is left out), loss and sampling, but the learning rate
    `lr`. Log-probabilities are recomputed with the policy, so that every ratio is 1. `of_another`: whether the group was
    sampled by the policy of another run. Raises KitError if the policy, the group or an option does not allow a step.
    """
    if not isinstance(lr, float) or not RATES[0] <= lr <= RATES[1]:
        raise KitError(f"learning rate: enter a number between {RATES[0]:g} and {RATES[1]:g}.")
    if len(group.rollouts) < 2:
        raise KitError("a step compares the rollouts of one query, but this query has fewer than two in the trace.")
    configs = {m: _config_of(config, group, m, lr) for m in _checked(policy, methods)}
    policy = deepcopy(policy)  # one that reads texts learns new words when it encodes
    rollouts = rollouts_of(policy, group, config)
    some = next(iter(configs.values()))
    rewards = score(rollouts, [group.example], some.rl)  # (1, G) each
    grammar = rollouts.sampling.grammar
    plain = Sampling(grammar, rollouts.sampling.constrained)
    given = greedy(policy, [group.example], plain)[0].slate
    before = likelihoods(policy, rollouts, group.example, some, given)
    after, advantages = {}, {}
    for method, own in configs.items():
        copy = deepcopy(policy)
        credit = assign_credit(rewards, rollouts, own.rl)  # (G, T)
        loss, _ = policy_loss(copy, rollouts, credit, own.rl)
        try:
            update(copy, make_optimizer(copy, rl_stage(own)), loss, own.rl.max_grad_norm)
        except FloatingPointError as error:
            raise KitError(f"{method}: the step is not finite ({error}); choose a lower learning rate.") from None
        after[method] = likelihoods(copy, rollouts, group.example, own, given)
        slate, rank = (
            tuple(((credit * in_phase).sum(1) / in_phase.sum(1).clamp(min=1)).tolist())
            for in_phase in (rollouts.phase == PHASE_SLATE, rollouts.phase == PHASE_RANK)
        )
        advantages[method] = slate, rank
    slates, rankings = (tuple(r[0].tolist()) for r in (rewards.slate, rewards.rank))
    return StepResult(lr, slates, rankings, before, after, advantages, given, of_another)


def _checked(policy: Policy, methods: Sequence[str]) -> list[str]:
    """The methods, each once. Raises KitError if there are none or too many, or the policy cannot be trained here."""
    if not isinstance(policy, RowPolicy):
        raise KitError(
            "only tiny policies are trained on this page, and this run has a pretrained model: "
            "choose a run of a tiny policy, such as lab-rec."
        )
    found = list(dict.fromkeys(methods))
    if not 1 <= len(found) <= METHODS_AT_ONCE:
        raise KitError(f"choose between 1 and {METHODS_AT_ONCE} credit methods.")
    return found


def _config_of(config: Config, group: Group, method: str, lr: float) -> Config:
    """The options of one step on the group. Raises KitError if the method does not fit it."""
    if method == "nested" and group.rankings < 2:
        raise KitError("nested compares rankings of one slate, but this trace has one ranking per slate.")
    rl = replace(config.rl, lr=lr, slate_noise=0.0, rank_noise=0.0, beta=0.0, rankings=1, group=len(group.rollouts))
    rl = replace(with_credit(rl, method), rankings=group.rankings if method == "nested" else 1)
    check_credit(rl)
    return replace(config, rl=rl)


def rollouts_of(policy: Policy, group: Group, config: Config) -> Rollouts:
    """The sampled rollouts of a group in the tokens of a policy, with its own log-probabilities.

    The grammar is that of `config`, widened where lists of the group are longer, and without `full` if one is not full.
    Raises KitError if a rollout is ill-formed, an item is not in the policy's vocabulary, or there are too many tokens.
    """
    example, outputs = group.example, [r.output for r in group.rollouts]
    for place, output in enumerate(outputs, start=1):
        if output.error:
            raise KitError(
                f"rollout {place} breaks the grammar ({output.error}), and a step here needs well-formed rollouts: "
                "choose another query."
            )
    grammar = fitting(config.grammar, outputs, [example])
    grammar = replace(grammar, full=grammar.full and all(_is_full(o, grammar) for o in outputs))
    sampling = replace(sampling_of(config), grammar=grammar)
    prompts = policy.encode([example], grammar)
    completions, mask = policy.spell([example] * len(outputs), outputs)
    tokens, pool = len(outputs) * (prompts.ids.shape[1] + completions.shape[1]), len(example.candidates)
    if tokens * max(100, pool) > CELLS:
        raise KitError(
            f"this group has {tokens:,} tokens and a pool of {pool:,}, too many for a step here: choose another query."
        )
    with torch.no_grad():
        logprobs, _ = policy.logprobs(prompts, completions, mask, sampling)
    if not logprobs.isfinite().all():
        raise KitError("a rollout of this group has lists that the grammar does not allow: choose another query.")
    return Rollouts(
        prompts, completions, mask, policy.labels.phases(completions, mask), logprobs, outputs, len(outputs), sampling,
        rankings=group.rankings, words=policy.labels.words(completions, mask), longest=prompts.choices.longest(grammar),
    )  # fmt: skip


def _is_full(output: Output, grammar: GrammarConfig) -> bool:
    return len(output.slate) == grammar.slate_size and len(output.rank) == grammar.rank_size


@torch.no_grad()
def likelihoods(
    policy: Policy, rollouts: Rollouts, example: Example, config: Config, given: Sequence[int]
) -> Likelihoods:
    """What a policy makes of the rollouts of one example, and of `given`, a slate of which it ranks one first."""
    sampling = rollouts.sampling
    logps, _ = policy.logprobs(rollouts.prompts, rollouts.completions, rollouts.mask, sampling)
    slate, rank = (
        tuple(logps.masked_fill(rollouts.phase != phase, 0.0).sum(1).tolist()) for phase in (PHASE_SLATE, PHASE_RANK)
    )
    # one completion that begins as any does, and the slate that is given: the choices at its first and at its rank item
    listed = list(given) or [0]
    completion, mask = policy.spell([example], [(listed, listed[:1])])
    choices = rollouts.prompts.choices
    allowed, _ = choices.walk(completion, mask, sampling.grammar)  # (1, T, K)
    tokens = choices.tokens if sampling.constrained else None
    logits = policy.completion_logits(rollouts.prompts, completion, mask, 1, tokens=tokens)
    if sampling.constrained:
        spread = constrained_logps(logits, choices.tokens, allowed, sampling)[0]  # (T, K)
    else:
        spread = free_logps(logits, sampling)[0][:, choices.tokens[0]]
    count = len(example.candidates)
    first, ranked = (spread[at, :count].exp().tolist() for at in (1, len(listed) + 3))
    best = greedy(policy, [example], Sampling(sampling.grammar, sampling.constrained))[0]
    own = replace(config, grammar=sampling.grammar)
    return Likelihoods(
        slate, rank, tuple(first), tuple(ranked) if given else (0.0,) * count, best, scores(example, best, own)
    )


@dataclass(frozen=True)
class Contrast:
    """A rollout whose slate or ranking (`phase`) two methods move apart, each as its advantage says."""

    rollout: int
    phase: str
    reward: float
    mean: float
    changes: tuple[float, float]
    advantages: tuple[float, float]


def contrast(result: StepResult) -> Contrast | None:
    """The clearest contrast between the first two methods: of slates above the mean reward, else below, else of rankings."""
    if len(result.after) < 2:
        return None
    for phase, rewards in (("slate", result.slate_reward), ("rank", result.rank_reward)):
        mean, found = sum(rewards) / len(rewards), list[Contrast]()
        (a, b), (of_a, of_b) = list(_changes(result, phase).values())[:2], _advantages(result, phase)[:2]
        for n, row in enumerate(zip(a, b, of_a, of_b, strict=True)):
            x, y, credit_x, credit_y = row
            if x * y < 0 and x * credit_x > 0 and y * credit_y > 0 and min(abs(x), abs(y)) > SLIGHT:
                found.append(Contrast(n, phase, rewards[n], mean, (x, y), (credit_x, credit_y)))
        for good in (True, False):
            side = [c for c in found if (c.reward > mean if good else c.reward < mean)]
            if side:
                return max(side, key=lambda c: min(map(abs, c.changes)))
    return None


def _changes(result: StepResult, phase: str) -> dict[str, list[float]]:
    """By method, how much the log-probability of each rollout's slate or ranking changed, (G) each."""
    old = getattr(result.before, phase)
    return {m: [y - x for x, y in zip(old, getattr(new, phase), strict=True)] for m, new in result.after.items()}


def _advantages(result: StepResult, phase: str) -> list[tuple[float, ...]]:
    """For each method, the mean advantage of each rollout's slate or rank tokens (G)."""
    return [both[("slate", "rank").index(phase)] for both in result.advantages.values()]


def reading(result: StepResult) -> list[str]:
    """What the step shows, in one or two sentences computed from its numbers."""
    if all(abs(x) < 1e-6 for phase in ("slate", "rank") for xs in _changes(result, phase).values() for x in xs):
        return ["Nothing changed: the rewards of these rollouts are all alike, so no method learns from them."]
    found, sentences = contrast(result), []
    if found:
        side = "above" if found.reward > found.mean else "below"
        words = [
            f"{'more' if x > 0 else 'less'} likely under {m} (advantage {signed(a)}, log-probability {signed(x, 3)})"
            for m, x, a in zip(result.after, found.changes, found.advantages, strict=False)
        ]
        sentences.append(
            f"The {WORDS[found.phase]} of rollout {found.rollout + 1}, whose {found.phase} reward {number(found.reward)} is "
            f"{side} the group's mean of {number(found.mean)}, became {words[0]} and {words[1]}."
        )
    for phase, rewards in (("slate", result.slate_reward), ("rank", result.rank_reward)):
        good = [n for n, reward in enumerate(rewards) if reward > sum(rewards) / len(rewards) + 1e-6]
        counts = [f"{sum(xs[n] > SLIGHT for n in good)} under {m}" for m, xs in _changes(result, phase).items()]
        if good and (found is None or found.phase == phase):
            some = f"Of the {len(good)} {WORDS[phase]}{'s' * (len(good) > 1)} with a reward above the mean"
            sentences.append(f"{some}, {' and '.join(counts)} became more likely.")
    return sentences


def step_panel(result: StepResult, example: Example) -> Markup:
    """What a step shows in words, the rollouts, the first choices and the greedy lists before and after it."""
    notes = [
        f"One step of AdamW from fresh moments at learning rate {result.lr:g}: it moves each weight by about the rate, "
        "however small its gradient is, so compare directions rather than sizes.",
    ]
    if result.of_another:
        notes.append(
            "These rollouts were sampled by the policy of another run. Their log-probabilities are recomputed with this "
            "one, so that every ratio is 1; a method then learns from lists that this policy may find unlikely."
        )
    return join([
        tag('<p class="reading"><strong>{}</strong></p>', " ".join(reading(result))),
        *(tag("<p>{}</p>", note) for note in notes),
        _rollout_table(result, "slate"), _rollout_table(result, "rank"), _first_table(result, example),
        _greedy_table(result, example),
    ])  # fmt: skip


def _rollout_table(result: StepResult, phase: str) -> Markup:
    """Reward, advantages and log-probabilities of each rollout's slates or rankings."""
    rewards, old = (result.slate_reward, result.before.slate) if phase == "slate" else (
        result.rank_reward, result.before.rank)  # fmt: skip
    changes = _changes(result, phase)
    rows = []
    for n, reward in enumerate(rewards):
        moved = [xs[n] for xs in changes.values()]
        apart = min(moved) < -SLIGHT and max(moved) > SLIGHT
        cells: list[object] = []
        for xs, credit in zip(changes.values(), _advantages(result, phase), strict=True):
            cells += [signed(credit[n]), _moved(old[n] + xs[n], xs[n], apart)]
        rows.append((str(n + 1), number(reward), number(old[n], ".2f"), *cells))
    head = ["Rollout", f"{phase.capitalize()} reward", "Before"]
    for method in changes:
        head += [f"Advantage, {method}", f"After, {method}"]
    caption = f"Log-probability of each rollout's {WORDS[phase]} (nats), before and after one step"
    return html_table(caption, head, rows, sortable=True)


def _moved(value: float, change: float, apart: bool) -> Markup:
    """A log-probability and its change, marked where methods disagree on the sign."""
    arrow = "\N{UPWARDS ARROW}" if change > SLIGHT else "\N{DOWNWARDS ARROW}" if change < -SLIGHT else "="
    text = tag("{} {} {}", number(value, ".2f"), arrow, signed(change, 3))
    return tag("<mark>{}</mark>", text) if apart else text


def _first_table(result: StepResult, example: Example) -> Markup:
    """Probability of each candidate to be chosen first, in the slate and in the ranking."""
    every = [result.before, *result.after.values()]
    rows = [
        (str(i + 1), _titled(example, i), *(_percent(x.first_slate[i]) for x in every),
         *((_percent(x.first_rank[i]) if i in result.given else "\N{EN DASH}") for x in every))
        for i in range(len(example.candidates))
    ]  # fmt: skip
    names = ["before", *result.after]
    head = ["#", "Candidate (\N{BLACK STAR} relevant)", *(f"First of slate, {n}" for n in names),
            *(f"First ranked, {n}" for n in names)]  # fmt: skip
    caption = "Probability of each candidate to be the first of the slate, and the first ranked of the greedy slate"
    return html_table(caption, head, rows, sortable=True)


def _greedy_table(result: StepResult, example: Example) -> Markup:
    """The greedy lists and their rewards."""

    def listed(items: Sequence[int]) -> Markup:
        return join((tag("{} {}", i + 1, _titled(example, i)) for i in items), "; ")

    rows = [
        (name, listed(found.greedy.slate), listed(found.greedy.rank), *map(number, found.rewards.values()))
        for name, found in {"before": result.before, **result.after}.items()
    ]  # fmt: skip
    return html_table(
        "Greedy lists before and after one step", ("Policy", "Slate", "Ranking", *result.before.rewards), rows
    )


def _titled(example: Example, i: int) -> str:
    return printable(example.candidates[i]) + (" \N{BLACK STAR}" if i in example.relevant else "")


def _percent(x: float) -> str:
    return f"{100 * x:.1f} %"


# --- a race of credit methods -----------------------------------------------------------------------------------------

SHARED: dict[str, object] = {"queries": 8, "group": 8, "lr_decay": "linear", "rank_noise": 0.0}
SETTINGS: dict[str, dict[str, object]] = {
    "full task": {**SHARED, "lr": 4e-4, "learn": "both", "slate_noise": 0.0, "full": False},
    # as fgrpo.study.control, where joint credit must fall; with more noise and a higher rate, to show it in 50 steps
    "control": {**SHARED, "lr": 5e-4, "learn": "rank", "slate_noise": 2.0, "full": True},
}
"""Options of a race, as flat fields; chosen on validation queries for 50 steps from the shipped warm start of the lab"""


def race_config(config: Config, setting: str) -> Config:
    """The options of a run with those of one of SETTINGS. Raises KitError if there is none of this name."""
    if setting not in SETTINGS:
        raise KitError(f"setting {printable(setting, 40)!r} is not known; choose from {', '.join(SETTINGS)}.")
    return with_fields(config, **SETTINGS[setting])


LOGGED = ("reward/slate", "reward/rank", "slate_length")
"""what is kept of a step's logs, in the order of the fields of a point"""


@dataclass(frozen=True)
class Point:
    """A method after `step` steps: NDCG@5, and means over the steps since the last point (None before any).

    `slate`, `rank`: sampled rewards; `length`: number of candidates in sampled slates.
    """

    step: int
    ndcg: float
    slate: float | None = None
    rank: float | None = None
    length: float | None = None


@dataclass(frozen=True)
class RaceState:
    """How far a race is: `points` by method, one every few steps from step 0 on; `seconds` of training by method.

    `config` holds the options of all methods, `queries` the number of validation queries of NDCG@5.
    """

    config: Config
    steps: int
    queries: int
    points: dict[str, tuple[Point, ...]]
    seconds: dict[str, float]


def race(
    policy: Policy, config: Config, splits: Splits, methods: Sequence[str] = ("grpo", "fgrpo"), steps: int = 50,
    every: int = 5, seed: int = 0, validation: int = 128,
) -> Iterator[RaceState]:  # fmt: skip
    """Train a copy of the policy with each method, in lockstep: the same queries and seed at every step.

    As fgrpo.trainer.fit does, without files. Yields the state at step 0, after every `every` steps and after the last;
    NDCG@5 is that of greedy decoding on the first `validation` validation queries. `policy` stays as it is; closing the
    generator ends the race between two steps. Raises KitError if the policy or an option does not allow it.
    """
    for name, value, most in (("number of steps", steps, STEPS), ("steps between points", every, steps)):
        if type(value) is not int or not 1 <= value <= most:
            raise KitError(f"{name}: enter a whole number between 1 and {most}.")
    if config.rl.queries * config.rl.group > ROLLOUTS:
        raise KitError(f"a step here has at most {ROLLOUTS} rollouts, queries times group: lower one of them.")
    if not splits.validation:
        raise KitError("this task has no validation queries to measure a race on: choose a run of another task.")
    names, own = _checked(policy, methods), with_fields(config, steps=steps, seed=seed)
    configs = {m: replace(own, rl=with_credit(own.rl, m)) for m in names}
    for each in configs.values():
        check_credit(each.rl)
    copies = {m: deepcopy(policy) for m in names}
    stage = rl_stage(own)
    optimizers = {m: make_optimizer(copy, stage) for m, copy in copies.items()}
    chosen, seconds = splits.validation[:validation], dict.fromkeys(names, 0.0)
    reference = deepcopy(policy) if own.rl.beta > 0 else None
    points: dict[str, tuple[Point, ...]] = dict.fromkeys(names, ())
    logged: dict[str, list[Logs]] = {m: [] for m in names}

    def state() -> RaceState:
        for m in names:
            rows = [[row[name] for name in LOGGED] for row in logged[m]]
            means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
            ndcg = float(evaluate(copies[m], chosen, configs[m])["ndcg@5"].mean())
            points[m] += (Point(done, ndcg, *means),)
            logged[m].clear()
        return RaceState(own, steps, len(chosen), dict(points), dict(seconds))

    done = 0
    yield state()
    for step in range(steps):
        queries = batch_of(splits.train, stage.queries, step, seed, stage.use)
        for m in names:
            began, optimizer = time.perf_counter(), optimizers[m]
            optimizer.param_groups[0]["lr"] = stage.lr(step)
            try:
                logs = stage.step(copies[m], optimizer, queries, configs[m], step, reference)
            except FloatingPointError as error:
                raise KitError(f"{m}: not finite at step {step + 1} ({error}); choose a lower learning rate.") from None
            logged[m].append(logs)
            seconds[m] += time.perf_counter() - began
        done = step + 1
        if done % every == 0 or done == steps:
            yield state()


Draw = Callable[[Sequence[tuple[str, Sequence[int], Sequence[float], str]], str, str], Markup]
"""(series, title, label of the y axis) -> figure; a series is a name, steps, values and a colour"""


def race_panel(state: RaceState, draw: Draw) -> Markup:
    """What is trained and what it does not show, a table of the methods, and their curves by `draw`."""
    rows = []
    for method, points in state.points.items():
        first, last = points[0], points[-1]
        sampled = ["\N{EN DASH}" if x is None else number(x) for x in (last.slate, last.rank, last.length)]
        rows.append((
            method, f"{last.step} of {state.steps}", number(first.ndcg), number(last.ndcg),
            signed(last.ndcg - first.ndcg, 3), *sampled, f"{state.seconds[method]:.1f}",
        ))  # fmt: skip
    head = ("Method", "Steps", "NDCG@5, start", "NDCG@5, now", "Change", "Sampled slate reward", "Sampled rank reward",
            "Sampled slate length", "Seconds of training")  # fmt: skip
    caption = f"NDCG@5: greedy decoding on {state.queries:,} validation queries. Sampled: mean since the last point"
    drawn = []
    for title, value in CURVES.items():
        series = []
        for m, points in state.points.items():
            known = [(p.step, x) for p in points if (x := value(p)) is not None]
            series.append((m, [step for step, _ in known], [x for _, x in known], STYLES.get(m, OTHERS[0])[0]))
        if all(values for _, _, values, _ in series):
            drawn.append(tag('<div style="flex:1 1 16rem">{}</div>', draw(series, title, title)))
    row = tag('<div style="display:flex;flex-wrap:wrap;gap:1rem">{}</div>', join(drawn))
    return join([tag("<p>{}</p>", " ".join(race_sentences(state))), html_table(caption, head, rows), row])


CURVES: Mapping[str, Callable[[Point], float | None]] = {
    "NDCG@5, greedy": lambda p: p.ndcg,
    "sampled slate reward": lambda p: p.slate,
    "sampled rank reward": lambda p: p.rank,
    "sampled slate length": lambda p: p.length,
}


def race_sentences(state: RaceState) -> list[str]:
    """What is trained on what, and what one seed cannot show."""
    rl, methods = state.config.rl, list(state.points)
    what = {"both": "", "slate": ", of which slate tokens alone learn", "rank": ", of which rank tokens alone learn"}
    noise = f", and noise of standard deviation {rl.slate_noise:g} is added to slate rewards" if rl.slate_noise else ""
    sentences = [
        f"Each method ({', '.join(methods)}) trains a copy of the same policy on the same {rl.queries} queries a step of "
        f"{printable(Path(state.config.task).name, 60)}, {rl.group} rollouts each{what[rl.learn]}{noise}.",
        f"One seed of {state.steps} steps decides nothing between methods: fewer than {LEAST_SEEDS} seeds give no verdict; "
        "for one, run python -m fgrpo compare.",
    ]
    if not state.config.grammar.full:
        sentences.append("A policy that writes short lists gains by filling them, so look at the slate length too.")
    return sentences
