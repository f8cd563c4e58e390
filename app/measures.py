"""The numbers on the page: credit of a group, the fate of each candidate, the comparison of two runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from fgrpo.config import Config, GrammarConfig, KitError
from fgrpo.credit import CREDITS, with_credit, zero_variance
from fgrpo.data import Example
from fgrpo.evaluate import FATES, fates, measure_outputs
from fgrpo.prompt import PHASE_RANK, PHASE_SLATE, Output
from fgrpo.rewards import SLATE_REWARDS, Rewards, ndcg, pad, pool_gains
from fgrpo.runs.trace import Group, credit_of
from fgrpo.study.significance import paired

from .library import Opened

METHODS = tuple(CREDITS)
METRICS = ("ndcg@5", "ndcg@1", "recall@5", "hit@5", "slate_recall", "slate_length")
PHASE_NAMES = {"slate": PHASE_SLATE, "rank": PHASE_RANK}
BATCH = 256
"""number of queries of a trace that are held at a time"""
CELLS = 20_000_000
"""maximum size of a batch of queries in `measure_in_batches`: slate places x candidates, which bounds its memory"""
FATE_WORDS = {
    "right": "ranked above every irrelevant candidate",
    "slate_miss": "slate miss: not in the slate",
    "rank_drop": "rank drop: in the slate, but not ranked or ranked below an irrelevant one",
    "format_error": "format error: the output cannot be parsed",
}
ERROR_WORDS = {
    "malformed": "the tags do not follow the grammar, or a list is empty",
    "foreign": "a label is not in the pool",
    "duplicate": "a candidate appears twice in a list",
    "too_long": "a list is longer than allowed",
    "out_of_slate": "a ranked candidate is not in the slate",
}


@dataclass(frozen=True)
class GroupCredit:
    """Rewards (1, G) of a group's G rollouts and their advantages (G, T) under one credit method."""

    method: str
    rewards: Rewards
    advantages: list[list[float]]

    def row(self, rollout: int) -> list[float]:
        """Advantages (T) of one rollout's tokens, padded with zeros."""
        return self.advantages[rollout]

    def of_phase(self, group: Group, rollout: int, phase: int) -> tuple[float, float]:
        """Smallest and largest advantage among the tokens of a phase, 0 if it has none."""
        own = zip(group.rollouts[rollout].phases, self.advantages[rollout], strict=False)
        found = [a for p, a in own if p == phase] or [0.0]
        return min(found), max(found)


def group_credit(group: Group, config: Config, method: str) -> GroupCredit:
    """Credit of a group under a method. Raises KitError if the method does not apply to the group."""
    rewards, advantages = credit_of(group, replace(config, rl=with_credit(config.rl, method)))
    return GroupCredit(method, rewards, advantages.tolist())


def zero_phases(rewards: Rewards) -> list[str]:
    """The phases in which every rollout of the group has the same reward, so that there is no gradient."""
    total = {"slate": rewards.slate + rewards.slate_format, "rank": rewards.rank + rewards.rank_format}
    return [phase for phase, reward in total.items() if bool(zero_variance(reward)[0])]


def flips(group: Group, one: GroupCredit, other: GroupCredit) -> list[tuple[int, int]]:
    """Number of (slate, rank) tokens of each rollout whose advantages under two methods have opposite signs."""
    found = []
    for row, traced in enumerate(group.rollouts):
        pairs = zip(traced.phases, one.row(row), other.row(row), strict=False)
        flipped = [phase for phase, a, b in pairs if a * b < 0]
        found.append((flipped.count(PHASE_SLATE), flipped.count(PHASE_RANK)))
    return found


@dataclass(frozen=True)
class QueryRow:
    """One query in the list of a trace: means over its sampled rollouts, and its errors.

    slate, rank: mean rewards. spread: standard deviation of their sum over the group. difference, flips: between two credit
    methods, the mean absolute difference of a token's advantages, and the tokens whose advantages have opposite signs. None
    where there are fewer than two rollouts or a method does not apply.
    errors: of the greedy rollout, or of the first. titles: the relevant candidates.
    """

    key: str
    rollouts: int
    slate: float | None
    rank: float | None
    spread: float | None
    difference: float | None
    flips: int | None
    errors: str
    titles: tuple[str, ...]


