"""What the page shows, in numbers: credit of a group under two methods, what became of each candidate, two runs compared."""

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
from fgrpo.study.significance import paired_bootstrap

from .library import Opened

METHODS = tuple(CREDITS)
METRICS = ("ndcg@5", "ndcg@1", "recall@5", "hit@5", "mrr@5", "slate_recall", "slate_length")
PHASE_NAMES = {"slate": PHASE_SLATE, "rank": PHASE_RANK}
AT_ONCE = 20_000_000
"""places x candidates that are compared at a time"""
FATE_WORDS = {
    "right": "ranked above every irrelevant candidate",
    "slate_miss": "slate miss: never entered the slate",
    "rank_drop": "rank drop: in the slate, but not ranked, or below an irrelevant one",
    "format_error": "format error: lost with an output that cannot be read",
}
ERROR_WORDS = {
    "malformed": "the tags are not those of the output language, or a list is empty",
    "foreign": "a label is not of the pool",
    "duplicate": "a candidate stands twice in a list",
    "too_long": "a list is longer than allowed",
    "out_of_slate": "the ranked list holds a candidate that is not in the slate",
}


@dataclass(frozen=True)
class Credit:
    """Rewards of a group's G rollouts and their advantages under one method, a row of T tokens each."""

    method: str
    rewards: Rewards
    advantages: list[list[float]]

    def row(self, rollout: int) -> list[float]:
        """Advantages of one rollout's tokens, and of padding after them."""
        return self.advantages[rollout]

    def of_phase(self, group: Group, rollout: int, phase: int) -> tuple[float, float]:
        """Least and largest advantage on the tokens of a phase."""
        own = zip(group.rollouts[rollout].phases, self.advantages[rollout], strict=False)
        found = [a for p, a in own if p == phase] or [0.0]
        return min(found), max(found)


def credit(group: Group, config: Config, method: str) -> Credit:
    """Credit of a group under a method. Raises KitError if the group lacks what the method needs."""
    rewards, advantages = credit_of(group, replace(config, rl=with_credit(config.rl, method)))
    return Credit(method, rewards, advantages.tolist())


def zero_phases(rewards: Rewards) -> list[str]:
    """The phases whose reward is the same for every rollout of the group, so that they teach nothing."""
    paid = {"slate": rewards.slate + rewards.format, "rank": rewards.rank + rewards.format}
    return [phase for phase, reward in paid.items() if bool(zero_variance(reward)[0])]


def flips(group: Group, one: Credit, other: Credit) -> list[tuple[int, int]]:
    """Tokens of each rollout whose advantages under two methods differ in sign: (slate, rank)."""
    found = []
    for row, traced in enumerate(group.rollouts):
        pairs = zip(traced.phases, one.row(row), other.row(row), strict=False)
        flipped = [phase for phase, a, b in pairs if a * b < 0]
        found.append((flipped.count(PHASE_SLATE), flipped.count(PHASE_RANK)))
    return found


def scores(example: Example, output: Output, config: Config) -> dict[str, float]:
    """Both rewards of one output, as training pays them."""
    gains = pool_gains([example])
    slate, rank = (pad([part], max(1, len(part))) for part in (output.slate, output.rank))
    reward = config.rl.slate_reward
    return {
        f"slate reward ({reward})": float(SLATE_REWARDS[reward](slate, gains)),
        f"rank reward (NDCG@{config.grammar.rank_size})": float(ndcg(rank, gains, config.grammar.rank_size)),
        "format": -config.rl.format_penalty if output.error else 0.0,
    }


def fate_of(example: Example, output: Output) -> dict[int, str]:
    """What became of each relevant candidate, a name in FATES."""
    slate, rank = (pad([part], max(1, len(part))) for part in (output.slate, output.rank))
    found = fates(slate, rank, torch.tensor([bool(output.error)]), pool_gains([example], dtype=torch.float64))[0]
    return {i: FATES[code] for i, code in enumerate(found.tolist()) if code >= 0}


