"""Live generation: a query and a pool as they are typed, one rollout after the other, so that it can be stopped."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fgrpo.config import Config, KitError
from fgrpo.data import Example
from fgrpo.tasks.jsonl import example_of
from fgrpo.policy import Policy, Sampling
from fgrpo.rollout import rollout
from fgrpo.runs.trace import Group, record

POOL, HISTORY, TEXT = 200, 50, 2000
"""most candidates, entries of the history, characters of each text"""
GROUP = 16
"""most rollouts"""


@dataclass(frozen=True)
class Asked:
    """What the form says."""

    query: str
    history: str
    pool: str
    temperature: float
    slate_size: int
    rank_size: int
    decoding: str
    group: int
    seed: int


def typed(example: Example) -> tuple[str, str, str]:
    """A query as the form shows it: query, history, and the pool a candidate a line, * before the relevant ones."""
    pool = ["* " * (i in example.relevant) + _line(text) for i, text in enumerate(example.candidates)]
    return _line(example.query), "\n".join(map(_line, example.history)), "\n".join(pool)


def _line(text: str) -> str:
    return " ".join(text.encode("utf-8", "replace").decode().split())


def example_from(asked: Asked, source: Example | None = None) -> Example:
    """The typed query. Ids of `source`, where it has them, go with the texts that were kept from it.

    Raises KitError if a line is too long, or there are too many or too few.
    """
    history = [_line(x) for x in asked.history.splitlines() if x.strip()]
    lines = [_line(x) for x in asked.pool.splitlines() if x.strip()]
    pool, relevant = [x.lstrip("* ") for x in lines], [i for i, x in enumerate(lines) if x.startswith("*")]
    if not 2 <= len(pool) <= POOL:
        raise KitError(f"the pool has {len(pool)} candidates; write between 2 and {POOL}, one a line.")
    if not relevant:
        raise KitError(
            "no candidate is marked as relevant: begin at least one line of the pool with *, for the rewards."
        )
    if len(history) > HISTORY:
        raise KitError(f"the history has {len(history)} entries; write at most {HISTORY}, one a line.")
    for name, texts in (("query", [_line(asked.query)]), ("history", history), ("pool", pool)):
        for number, text in enumerate(texts, start=1):
            if not 0 < len(text) <= TEXT and not (name == "query" and not text):
                raise KitError(f"{name}, line {number}: write between 1 and {TEXT:,} characters, not {len(text):,}.")
    row: dict = {
        "id": "typed",
        "query": _line(asked.query),
        "history": history,
        "candidates": pool,
        "relevant": relevant,
    }
    for name in ("history", "candidate"):
        texts = history if name == "history" else pool
        ids = source and (source.history_ids if name == "history" else source.candidate_ids)
        if source and ids:
            known = dict(zip(map(_line, source.history if name == "history" else source.candidates), ids, strict=True))
            if len(known) == len(ids) and set(texts) <= set(known):
                row[f"{name}_ids"] = [known[text] for text in texts]
    return example_of(row)


def config_of(asked: Asked, config: Config) -> Config:
    """The run's configuration with what the form changes. Raises KitError if the sizes do not fit each other."""
    if not 1 <= asked.group <= GROUP:
        raise KitError(f"rollouts must be between 1 and {GROUP}.")
    rl = replace(
        config.rl, temperature=asked.temperature, decoding=asked.decoding, rankings=1, group=max(2, asked.group)
    )
    credit = config.rl.credit if config.rl.credit != "nested" else "fgrpo"
    grammar = replace(config.grammar, slate_size=asked.slate_size, rank_size=asked.rank_size)
    return replace(config, rl=replace(rl, credit=credit), grammar=grammar)


def generate(policy: Policy, example: Example, config: Config, count: int, seed: int) -> Iterator[tuple[int, Group]]:
    """The greedy rollout, then `count` sampled ones, each as soon as it is there: how many, and the group so far."""
    if len(example.candidates) < config.grammar.slate_size:
        size = len(example.candidates)
        config = replace(config, grammar=replace(
            config.grammar, slate_size=size, rank_size=min(size, config.grammar.rank_size)))  # fmt: skip
    sampling = Sampling(config.grammar, config.rl.decoding == "constrained", config.rl.temperature)
    plain = replace(sampling, temperature=1.0)
    group = Group(example, record(policy, rollout(policy, [example], plain))[0])
    yield 0, group
    for done in range(1, count + 1):
        (drawn,) = record(policy, rollout(policy, [example], sampling, 1, seed, done))
        group = replace(group, rollouts=(*group.rollouts, drawn))
        yield done, group