@lru_cache(maxsize=8)
def query_rows(opened: Opened, credit: str, against: str, limit: int) -> list[QueryRow]:
    """A row for each of the first `limit` queries of a trace."""
    return [_query_row(opened, key, credit, against) for key in list(opened.keys)[:limit]]


def _query_row(opened: Opened, key: str, credit: str, against: str) -> QueryRow:
    group = opened.group(key)
    slate = rank = spread = apart = flipped = None
    try:
        one, other = (group_credit(group, opened.config, method) for method in (credit, against))
        rewards = one.rewards
        slate, rank = float(rewards.slate.mean()), float(rewards.rank.mean())
        spread = float((rewards.slate + rewards.rank).std(correction=0))
        tokens = [len(r.tokens) for r in group.rollouts]
        pairs = [p for n, t in enumerate(tokens) for p in zip(one.row(n)[:t], other.row(n)[:t], strict=True)]
        apart = sum(abs(x - y) for x, y in pairs) / max(1, len(pairs))
        flipped = sum(map(sum, flips(group, one, other)))
    except KitError:
        pass  # too few rollouts, or a method that needs others: the page says so where the query is shown
    first = group.greedy or next(iter(group.rollouts), None)
    errors = error_counts(group.example, first.output, opened.config.grammar) if first else ""
    titles = tuple(group.example.candidates[i] for i in sorted(group.example.relevant))
    return QueryRow(key, len(group.rollouts), slate, rank, spread, apart, flipped, errors, titles)


def scores(example: Example, output: Output, config: Config) -> dict[str, float]:
    """The rewards of one output, as in training."""
    gains = pool_gains([example])
    slate, rank = (pad([part], max(1, len(part))) for part in (output.slate, output.rank))
    reward = config.rl.slate_reward
    return {
        f"slate reward ({reward})": float(SLATE_REWARDS[reward](slate, gains)),
        f"rank reward (NDCG@{config.grammar.rank_size})": float(ndcg(rank, gains, config.grammar.rank_size)),
        "format": -config.rl.format_penalty if output.error else 0.0,
    }


def fate_of(example: Example, output: Output, grammar: GrammarConfig) -> dict[int, str]:
    """The fate of each relevant candidate of the pool that there was room for, a name in FATES."""
    sizes = fitting(grammar, [output], [example])
    slate, rank = pad([output.slate], sizes.slate_size), pad([output.rank], sizes.rank_size)
    found = fates(slate, rank, torch.tensor([bool(output.error)]), pool_gains([example], dtype=torch.float64))[0]
    return {i: FATES[code] for i, code in enumerate(found.tolist()) if code >= 0}


def error_counts(example: Example, output: Output, grammar: GrammarConfig) -> str:
    """The types of error in one output and how many relevant candidates they met, as in "slate miss 1, rank drop 2"."""
    if output.error:
        return f"format error ({output.error})"
    fate = list(fate_of(example, output, grammar).values())
    counts = {name.replace("_", " "): fate.count(name) for name in FATES if name != "right"}
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "none"


def error_words(example: Example, output: Output, grammar: GrammarConfig) -> list[str]:
    """The types of error in one output, in words; without any, one sentence that says so."""
    if output.error:
        lost = "the rank reward is 0, the slate keeps its own" if output.slate else "both rewards are 0"
        return [f"format error ({output.error}): {ERROR_WORDS[output.error]}; {lost}"]
    fate = list(fate_of(example, output, grammar).values())
    words, n = [], len(fate)
    if misses := fate.count("slate_miss"):
        words.append(f"slate miss: {misses} of {n} relevant candidates not in the slate")
    if drops := fate.count("rank_drop"):
        words.append(
            f"rank drop: {drops} of {n} relevant candidates in the slate, but not ranked or ranked below an irrelevant one"
        )
    return words or [f"no error: all {n} relevant candidates are ranked above every irrelevant one"]


