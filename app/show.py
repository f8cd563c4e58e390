"""What each part of the page shows for the state of the controls. Errors become sentences on the page."""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TypeVar

from markupsafe import Markup

from fgrpo.config import KitError
from fgrpo.interactive.page import build_page
from fgrpo.prompt import Output
from fgrpo.runs.trace import Group, Traced

from . import charts, views
from .library import Library, Opened
from .markup import escaped, join, message, number, printable, tag, told
from .measures import METHODS, GroupCredit, compare_traces, group_credit
from .token_strip import COLOURS, tokens_of

FIRST, SECOND = "lab-rec-fgrpo", "lab-rec-grpo"
"""the run that the page opens on, and the one compared with it"""
QUERIES_LISTED = 1000
"""maximum number of queries in the list; a link opens any other by its name"""

T = TypeVar("T")
Own = Mapping[str, str]
"""The traces of one visitor: name to file."""


@dataclass(frozen=True)
class Chosen:
    """The state of the controls; their names are the parameters of a link."""

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
    """What to show: the corrected state of the controls, the lists to choose from, HTML by slot, and messages."""

    chosen: Chosen
    queries: list[tuple[str, str]] = field(default_factory=list)
    rollouts: list[tuple[str, str]] = field(default_factory=list)
    html: dict[str, Markup] = field(default_factory=dict)
    problems: list[Markup] = field(default_factory=list)


SLOTS = ("query", "pool", "errors", "advantages", "strip", "group", "plane", "side", "metrics", "bars")


def show(library: Library, chosen: Chosen, own: Own) -> Page:
    """Everything that the tabs Inspect, Group and Compare show. Never raises, whatever is chosen.

    In place of a run that cannot be opened, the first that can is shown: after a restart, a deletion or a wrong link.
    """
    page = Page(chosen, html=dict.fromkeys(SLOTS, Markup("")))
    opened = _try(page, lambda: library.trace(chosen.run, own))
    if not opened:
        names = library.having("trace.jsonl")
        first = next((n for n in (FIRST, *names) if n in names and n != chosen.run), "")
        opened = _try(page, lambda: library.trace(first, own)) if first else None
        chosen = replace(chosen, run=first, query="", rollout="")
        if opened:
            page.problems.append(message(f"Showing {first} in its place."))
    if opened:
        page.problems += [message(note) for note in opened.trace.notes]
        page.chosen = chosen = _corrected(page, chosen, opened)
        group = opened.group(chosen.query)
        _try(page, lambda: _inspect(page, opened, group))
        _try(page, lambda: _compare(page, library, group, own))
    return page


def _corrected(page: Page, chosen: Chosen, opened: Opened) -> Chosen:
    """The choice, with what does not exist replaced by a default and reported on the page."""
    keys = list(opened.keys)
    offered = keys[:QUERIES_LISTED]
    if len(keys) > QUERIES_LISTED:
        how = "add query=NAME to the address to open any other"
        page.problems.append(message(f"The list has the first {QUERIES_LISTED:,} of {len(keys):,} queries; {how}."))
    first = next((k for k in keys if opened.group(k).rollouts), keys[0])
    query = _known(page, chosen.query, opened.keys, first, "query")
    page.queries = [(_label(k, opened.group(k)), k) for k in (offered if query in offered else [query, *offered])]
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
            message(f"{what} {printable(name, 80)!r} was not found; showing {printable(default, 60) or 'none'}.")
        )
    return default


def _label(key: str, group: Group) -> str:
    rollouts = f" \N{MIDDLE DOT} {len(group.rollouts)} rollouts" if group.rollouts else ""
    return f"{printable(key, 60)}{rollouts} \N{MIDDLE DOT} {printable(group.example.query, 50)}"


def _rollout_label(number: int, traced: Traced) -> str:
    return f"sampled {number}" + (f" ({traced.output.error})" if traced.output.error else "")


def _inspect(page: Page, opened: Opened, group: Group) -> None:
    chosen, config, html = page.chosen, opened.config, page.html
    html["query"] = views.query_panel(group.example)
    one, other = credits_of(page, opened, group)
    if one and other:
        html["group"] = views.credit_note(one.method) + views.group_panel(group, config, one, other)
        slate, rank = (tuple(x[0].tolist()) for x in (one.rewards.slate, one.rewards.rank))
        html["plane"] = plane(slate, rank)
    if not chosen.rollout:
        html["strip"] = message("This query has no rollouts; generate some in the tab Playground.")
        return
    greedy = chosen.rollout == views.GREEDY
    number = -1 if greedy else int(chosen.rollout) - 1
    traced = group.greedy if greedy else group.rollouts[number]
    assert traced is not None
    html["pool"] = views.pool_table(group.example, traced.output, config.grammar)
    html["errors"] = views.errors_panel(group.example, traced, config)
    rows: list[list[float] | None] = [None, None]
    if greedy:
        html["advantages"] = message(
            "The greedy rollout is not used in training: choose a sampled rollout to see advantages."
        )
    else:
        credits = [c for c in (one, other) if c]
        rows = [c.row(number) if c else None for c in (one, other)]
        html["advantages"] = views.advantage_panel(group, number, credits[: 1 + (chosen.credit != chosen.against)])
    tokens = tokens_of(group.example, traced, *rows)
    html["strip"] = views.strip_panel(tokens, chosen.colour, (chosen.credit, chosen.against))


