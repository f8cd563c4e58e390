"""What each part of the page shows for what is chosen: sentences instead of errors, whatever is asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

from markupsafe import Markup

from fgrpo.config import KitError
from fgrpo.prompt import Output
from fgrpo.runs.trace import Group, Traced

from . import charts, views
from .library import Library, Opened
from .markup import join, message, shown, tag
from .measures import METHODS, Credit, compare, credit
from .token_strip import COLOURS, tokens_of

LISTED = 1000
"""queries in the list; others are opened by their name in a link"""

T = TypeVar("T")
Own = Mapping[str, str]
"""Traces of one visitor alone: name to file."""


@dataclass(frozen=True)
class Chosen:
    """What the controls say."""

    run: str
    query: str = ""
    rollout: str = ""
    colour: str = "advantage"
    credit: str = "fgrpo"
    against: str = "grpo"
    a: str = ""
    b: str = ""


@dataclass
class Page:
    """What to show: the choice as it was understood, lists to choose from, and HTML by place."""

    chosen: Chosen
    queries: list[tuple[str, str]] = field(default_factory=list)
    rollouts: list[tuple[str, str]] = field(default_factory=list)
    html: dict[str, Markup] = field(default_factory=dict)
    problems: list[Markup] = field(default_factory=list)


PLACES = ("query", "pool", "verdict", "advantages", "strip", "group", "plane", "side", "metrics", "bars")


def show(library: Library, chosen: Chosen, own: Own) -> Page:
    """Everything that the tabs Inspect, Group and Compare show. Never raises on what is chosen."""
    page = Page(chosen, html=dict.fromkeys(PLACES, Markup("")))
    opened = _try(page, lambda: library.trace(chosen.run, own))
    if opened:
        page.problems += [message(note) for note in opened.trace.notes]
        page.chosen = chosen = _understood(page, chosen, opened)
        group = opened.group(chosen.query)
        _inspect(page, opened, group)
        _compare(page, library, group, own)
    return page


def _understood(page: Page, chosen: Chosen, opened: Opened) -> Chosen:
    """The choice, with what is not there replaced by the first that is, and said."""
    keys = list(opened.keys)
    listed = keys[:LISTED]
    if len(keys) > LISTED:
        page.problems.append(
            message(f"The list shows the first {LISTED:,} of {len(keys):,} queries; ?query= opens any.")
        )
    first = next((k for k in keys if opened.group(k).rollouts), keys[0])
    query = _known(page, chosen.query, opened.keys, first, "query")
    page.queries = [(_label(k, opened.group(k)), k) for k in (listed if query in listed else [query, *listed])]
    group = opened.group(query)
    page.rollouts = [("greedy", views.GREEDY)] * bool(group.greedy)
    page.rollouts += [(_rollout_label(n, r), str(n)) for n, r in enumerate(group.rollouts, start=1)]
    names = [name for _, name in page.rollouts]
    default = "1" if group.rollouts else names[0] if names else ""
    return Chosen(
        chosen.run, query, _known(page, chosen.rollout, names, default, "rollout"),
        _known(page, chosen.colour, COLOURS, "advantage", "colour"),
        _known(page, chosen.credit, METHODS, "fgrpo", "credit"), _known(page, chosen.against, METHODS, "grpo", "against"),
        chosen.a, chosen.b,
    )  # fmt: skip


def _known(page: Page, name: str, names: object, default: str, what: str) -> str:
    if name in names:  # type: ignore[operator]
        return name
    if name:
        page.problems.append(
            message(f"{what} {shown(name, 80)!r} is not here: showing {shown(default, 60) or 'none'}.")
        )
    return default


def _label(key: str, group: Group) -> str:
    rollouts = f" \N{MIDDLE DOT} {len(group.rollouts)} rollouts" if group.rollouts else ""
    return f"{shown(key, 60)}{rollouts} \N{MIDDLE DOT} {shown(group.example.query, 50)}"


def _rollout_label(number: int, traced: Traced) -> str:
    return f"{number} of the group" + (f" ({traced.output.error})" if traced.output.error else "")


def _inspect(page: Page, opened: Opened, group: Group) -> None:
    chosen, config, html = page.chosen, opened.config, page.html
    html["query"] = views.query_panel(group.example)
    one, other = credits_of(page, opened, group)
    if one and other:
        html["group"] = views.credit_note(one.method) + views.group_panel(group, config, one, other)
        slate, rank = (tuple(x[0].tolist()) for x in (one.rewards.slate, one.rewards.rank))
        html["plane"] = plane(slate, rank)
    if not chosen.rollout:
        html["strip"] = message("This file holds examples without rollouts: generate some in the Playground.")
        return
    greedy = chosen.rollout == views.GREEDY
    number = -1 if greedy else int(chosen.rollout) - 1
    traced = group.greedy if greedy else group.rollouts[number]
    assert traced is not None
    html["pool"] = views.pool_table(group.example, traced.output)
    html["verdict"] = views.verdict_panel(group.example, traced, config)
    rows: list[list[float] | None] = [None, None]
    if greedy:
        html["advantages"] = message(
            "The greedy rollout takes no part in training: choose a sampled one for advantages."
        )
    else:
        credits = [c for c in (one, other) if c]
        rows = [c.row(number) if c else None for c in (one, other)]
        html["advantages"] = views.advantage_panel(group, number, credits[: 1 + (chosen.credit != chosen.against)])
    tokens = tokens_of(group.example, traced, *rows)
    html["strip"] = views.strip_panel(tokens, chosen.colour, (chosen.credit, chosen.against))


def credits_of(page: Page, opened: Opened, group: Group) -> tuple[Credit | None, Credit | None]:
    """Credit of the group under the method chosen and the one compared with; None and a sentence where there is none."""
    try:
        if not group.rollouts:
            raise KitError("this query has no sampled rollouts in the trace; queries that have say so in the list.")
        return tuple(credit(group, opened.config, m) for m in (page.chosen.credit, page.chosen.against))  # type: ignore[return-value]
    except KitError as error:
        page.html["group"] = message(f"No credit to show: {error}")
        return None, None


@lru_cache(maxsize=64)
def plane(slate: tuple[float, ...], rank: tuple[float, ...]) -> Markup:
    """The group's rewards as a figure."""
    points = "; ".join(f"{n}: {s:.2f}, {r:.2f}" for n, (s, r) in enumerate(zip(slate, rank, strict=True), start=1))
    alt = f"Slate reward against rank reward of {len(slate)} rollouts. {points}"
    return views.picture(charts.reward_plane(slate, rank), alt, "slate-against-rank.png")


