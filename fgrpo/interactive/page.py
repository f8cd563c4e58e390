"""A trace as one HTML file: rewards and advantages computed in the browser, candidates moved by hand.

The file holds its code, its style and its data, asks for nothing from outside, and opens from disk, from a static host, in
an iframe of a notebook or of the app (`Page.html` as srcdoc). Sources: page/ beside this file.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from ..config import Config, KitError
from ..data import Example
from ..runs.trace import Group, Trace, Traced, read_trace
from ..tasks.atomic import write_text

MARK = "<!doctype html><!-- a trace page of fgrpo -->"
"""first line of a page, by which one is known as the kit's own"""
SOURCES = Path(__file__).with_suffix("")
ROLLOUTS, TEXT, ENTRIES = 64, 200, 50
"""maximum number of rollouts per group, of characters of a text, of entries of a history"""
BYTES = 8_000_000
"""maximum size of the data of a page"""
REWARDS = ("recall", "precision", "f1")
METHODS = {
    "grpo": "one number for all tokens of a rollout: slate reward plus lambda times rank reward, minus the group's mean.",
    "rloo": "as grpo, but minus the mean of the other rollouts, which is G / (G - 1) times grpo.",
    "gdpo": "each reward over its own spread in the group, then their sum over the spread of the batch (here: the group).",
    "fgrpo": "slate tokens get the slate reward minus its mean, rank tokens lambda times the rank reward minus its mean.",
    "reward_to_go": "slate tokens as grpo, because both rewards come after them; rank tokens as fgrpo.",
    "anchor": "as reward_to_go, but a ranking is compared with those of the same slate, where the group has others.",
    "control": "as reward_to_go, but without the part of the rank reward that the slate's reward predicts.",
    "nested": "a slate is compared with the other slates, a ranking with the other rankings of the same slate.",
    "item": "each candidate gets what the slate reward loses without it, and in the ranking what it and those after it add.",
    "shapley": "as item, but the candidates of a slate share its reward by their Shapley values, which sum to it.",
}
"""the methods that the page computes, each in a sentence"""


@runtime_checkable
class Traceable(Protocol):
    """What can be made a trace of: a group of the front door."""

    def trace(self) -> Trace:
        """The trace."""
        ...


@dataclass(frozen=True)
class Page:
    """A page: its HTML, the number of groups in it, and one sentence for each kind of thing that was left out."""

    html: str = field(repr=False)
    groups: int
    left_out: tuple[str, ...]


def export_html(
    source: str | Path | Trace | Sequence[Group] | Traceable, path: str | Path, most: int = 50, config: Config | None = None
) -> Page:  # fmt: skip
    """Write a trace as one HTML file in which candidates can be moved between pool, slate and ranking.

    source: a trace file, a `Trace`, a list of `fgrpo.runs.trace.Group`, or an object whose `trace()` returns a `Trace`.
    most: maximum number of groups (a query with its rollouts each); of more, those of the latest steps are written.
    config: the run's configuration, of a list of groups, which brings none; default `Config()`.

    Returns the page; `left_out` names what is not in it. Raises KitError if no query of the source has two rollouts, and
    rather than overwrite a file that is not such a page.
    """
    path = Path(path)
    check_ours(path)
    page = build_page(source, most, config)
    write_text(path, page.html)
    return page


def check_ours(path: Path) -> None:
    """Raise KitError unless a page can be written here: to a new file, an empty one, or another page of this kit."""
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise KitError(f"{path}: is a folder, a link or a device; name an HTML file to write.")
        if path.exists():
            with path.open("rb") as file:
                begin = file.read(len(MARK))
            if begin and begin != MARK.encode():
                raise KitError(f"{path}: is not a page of this kit and would be overwritten; name another HTML file.")
    except OSError as error:
        raise KitError(f"{path}: cannot be written ({error.strerror}); name another HTML file.") from None