def credits_of(page: Page, opened: Opened, group: Group) -> tuple[GroupCredit | None, GroupCredit | None]:
    """Credit of the group under the two methods chosen; None and a sentence on the page if it cannot be computed."""
    try:
        if not group.rollouts:
            raise KitError(
                "this query has no sampled rollouts in the trace; the list of queries shows which have some."
            )
        return tuple(group_credit(group, opened.config, m) for m in (page.chosen.credit, page.chosen.against))  # type: ignore[return-value]
    except KitError as error:
        page.html["group"] = message(f"No advantages: {error}")
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
        lists = _lists(a, group, names[0]), _lists(b, group, names[1])
        html["side"] = views.side_by_side(group.example, *lists, names, (a.config.grammar, b.config.grammar))
    except KitError as error:
        html["side"] = message(str(error))
    try:
        found = compare_traces(a, b)
        html["metrics"], html["bars"] = views.metrics_table(found, names), views.fate_bars(found, names)
    except KitError as error:
        html["metrics"] = message(str(error))


def _lists(opened: Opened, group: Group, name: str) -> Output:
    """The output of a run for the query: greedy decoding, else its first sampled rollout."""
    found = opened.find(group.example)
    traced = found and (found.greedy or next(iter(found.rollouts), None))
    if not traced:
        raise KitError(f"{name} has no output for this query and pool: choose runs of one task.")
    return traced.output


def queries_of_bar(library: Library, a: str, b: str, own: Own, run: str, fate: str) -> Markup:
    """The queries counted in a bar of the comparison: `run` is 0 or 1, `fate` a name in FATES."""
    page = Page(Chosen(""))

    def found() -> Markup:
        if run not in ("0", "1") or fate not in views.FATE_WORDS:
            raise KitError("this bar does not belong to the comparison; reload the page.")
        side = int(run)
        both = compare_traces(library.trace(a, own), library.trace(b, own))
        return views.query_list(both, side, fate, (a, b)[side])

    return _try(page, found) or join(page.problems)


def explorable(library: Library, run: str, query: str, own: Own) -> Markup:
    """The group as a page that computes rewards and credit itself, in a frame without access to the app; its download."""
    page = Page(Chosen(""))

    def framed() -> Markup:
        opened = library.trace(run, own)
        group = opened.group(query)
        found = build_page(replace(opened.trace, groups=[group], notes=()))
        name = re.sub(r"[^\w.-]+", "-", f"{printable(run, 40)}-{printable(query, 40)}").strip("-.") or "group"
        return tag(
            '<p>Move candidates between pool, slate and ranking: rewards and advantages follow. '
            '<button type="button" data-save="{}.html">Download this page (HTML)</button></p>'
            '<iframe class="explorable" title="Try it: query {} of {}" sandbox="allow-scripts" srcdoc="{}"></iframe>',
            name, query, run, escaped(found.html),
        )  # fmt: skip

    return _try(page, framed) or join(page.problems)


def training(library: Library, name: str) -> Markup:
    """The training curves of a run, up to its last step so far."""
    page = Page(Chosen(""))

    def curves() -> Markup:
        rows = library.metrics(name)
        if not rows or not charts.panels(rows):
            return message(f"{name}: nothing is logged yet; the curves appear after the first step.")
        last = rows[-1]
        steps = library.config(name).rl.steps if "reward/slate" in last else library.config(name).sft.sft_steps
        values = ", ".join(f"{printable(k, 40)} {number(v, '.3g')}" for k, v in last.items() if k != "step")
        text = f"Step {last['step']:,} of {steps:,}. Last values: {values}."
        alt = f"Training curves of {name}, running means over 10 steps. {text}"
        return tag("<p>{}</p>{}", text, views.picture(charts.training_curves(rows), alt, "training.png"))

    return _try(page, curves) or join(page.problems)


def _try(page: Page, make: Callable[[], T]) -> T | None:
    try:
        return make()
    except KitError as error:
        page.problems.append(message(told(error), "problem"))
    except Exception as error:  # a visitor's file must not end in an error of the server
        print(f"app: {error!r:.500}", file=sys.stderr)
        text = f"this cannot be shown ({type(error).__name__}: {told(error)[:200]}); the app still runs, choose another run."
        page.problems.append(message(text, "problem"))
    return None