def verdict(example: Example, output: Output) -> list[str]:
    """The error types of one output in words, the gravest first."""
    if output.error:
        return [f"format error ({output.error}): {ERROR_WORDS[output.error]}; both rewards are 0"]
    fate = list(fate_of(example, output).values())
    words, n = [], len(fate)
    if misses := fate.count("slate_miss"):
        words.append(f"slate miss: {misses} of {n} relevant never entered")
    if drops := fate.count("rank_drop"):
        words.append(f"rank drop: {drops} of {n} relevant in the slate, but not ranked or below an irrelevant one")
    return words or [f"right: all {n} relevant are ranked above every irrelevant candidate"]


# --- two runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Two traces on the queries that both hold greedy lists of: `keys` (Q) of the first one, fates (Q) of both.

    rows: metric, mean of a and b, difference b - a with its 95 % interval (paired bootstrap over queries).
    shares: per run the share of relevant candidates by fate.
    """

    keys: list[str]
    rows: list[tuple[str, float, float, float, float, float]]
    fates: tuple[list[set[str]], list[set[str]]]
    shares: tuple[dict[str, float], dict[str, float]]

    def with_fate(self, run: int, fate: str) -> list[str]:
        """The queries of which a relevant candidate met this fate in a run."""
        return [key for key, found in zip(self.keys, self.fates[run], strict=True) if fate in found]


@lru_cache(maxsize=4)
def compare(a: Opened, b: Opened) -> Comparison:
    """Compare two traces. Raises KitError if they have no query in common with greedy lists."""
    others = {(g.example.id, g.example.candidates): g for g in b.trace.groups if g.greedy}
    keys, examples = [], []
    outputs: tuple[list[Output], list[Output]] = ([], [])
    for key, number in a.keys.items():
        mine = a.trace.groups[number]
        theirs = others.get((mine.example.id, mine.example.candidates))
        if mine.greedy and theirs and theirs.greedy:
            keys.append(key)
            examples.append(mine.example)
            outputs[0].append(mine.greedy.output)
            outputs[1].append(theirs.greedy.output)
    if not keys:
        raise KitError("these two runs hold no greedy lists on the same query and pool: choose runs on one task.")
    grammar = a.config.grammar
    values = [_measure(some, examples, _covering(grammar, some)) for some in outputs]
    rows = [_row(metric, values[0][metric], values[1][metric]) for metric in METRICS]
    met = [[{fate for fate in FATES if v[fate][q] > 0} for q in range(len(keys))] for v in values]
    shares = [{fate: float(v[fate].mean()) for fate in FATES} for v in values]
    return Comparison(keys, rows, (met[0], met[1]), (shares[0], shares[1]))


def _measure(outputs: Sequence[Output], examples: Sequence[Example], grammar: GrammarConfig) -> dict[str, Tensor]:
    """Metrics of all queries, so many at a time that memory is bounded whatever a file holds."""
    at_once = max(1, AT_ONCE // (grammar.slate_size * max(len(e.candidates) for e in examples)))
    parts = [
        measure_outputs(outputs[i : i + at_once], examples[i : i + at_once], grammar)
        for i in range(0, len(outputs), at_once)
    ]
    return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}


def _row(metric: str, a: Tensor, b: Tensor) -> tuple[str, float, float, float, float, float]:
    (_, _), (_, difference) = paired_bootstrap({"a": a.unsqueeze(0), "b": b.unsqueeze(0)}, "a").values()
    low, high = difference.interval()
    return metric, float(a.double().mean()), float(b.double().mean()), difference.mean, low, high


def _covering(grammar: GrammarConfig, outputs: Sequence[Output]) -> GrammarConfig:
    """Sizes that no list exceeds: a trace may hold longer ones than its configuration says."""
    slate, rank = (max(1, *(len(o[i]) for o in outputs)) for i in (0, 1))
    rank = max(rank, grammar.rank_size)
    return replace(grammar, slate_size=max(slate, rank, grammar.slate_size), rank_size=rank)