def build_page(
    source: str | Path | Trace | Sequence[Group] | Traceable, most: int = 50, config: Config | None = None
) -> Page:
    """The page of a trace, not written; arguments and errors as of `export_html`."""
    if type(most) is not int or most < 1:
        raise KitError(f"most {most!r:.40} must be a whole number above 0: the maximum number of groups in the page.")
    trace = _trace_of(source, config)
    written, left_out = _groups(trace, most)
    data = {"run": _run(trace, left_out), "methods": METHODS, "groups": [json.loads(g) for g in written]}
    style, script, template = (
        (SOURCES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "page.html")
    )
    script_hash, style_hash = (
        "'sha256-" + base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() + "'" for part in (script, style)
    )
    policy = (
        f"default-src 'none'; script-src {script_hash}; style-src {style_hash}; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "mark": MARK, "policy": policy, "title": html.escape(f"Credit of {shown(trace.name, 60)}"), "style": style,
        "script": script, "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }  # fmt: skip
    return Page(re.sub(r"@@(\w+)@@", lambda m: parts[m[1]], template), len(written), tuple(left_out))


def _trace_of(source: object, config: Config | None) -> Trace:
    trace = read_trace(source, Path(source).name) if isinstance(source, str | Path) else source
    if isinstance(trace, Traceable):
        trace = trace.trace()
        if not isinstance(trace, Trace):
            raise KitError(f"trace() of a {type(source).__name__} must return a Trace, not {type(trace).__name__}.")
    if isinstance(trace, Trace):
        if config is not None:
            raise KitError("config is for a list of groups: a trace has its own configuration.")
        return trace
    if not isinstance(trace, Sequence) or not all(isinstance(g, Group) for g in trace):
        kind = type(source).__name__
        raise KitError(
            f"export_html takes a trace file, a Trace, a list of Group or an object with trace(), not {kind}."
        )
    return Trace("groups", config or Config(), list(trace), {})


def _groups(trace: Trace, most: int) -> tuple[list[str], list[str]]:
    """The groups that fit into a page, as JSON, and sentences on what was left out."""
    left_out = [shown(note, 300) for note in trace.notes]
    credited = [g for g in trace.groups if len(g.rollouts) > 1]
    if not credited:
        raise KitError(
            f"{shown(trace.name)}: no query has two rollouts or more, which credit compares; sample some with "
            "python -m fgrpo trace --checkpoint RUN --out trace.jsonl."
        )
    if short := len(trace.groups) - len(credited):
        left_out.append(f"{short:,} queries with fewer than two rollouts are left out: credit compares rollouts.")
    latest = sorted(range(len(credited)), key=lambda i: -(credited[i].step or 0))[:most]
    written, size = list[str](), 0
    for group in [credited[i] for i in sorted(latest)]:
        row = json.dumps(_group_row(group))
        size += len(row)
        if size > BYTES:
            break
        written.append(row)
    if not written:
        raise KitError(f"{shown(trace.name)}: one query alone takes more than {BYTES:,} bytes: trace smaller pools.")
    if len(written) < len(credited):
        why = f"{BYTES:,} bytes" if len(written) < len(latest) else f"{most:,} groups"
        left_out.append(
            f"{len(credited) - len(written):,} of {len(credited):,} groups are left out: at most {why} fit."
        )
    if cut := sum(len(g.rollouts) > ROLLOUTS for g in credited):
        left_out.append(f"More than {ROLLOUTS} rollouts in {cut:,} groups: the first ones are shown and compared.")
    return written, left_out


def _group_row(group: Group) -> dict[str, object]:
    example, k = group.example, group.rankings
    count = min(len(group.rollouts), max(2, ROLLOUTS // k * k))
    return {
        "id": shown(example.id, 60), "query": shown(example.query, 500), "step": group.step, "rankings": k,
        "history": [shown(text) for text in example.history[:ENTRIES]], "entries": len(example.history),
        "titles": [shown(text) for text in example.candidates], "gains": _gains(example),
        "rollouts": [_rollout_row(r) for r in group.rollouts[:count]],
    }  # fmt: skip


def _gains(example: Example) -> list[float]:
    return [*example.gains] or [float(i in example.relevant) for i in range(len(example.candidates))]


def _rollout_row(traced: Traced) -> dict[str, object]:
    texts = [shown(text, 40) for text in traced.tokens]
    return {**traced.output._asdict(), "texts": texts, "items": traced.items, "phases": traced.phases}


def _run(trace: Trace, left_out: list[str]) -> dict[str, object]:
    """What the page has to know of the run, and sentences on where it comes from."""
    config, rl = trace.config, trace.config.rl
    versions = trace.made.get("versions")
    kit = versions.get("fgrpo", "") if isinstance(versions, dict) else ""
    made = f", made {trace.made['date']}" if trace.made.get("date") else ""
    about = [
        f"Trace {shown(trace.name, 80)}, task {shown(config.task, 80)}{shown(made, 40)}"
        f"{shown(f' with fgrpo {kit}' if kit else '', 40)}.",
        f"The run's own credit: {shown(rl.credit, 60)}, lambda {rl.lam:g}, slate reward {shown(rl.slate_reward, 60)}, "
        f"{rl.group} rollouts of a query.",
    ]
    for what, name, known, instead in (
        ("credit method", rl.credit, METHODS, "the methods of its menus"),
        ("slate reward", rl.slate_reward, REWARDS, "recall"),
        ("rank reward", rl.rank_reward, ("ndcg",), "NDCG"),
    ):
        if name not in known:
            about.append(f"The {what} {shown(name, 60)} is a function of the run's own; this page shows {instead}.")
    if rl.slate_noise or rl.rank_noise:
        about.append("The run added noise to its rewards; this page shows them without it.")
    if rl.learn != "both":
        about.append(f"The run trained its {rl.learn} tokens alone: the advantages of the others are 0.")
    return {
        "about": [*about, *left_out], "lam": rl.lam, "penalty": rl.format_penalty, "std": rl.scale == "std",
        "reward": rl.slate_reward if rl.slate_reward in REWARDS else "recall", "learn": rl.learn,
        "slateSize": config.grammar.slate_size, "rankSize": config.grammar.rank_size,
    }  # fmt: skip


def shown(text: object, limit: int = TEXT) -> str:
    """A text cut to `limit` characters; what cannot be seen, or turns the direction of other text, as its code point."""
    text = str(text)
    seen = "".join(c if c.isprintable() else " " if c.isspace() else f"\u2308{ord(c):X}\u2309" for c in text[:limit])
    return seen if len(text) <= limit else f"{seen}\N{HORIZONTAL ELLIPSIS}"
