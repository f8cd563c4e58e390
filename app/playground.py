"""Live generation for a typed query and pool, one rollout at a time, so that it can be stopped."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from fgrpo.config import Config, KitError
from fgrpo.data import Example
from fgrpo.policy import Policy, Sampling
from fgrpo.rollout import rollout
from fgrpo.runs.trace import Group, record
from fgrpo.tasks.jsonl import example_of

POOL, HISTORY, TEXT = 200, 50, 2000
"""maximum number of candidates, of history entries, of characters of each text"""
GROUP = 16
"""maximum number of sampled rollouts"""
LONGEST = 500_000
"""maximum number of characters of a field of the form"""
NUMBERS = {
    "temperature": (0.1, 2),
    "slate_size": (1, 20),
    "rank_size": (1, 10),
    "group": (1, GROUP),
    "seed": (0, 2**31 - 1),
}
"""smallest and largest value of each number of the form"""


@dataclass(frozen=True)
class Form:
    """The values of the form."""

    query: str
    history: str
    pool: str
    temperature: float
    slate_size: int
    rank_size: int
    decoding: str
    group: int
    seed: int


def form_of(*values: object) -> Form:
    """The form from the values of its controls, which may be anything. Raises KitError naming the field."""
    found: dict[str, Any] = {}
    for field, value in zip(fields(Form), values, strict=True):
        name = field.name.replace("_", " ")
        if field.name in NUMBERS:
            low, high = NUMBERS[field.name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise KitError(f"{name}: enter a number between {low} and {high:,}.")
            found[field.name] = float(value) if field.name == "temperature" else int(value)
        elif not isinstance(value, str) or len(value) > LONGEST:
            raise KitError(f"{name}: enter at most {LONGEST:,} characters.")
        else:
            found[field.name] = value
    return Form(**found)


def typed(example: Example) -> tuple[str, str, str]:
    """The texts of the form for a query: query, history, and the pool, one candidate per line, * before relevant ones."""
    pool = ["* " * (i in example.relevant) + _line(text) for i, text in enumerate(example.candidates)]
    return _line(example.query), "\n".join(map(_line, example.history)), "\n".join(pool)


def _line(text: str) -> str:
    return " ".join(text.encode("utf-8", "replace").decode().split())


def example_from(form: Form, source: Example | None = None) -> Example:
    """The typed query. A history or pool whose texts all come from `source` keeps its catalogue ids, all of it its id.

    Raises KitError if a line is too long, or there are too many or too few.
    """
    history = [_line(x) for x in form.history.splitlines() if x.strip()]
    lines = [_line(x) for x in form.pool.splitlines() if x.strip()]
    pool, relevant = [x.lstrip("* ") for x in lines], [i for i, x in enumerate(lines) if x.startswith("*")]
    if not 2 <= len(pool) <= POOL:
        raise KitError(f"the pool has {len(pool)} candidates; enter between 2 and {POOL}, one per line.")
    if not relevant:
        raise KitError(
            "no candidate is marked as relevant, which rewards need: begin at least one line of the pool with *."
        )
    if len(history) > HISTORY:
        raise KitError(f"the history has {len(history)} entries; enter at most {HISTORY}, one per line.")
    for name, texts in (("query", [_line(form.query)]), ("history", history), ("pool", pool)):
        for number, text in enumerate(texts, start=1):
            if not 0 < len(text) <= TEXT and not (name == "query" and not text):
                raise KitError(f"{name}, line {number}: enter between 1 and {TEXT:,} characters, not {len(text):,}.")
    row: dict = {
        "id": "typed",
        "query": _line(form.query),
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
    if source and pool == [_line(text) for text in source.candidates] and frozenset(relevant) == source.relevant:
        row |= {"gains": list(source.gains)} if source.gains else {}
        if (row["query"], history) == (_line(source.query), [_line(text) for text in source.history]):
            row["id"] = source.id  # the same query: it can be compared with other runs
    return example_of(row)


def config_of(form: Form, config: Config) -> Config:
    """The run's configuration with the values of the form. Raises KitError if the sizes do not fit each other."""
    if not 1 <= form.group <= GROUP:
        raise KitError(f"the number of rollouts must be between 1 and {GROUP}.")
    rl = replace(config.rl, temperature=form.temperature, decoding=form.decoding, rankings=1, group=max(2, form.group))
    credit = config.rl.credit if config.rl.credit != "nested" else "fgrpo"
    grammar = replace(config.grammar, slate_size=form.slate_size, rank_size=form.rank_size)
    return replace(config, rl=replace(rl, credit=credit), grammar=grammar)


def generate(policy: Policy, example: Example, config: Config, count: int, seed: int) -> Iterator[tuple[int, Group]]:
    """The greedy rollout, then `count` sampled ones. Yields the number sampled so far and the group, after each.

    Sampled rollout n takes the draws of (seed, step n): it differs from the others and repeats for the same seed.
    """
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
