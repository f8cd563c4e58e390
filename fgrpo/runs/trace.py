"""Traces: the rollouts of a policy as JSONL. One line holds a query and its G rollouts, which credit compares.

    {"trace": 1, "name": "...", "config": {...}, "made": {...}}                                         the first line
    {"query": EXAMPLE, "step": 100, "rankings": 1, "greedy": ROLLOUT, "rollouts": [ROLLOUT, ...]}       every other line

    ROLLOUT: {"slate": [7, 12], "rank": [12], "error": "", "tokens": ["<SLATE>", "i7", ...], "items": [-1, 7, ...],
              "phases": [1, 1, ...], "logprobs": [0.0, -1.2, ...], "entropy": [0.0, 2.1, ...]}

Lists are pool indices. `items` is, for each token, the candidate whose label ends there (-1: none; always -1 in an
ill-formed output). The fields by token are optional. Rewards and advantages are not stored, because they follow from the
lists for any credit method (`credit_of`).
"""

import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..config import Config, GrammarConfig, KitError
from ..credit import assign_credit, check_credit
from ..data import Example
from ..evaluate import greedy
from ..policy import Policy, Prompts, Sampling, slices
from ..prompt import END, ERRORS, PHASE_PAD, PHASE_RANK, PHASE_SLATE, TAGS, ItemChoices, Output
from ..rewards import Rewards, score
from ..rollout import Rollouts, rollout
from ..tasks.atomic import write_text
from ..tasks.files import open_data
from ..tasks.jsonl import example_of, to_row
from ..tasks.reading import read_object
from ..trainer import sampling_of
from .run import provenance, thinned

VERSION = 1
PLACES = 16_000_000
"""maximum of rollouts x places^2 in `credit_of` (16 times as much of rollouts x tokens x candidates): about 400 MB"""


@dataclass(frozen=True)
class Traced:
    """One rollout: its parsed lists, and for each of T tokens its text, candidate or -1, phase, log-prob and entropy.

    `logprobs` and `entropy` are in nats, and empty if they were not recorded.
    """

    output: Output
    tokens: tuple[str, ...]
    items: tuple[int, ...]
    phases: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    entropy: tuple[float, ...] = ()


@dataclass(frozen=True)
class Group:
    """A query with its greedy rollout, if any, and G sampled ones; every `rankings` consecutive ones share a slate."""

    example: Example
    greedy: Traced | None = None
    rollouts: tuple[Traced, ...] = ()
    rankings: int = 1
    step: int | None = None


@dataclass(frozen=True)
class Trace:
    """The groups of a file, the run that they come from, and `notes` on lines that could not be read."""

    name: str
    config: Config
    groups: list[Group]
    made: dict[str, object]
    notes: tuple[str, ...] = ()


def trace_policy(
    policy: Policy, examples: Sequence[Example], config: Config, sampled: int, step: int | None = None, seed: int = 0
) -> list[Group]:
    """Trace the first `sampled` examples token by token: G = config.rl.group rollouts and greedy decoding of each.

    The other examples are traced without tokens: their greedy lists only.
    """
    sampling, g = sampling_of(config), config.rl.group
    first, rest = examples[:sampled], examples[sampled:]
    groups = []
    for rows in slices(len(first), config.lm.micro or 16):  # in batches, to bound memory
        part = first[rows]
        best = record(policy, rollout(policy, part, replace(sampling, temperature=1.0)))
        rollouts = rollout(policy, part, sampling, g, seed, step or 0, rankings=config.rl.rankings)
        drawn = record(policy, rollouts)  # the G rollouts of a query follow each other
        for i, (example, greedy_one) in enumerate(zip(part, best, strict=True)):
            groups.append(Group(example, greedy_one, tuple(drawn[i * g : (i + 1) * g]), config.rl.rankings, step))
    for example, output in zip(rest, greedy(policy, rest, sampling), strict=True):
        groups.append(Group(example, from_lists(output, len(example.candidates)), step=step))
    return groups