def _compare(page: Page, library: Library, group: Group, own: Own) -> None:
    names, html = (page.chosen.a, page.chosen.b), page.html
    a, b = (_try(page, lambda name=name: library.trace(name, own)) for name in names)  # type: ignore[misc]
    if a is None or b is None:
        return
    try:
        html["side"] = views.side_by_side(group.example, _lists(a, group, names[0]), _lists(b, group, names[1]), names)
    except KitError as error:
        html["side"] = message(str(error))
    try:
        found = compare(a, b)
        html["metrics"], html["bars"] = views.metrics_table(found, names), views.fate_bars(found, names)
    except KitError as error:
        html["metrics"] = message(str(error))


def _lists(opened: Opened, group: Group, name: str) -> Output:
    """What a run wrote for the query: greedily, or the first rollout where that is all there is."""
    found = opened.find(group.example)
    traced = found and (found.greedy or next(iter(found.rollouts), None))
    if not traced:
        raise KitError(f"{name} holds no output on this query and pool: choose runs on one task.")
    return traced.output


def listed(library: Library, a: str, b: str, own: Own, run: str, fate: str) -> Markup:
    """The queries behind a bar of the comparison."""
    page = Page(Chosen(""))

    def found() -> Markup:
        if run not in ("0", "1") or fate not in views.FATE_WORDS:
            raise KitError("that bar is not of this comparison.")
        of = int(run)
        return views.query_list(compare(library.trace(a, own), library.trace(b, own)), of, fate, (a, b)[of])

    return _try(page, found) or join(page.problems)


def training(library: Library, name: str) -> Markup:
    """Curves of a run as far as it has come."""
    page = Page(Chosen(""))

    def curves() -> Markup:
        rows = library.metrics(name)
        if not rows:
            return message(f"{name}: nothing logged yet; the curves appear with the first step.")
        last = rows[-1]
        steps = library.config(name).rl.steps if "reward/slate" in last else library.config(name).sft.sft_steps
        facts = ", ".join(f"{k} {v:.3g}" for k, v in last.items() if k != "step" and isinstance(v, int | float))
        told = f"Step {last['step']:,} of {steps:,}. Last: {facts}."
        alt = f"Training curves of {name}, running means over 10 steps. {told}"
        return tag("<p>{}</p>{}", told, views.picture(charts.training_curves(rows), alt, "training.png"))

    return _try(page, curves) or join(page.problems)


def _try(page: Page, make: Callable[[], T]) -> T | None:
    try:
        return make()
    except KitError as error:
        page.problems.append(message(str(error), "problem"))
        return None