# --- two runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Two traces compared on the Q queries for which both have a greedy rollout.

    keys, others: names of these queries in the first and in the second trace (Q each).
    rows: metric, mean of a, mean of b, difference b - a and its 95 % interval. Only queries vary (clustered by
        `Example.group`): these are two runs, so nothing is known about other seeds of their methods.
    fates: per run the fates met by the relevant candidates of each query (Q).
    shares: per run the share of relevant candidates by fate, averaged over queries.
    """

    keys: list[str]
    others: list[str]
    rows: list[tuple[str, float, float, float, float, float]]
    fates: tuple[list[set[str]], list[set[str]]]
    shares: tuple[dict[str, float], dict[str, float]]

    def with_fate(self, run: int, fate: str) -> list[str]:
        """The queries with a relevant candidate of this fate in a run (0 or 1), by their names in its trace."""
        keys = (self.keys, self.others)[run]
        return [key for key, found in zip(keys, self.fates[run], strict=True) if fate in found]


@lru_cache(maxsize=8)
def compare_traces(a: Opened, b: Opened) -> Comparison:
    """Compare the greedy rollouts of two traces, read a few queries at a time. Raises KitError if they share none."""
    named = {mark.same: key for key in b.keys if (mark := b.mark(key)).greedy}
    both = [(key, named[mark.same]) for key in a.keys if (mark := a.mark(key)).greedy and mark.same in named]
    if not both:
        raise KitError("these two runs have no greedy rollouts on the same query and pool: choose runs of one task.")
    groups, parts = [], ([], [])  # type: tuple[list[str], tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]]
    for start in range(0, len(both), BATCH):
        pairs = [(a.group(k), b.group(other)) for k, other in both[start : start + BATCH]]
        examples = [mine.example for mine, _ in pairs]
        groups += [example.group for example in examples]
        for run, opened in enumerate((a, b)):
            outputs = [traced.output for pair in pairs if (traced := pair[run].greedy)]
            fits = fitting(opened.config.grammar, outputs, examples)
            parts[run].append(measure_in_batches(outputs, examples, fits))
    values = [{name: torch.cat([p[name] for p in part]) for name in (*METRICS, *FATES)} for part in parts]
    rows = [_row(metric, values[0][metric], values[1][metric], groups) for metric in METRICS]
    met = [[{fate for fate in FATES if v[fate][q] > 0} for q in range(len(both))] for v in values]
    shares = [{fate: float(v[fate].mean()) for fate in FATES} for v in values]
    keys, others = map(list, zip(*both, strict=True))
    return Comparison(keys, others, rows, (met[0], met[1]), (shares[0], shares[1]))


def measure_in_batches(
    outputs: Sequence[Output], examples: Sequence[Example], grammar: GrammarConfig, cells: int = CELLS
) -> dict[str, Tensor]:
    """Metrics (Q) of all queries, a batch at a time: a long file with large pools would not fit into memory."""
    size = max(1, cells // (grammar.slate_size * max(len(e.candidates) for e in examples)))
    batches = [slice(i, i + size) for i in range(0, len(outputs), size)]
    parts = [measure_outputs(outputs[batch], examples[batch], grammar) for batch in batches]
    return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}


def _row(metric: str, a: Tensor, b: Tensor, groups: list[str]) -> tuple[str, float, float, float, float, float]:
    difference = paired((b.double() - a.double()).unsqueeze(0), groups=groups)
    low, high = difference.interval()
    return metric, float(a.double().mean()), float(b.double().mean()), difference.mean, low, high


def fitting(grammar: GrammarConfig, outputs: Sequence[Output], examples: Sequence[Example]) -> GrammarConfig:
    """The grammar with sizes that fit all lists, which may be longer than a file's header says, and no larger pool."""
    pool = max(len(e.candidates) for e in examples)
    slate, rank = (
        max(1, min(size, pool), *(len(o[i]) for o in outputs))
        for i, size in enumerate((grammar.slate_size, grammar.rank_size))
    )
    return replace(grammar, slate_size=max(slate, rank), rank_size=rank)