@torch.no_grad()
def record(policy: Policy, rollouts: Rollouts) -> list[Traced]:
    """The rollouts of a batch, token by token."""
    _, entropy = policy.logprobs(rollouts.prompts, rollouts.completions, rollouts.mask, rollouts.sampling)
    ends = rollouts.prompts.choices.repeat(rollouts.group).item_ends(rollouts.completions) & rollouts.mask
    found = []
    for row, output in enumerate(rollouts.outputs):
        real = rollouts.mask[row]
        ids, is_end, phase, logp, spread = (
            x[row][real].tolist() for x in (rollouts.completions, ends, rollouts.phase, rollouts.logprobs, entropy)
        )
        written = iter((*output.slate, *output.rank))  # in the order of their labels; of an ill-formed list, none
        items = tuple(next(written, -1) if end else -1 for end in is_end)
        texts = tuple(policy.labels.text([t]) or END for t in ids)
        found.append(Traced(output, texts, items, tuple(phase), tuple(logp), tuple(spread)))
    return found


def from_lists(output: Output, pool: int) -> Traced:
    """A rollout of which only the lists are known, with one token per candidate. `pool`: number of candidates."""
    if not output.slate:
        return Traced(output, (), (), ())
    slate, rank = list(output.slate), list(output.rank)
    items = [-1, *slate, -1, -1, *rank, -1]
    cut = len(slate) + 2
    tags = iter(TAGS)
    tokens = [next(tags) if i < 0 else f"[{i + 1}]" for i in items]
    phases = [PHASE_SLATE] * cut + [PHASE_RANK] * (len(items) - cut)
    return Traced(output, tuple(tokens), tuple(items), tuple(phases))


def credit_of(group: Group, config: Config) -> tuple[Rewards, Tensor]:
    """Rewards (1, G) and advantages (G, T) of a group's sampled rollouts, under the credit method of `config`.

    A size of `config.grammar` counts only up to the pool, which changes no reward: no list is longer. Raises KitError if
    the group lacks what the method needs (at least two rollouts, or several rankings of one slate), and if it is too large.
    """
    if len(group.rollouts) < 2:
        raise KitError("credit compares the rollouts of one query, but this query has fewer than two in the trace.")
    rl = replace(config.rl, group=len(group.rollouts), rankings=group.rankings)
    if rl.credit != "nested":
        rl = replace(rl, rankings=1)  # other methods treat rankings of one slate as separate rollouts
    elif group.rankings < 2:
        raise KitError("nested compares rankings of one slate, but this trace has one ranking per slate.")
    check_credit(rl)
    rollouts = _as_rollouts(group, config.grammar)
    rewards = score(rollouts, [group.example], rl)
    return rewards, assign_credit(rewards, rollouts, rl)


def _as_rollouts(group: Group, grammar: GrammarConfig) -> Rollouts:
    """Rebuild rollouts, over a vocabulary in which candidate i is token i and all other tokens come after."""
    pool, width = len(group.example.candidates), max(1, *(len(r.tokens) for r in group.rollouts))
    slate, longest = (max(len(r.output[i]) for r in group.rollouts) for i in (0, 1))
    rank = max(1, longest, min(grammar.rank_size, pool))  # a header may name any size: memory follows the content
    slate = max(slate, rank)
    if len(group.rollouts) * max(slate**2, width * pool // 16) > PLACES:
        sizes = (
            f"{len(group.rollouts)} rollouts of up to {width:,} tokens, lists of up to {slate:,} of {pool:,} candidates"
        )
        raise KitError(f"credit of this query would take too much memory: {sizes}.")
    ids = [[item if item >= 0 else pool + 5 for item in r.items] for r in group.rollouts]
    phase = [[*r.phases, *[PHASE_PAD] * (width - len(r.phases))] for r in group.rollouts]
    completions = torch.tensor([row + [pool + 5] * (width - len(row)) for row in ids])
    phases, empty = torch.tensor(phase), torch.zeros(1, 0, dtype=torch.long)
    return Rollouts(
        Prompts(empty, empty.bool(), ItemChoices(torch.arange(pool + 5).unsqueeze(0))), completions, phases != PHASE_PAD,
        phases, torch.zeros(phases.shape), [r.output for r in group.rollouts], len(group.rollouts),
        Sampling(replace(grammar, slate_size=slate, rank_size=rank)), rankings=group.rankings,
    )  # fmt: skip


# --- the file ---------------------------------------------------------------------------------------------------------


def write_trace(path: str | Path, trace: Trace, more: bool = False) -> None:
    """Write a trace atomically. With `more`, keep the earlier steps of the file, thinned out (fgrpo.runs.run.thinned)."""
    path, kept = Path(path), ""
    header = {"trace": VERSION, "name": trace.name, "config": trace.config.to_dict(), "made": trace.made}
    if more and path.exists():
        first = min((g.step or 0 for g in trace.groups), default=0)
        lines = list(io.BytesIO(path.read_bytes()))[1:]  # splitlines would split at a lone \r too
        try:
            steps = [read_object(line).get("step") for line in lines]
        except KitError as error:
            raise KitError(f"{path}: {error}; move it away, then --resume continues the run.") from None
        numbers = [step if isinstance(step, int) else 0 for step in steps]
        kept = thinned([(n, line.decode()) for n, line in zip(numbers, lines, strict=True)], first)
    write_text(path, json.dumps(header) + "\n" + kept + "".join(_to_json(g) + "\n" for g in trace.groups))


def trace_of(name: str, config: Config, groups: list[Group]) -> Trace:
    """A trace with the command, versions and date of this process."""
    return Trace(name, config, groups, provenance())


def _to_json(group: Group) -> str:
    row: dict[str, object] = {"query": to_row(group.example), "step": group.step, "rankings": group.rankings}
    if group.greedy:
        row["greedy"] = _rollout_row(group.greedy)
    row["rollouts"] = [_rollout_row(r) for r in group.rollouts]
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def _rollout_row(r: Traced) -> dict[str, object]:
    row: dict[str, object] = {"slate": r.output.slate, "rank": r.output.rank, "error": r.output.error}
    if r.logprobs or r.output.error:
        logprobs, entropy = ([round(x, 4) for x in part] for part in (r.logprobs, r.entropy))
        row |= {"tokens": r.tokens, "items": r.items, "phases": r.phases, "logprobs": logprobs, "entropy": entropy}
    return row


def read_trace(path: str | Path, name: str = "") -> Trace:
    """Read a trace, or a file of examples (fgrpo.tasks.jsonl) as a trace without rollouts.

    Raises KitError naming file, line and field, on a newer version of the format, and if no group is complete. A
    truncated last line, as a kill leaves it, is left out and noted.
    """
    with open_data(Path(path)) as file:  # which names a gzip, a Git LFS pointer, a web page, ...
        return parse_trace(file, name or str(path))


def parse_trace(
    lines: Iterable[bytes], name: str, bad: list[str] | None = None, each: Callable[[Group, int], object] | None = None
) -> Trace:
    """Like `read_trace`, from lines. `name`: of the file, for messages. Broken lines are appended to `bad`, if given.

    `each` gets every group and the position of its line in bytes, as it is read; the trace then holds no groups, and a file
    may be larger than memory.
    """
    trace, groups, notes, count, position = Trace(name, Config(), [], {}), list[Group](), [], 0, 0
    each = each or (lambda group, position: groups.append(group))
    for number, line in enumerate(lines, start=1):
        start, position = position, position + len(line)
        if not line.strip():
            continue
        where, row = f"{name}, line {number}", dict[str, object]()
        try:
            row = read_object(line)
            if "trace" in row:
                if number > 1:
                    raise KitError("a second header; one file holds one trace")
                trace = _header(row, name)
            else:
                each(group_of(row), start)
                count += 1
        except KitError as error:
            if count and not line.endswith(b"\n") and str(error).startswith("not a JSON object"):
                notes.append(f"{where}: the last line is cut short and was left out; {count} queries are read.")
                break
            if bad is None or "trace" in row:
                raise KitError(f"{where}: {error}") from None
            bad.append(f"{where}: {error}")
    if not count:
        raise KitError(f"{name}: no query in the file; a trace has a header line and then one line per query.")
    return replace(trace, groups=groups, notes=tuple(notes))


def _header(row: dict[str, object], default: str) -> Trace:
    version, name, made, config = row["trace"], row.get("name", ""), row.get("made", {}), row.get("config", {})
    if type(version) is not int or version < 1:
        raise KitError("field 'trace' must be the version of the format, a whole number")
    if version > VERSION:
        raise KitError(f"written by a newer kit (format {version}, this one reads {VERSION}): update the kit")
    if not isinstance(made, dict) or not isinstance(name, str):
        raise KitError("field 'name' must be a string and 'made' an object")
    if not isinstance(config, dict):
        raise KitError("field 'config' must be an object")
    return Trace(name or default, Config.from_dict(config, "field 'config'"), [], made)


def group_of(row: dict[str, object]) -> Group:
    """The group of a line: of a trace, or an example alone. Raises KitError naming the field."""
    if "candidates" in row:
        return Group(example_of(row))
    query, step, rankings, rows = row.get("query"), row.get("step"), row.get("rankings", 1), row.get("rollouts", [])
    if not isinstance(query, dict):
        raise KitError("field 'query' must be an object: an example, as in a task file")
    example = example_of(query)
    if step is not None and type(step) is not int:
        raise KitError("field 'step' must be a whole number")
    if not isinstance(rows, list) or type(rankings) is not int or rankings < 1 or len(rows) % rankings:
        raise KitError("field 'rollouts' must be a list, and 'rankings' a whole number that divides its length")
    pool = len(example.candidates)
    rollouts = tuple(_rollout(r, pool, f"rollouts[{n}]") for n, r in enumerate(rows))
    best = None if row.get("greedy") is None else _rollout(row["greedy"], pool, "greedy")
    for i in range(0, len(rollouts), rankings):
        if len({r.output.slate for r in rollouts[i : i + rankings]}) > 1:
            raise KitError(f"field 'rollouts': {i} to {i + rankings - 1} must share a slate ('rankings': {rankings})")
    return Group(example, best, rollouts, rankings, step)


def _rollout(row: object, pool: int, field: str) -> Traced:
    if not isinstance(row, dict):
        raise KitError(f"field '{field}' must be an object")

    def column(name: str, kinds: set[type], what: str) -> tuple:
        value = row.get(name, []) if isinstance(row, dict) else []
        if not isinstance(value, list) or not set(map(type, value)) <= kinds or not (str in kinds or _moderate(value)):
            raise KitError(f"field '{field}.{name}' must be a list of {what}")
        return tuple(value)

    slate, rank = (column(name, {int}, "indices into 'candidates'") for name in ("slate", "rank"))
    for name, part in (("slate", slate), ("rank", rank)):
        if len(set(part)) < len(part) or not all(0 <= i < pool for i in part):
            raise KitError(f"field '{field}.{name}' must hold distinct indices into the {pool} candidates")
    error = row.get("error", "")
    if error not in ERRORS:
        raise KitError(f"field '{field}.error' must be one of {', '.join(ERRORS[1:])}, or empty")
    if not set(rank) <= set(slate) or (error != "") == bool(rank):
        raise KitError(f"field '{field}.rank' must hold candidates of the slate, and be empty with an error only")
    output, tokens = Output(slate, rank, error), column("tokens", {str}, "strings")
    if not tokens:
        return from_lists(output, pool)
    items, phases = column("items", {int}, "indices"), column("phases", {int}, "phases")
    logprobs, entropy = (column(name, {int, float}, "numbers") for name in ("logprobs", "entropy"))
    for name, part in (("items", items), ("phases", phases), ("logprobs", logprobs), ("entropy", entropy)):
        if len(part) != len(tokens) and (part or name in ("items", "phases")):
            raise KitError(f"field '{field}.{name}' has {len(part)} entries for {len(tokens)} tokens")
    if not all(-1 <= i < pool for i in items) or not set(phases) <= {PHASE_SLATE, PHASE_RANK}:
        raise KitError(f"field '{field}': 'items' must be candidates or -1, 'phases' 1 (slate) or 2 (rank)")
    return Traced(output, tokens, items, phases, logprobs, entropy)


def _moderate(numbers: list[float]) -> bool:
    """Whether all are below 1e300 in absolute value, and none is nan."""
    return max(map(abs, numbers), default=0) < 1e300 and not math.isnan(sum(numbers))
