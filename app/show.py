"""What each part of the page shows for the state of the controls. Errors become sentences on the page."""

import json
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from markupsafe import Markup

from fgrpo.config import Config, KitError
from fgrpo.interactive.page import build_page
from fgrpo.prompt import Output
from fgrpo.runs.trace import Group, Traced

from . import charts, runs, story, views
from .library import Cache, Library, Opened
from .markup import escaped, join, message, number, printable, tag, told
from .measures import METHODS, GroupCredit, compare_traces, group_credit, query_rows
from .token_strip import COLOURS, tokens_of

FIRST, SECOND = "lab-rec-fgrpo", "lab-rec-grpo"
"""the run that the page opens on, and the one compared with it"""
OPENING = ("test-84", "6")
"""query and rollout of FIRST that the page opens on: joint credit blames a slate that holds every relevant film"""
QUERIES_LISTED = 1000
"""maximum number of queries in the table; any other opens by its name"""

DRAWN = Cache(128, 16_000_000)
"""Inspect and Group of the last choices, in characters: a class looks at the same queries, which are drawn once for all"""

T = TypeVar("T")
Own = Mapping[str, str]
"""The traces of one visitor: name to file."""


@dataclass(frozen=True)
class Chosen:
    """The state of the controls; their names are the parameters of a link. `runs`: names, one per line."""

    run: str
    query: str = ""
    rollout: str = ""
    colour: str = "advantage"
    credit: str = "fgrpo"
    against: str = "grpo"
    a: str = ""
    b: str = ""
    runs: str = ""


@dataclass
class Page:
    """What to show: the corrected state of the controls, the rollouts to choose from, HTML by slot, and messages.

    `place`: number of the query (from 1), and how many there are. `drawn`: what each view of DEEP shows now, as a key.
    """

    chosen: Chosen
    place: tuple[int, int] = (0, 0)
    rollouts: list[tuple[str, str]] = field(default_factory=list)
    html: dict[str, Markup] = field(default_factory=dict)
    problems: list[Markup] = field(default_factory=list)
    drawn: dict[str, str] = field(default_factory=dict)


LIGHT = ("reading", "strip", "words", "query", "pool", "errors", "advantages")
"""slots of the tab Inspect, which every answer fills"""
DEEP = {
    "group": ("group", "plane"),
    "queries": ("table",),
    "compare": ("side", "metrics", "scatter", "bars"),
    "runs": ("overview", "overlaid", "histograms", "steps"),
    "try": ("try",),
}
"""slots of the tabs that are drawn when they are open"""
HEAVY = ("queries", "compare", "runs")
"""those that read whole traces"""
SLOTS = (*LIGHT, *(slot for slots in DEEP.values() for slot in slots))


def show(library: Library, chosen: Chosen, own: Own, view: str = "", drawn: Mapping[str, str] | None = None) -> Page:
    """What the tab Inspect shows, and the tab `view` unless `drawn` has it. Never raises, whatever is chosen.

    In place of a run that cannot be opened, the first that can is shown: after a restart, a deletion or a wrong link.
    """
    page = Page(chosen, html=dict.fromkeys(LIGHT, Markup("")), drawn=dict(drawn or {}))
    opened = _try(page, lambda: library.trace(chosen.run, own))
    if not opened:
        names = library.having("trace.jsonl")
        first = next((n for n in (FIRST, *names) if n in names and n != chosen.run), "")
        opened = _try(page, lambda: library.trace(first, own)) if first else None
        chosen = replace(chosen, run=first, query="", rollout="")
        if opened:
            page.problems.append(message(f"Showing {first} in its place."))
    if opened:
        found = opened
        page.problems += [message(note) for note in opened.trace.notes]
        traces = {*library.having("trace.jsonl"), *own}
        group = _try(page, lambda: _corrected(page, chosen, found, traces))
        if group:
            c = page.chosen
            choice = (found, c.query, c.rollout, c.colour, c.credit, c.against)
            _try(page, lambda: page.html.update(DRAWN.get(choice, lambda: inspected(*choice), _length)))
            if view in DEEP:
                _deep(page, library, found, group, own, view)
    return page


def _corrected(page: Page, chosen: Chosen, opened: Opened, traces: Collection[str]) -> Group:
    """The query; in `page` the choice, with what does not exist replaced by a default and reported on the page."""
    keys = list(opened.keys)
    opening = OPENING[0] if chosen.run == FIRST and not chosen.query else ""
    rolled = (key for key in keys if opened.mark(key).sampled)
    query = _known(page, chosen.query or opening, opened.keys, next(rolled, keys[0]), "query")
    page.place = (opened.keys[query] + 1, len(keys))
    group = opened.group(query)
    page.rollouts = [("greedy", views.GREEDY)] * bool(group.greedy)
    page.rollouts += [(_rollout_label(n, r), str(n)) for n, r in enumerate(group.rollouts, start=1)]
    names = [name for _, name in page.rollouts]
    default = OPENING[1] if query == opening else "1" if group.rollouts else names[0] if names else ""
    page.chosen = Chosen(
        chosen.run, query, _known(page, chosen.rollout, names, default, "rollout"),
        _known(page, chosen.colour, COLOURS, "advantage", "colour"),
        _known(page, chosen.credit, METHODS, "fgrpo", "credit"), _known(page, chosen.against, METHODS, "grpo", "against"),
        _known(page, chosen.a, traces, "", "run A"), _known(page, chosen.b, traces, "", "run B"),
        "\n".join(filter(None, (_known(page, name, traces, "", "run") for name in chosen.runs.split("\n")))),
    )  # fmt: skip
    return group


def _known(page: Page, name: str, names: object, default: str, what: str) -> str:
    if name in names:  # type: ignore[operator]
        return name
    if name:
        page.problems.append(
            message(f"{what} {printable(name, 80)!r} was not found; showing {printable(default, 60) or 'none'}.")
        )
    return default


def neighbour(library: Library, chosen: Chosen, own: Own, step: int) -> str:
    """The name of the next query of the run (step 1), or the one before (-1); after the last comes the first."""
    try:
        keys = list(library.trace(chosen.run, own).keys)
        return keys[(keys.index(chosen.query) + step) % len(keys)]
    except (KitError, ValueError):
        return ""


def _rollout_label(number: int, traced: Traced) -> str:
    return f"sampled {number}" + (f" ({traced.output.error})" if traced.output.error else "")


def _length(html: Mapping[str, Markup]) -> int:
    return sum(map(len, html.values()))


def inspected(opened: Opened, query: str, rollout: str, colour: str, credit: str, against: str) -> dict[str, Markup]:
    """The slots LIGHT for a choice."""
    group, config, html = opened.group(query), opened.config, dict.fromkeys(LIGHT, Markup(""))
    html["query"] = views.query_panel(group.example)
    html["words"] = story.glossary(credit, against)
    one = other = None
    try:
        one, other = credits_of(group, config, credit, against)
    except KitError as error:
        html["reading"] = message(f"No advantages: {error}")
    if not rollout:
        html["strip"] = message("This query has no rollouts; generate some in the tab Playground.")
        return html
    greedy = rollout == views.GREEDY
    number = -1 if greedy else int(rollout) - 1
    traced = group.greedy if greedy else group.rollouts[number]
    assert traced is not None
    html["pool"] = views.pool_table(group.example, traced.output, config.grammar)
    html["errors"] = views.errors_panel(group.example, traced, config)
    credits = [] if greedy else [c for c in (other, one) if c][-2 if credit != against else -1 :]
    if greedy:
        html["advantages"] = message(
            "The greedy rollout is not used in training: choose a sampled rollout to see advantages."
        )
    elif one and other:
        html["reading"] = story.reading(group, number, one, other)
        html["advantages"] = views.advantage_panel(group, number, credits)
    rows = [c.row(number) for c in credits]
    strips = [
        (c.method, tokens_of(group.example, traced, row, rows[1 - n] if len(rows) > 1 else row))
        for n, (c, row) in enumerate(zip(credits, rows, strict=True))
    ]
    if colour != "advantage":
        strips = strips[-1:]  # the colours of both would be the same
    html["strip"] = views.strip_panel(strips or [("", tokens_of(group.example, traced))], colour)
    return html


def credits_of(group: Group, config: Config, credit: str, against: str) -> tuple[GroupCredit, GroupCredit]:
    """Credit of the group under two methods. Raises KitError if it cannot be computed."""
    if not group.rollouts:
        raise KitError("this query has no sampled rollouts in the trace; the table of queries shows which have some.")
    return group_credit(group, config, credit), group_credit(group, config, against)


def grouped(opened: Opened, query: str, credit: str, against: str) -> dict[str, Markup]:
    """The slots of the tab Group for a choice."""
    group = opened.group(query)
    try:
        one, other = credits_of(group, opened.config, credit, against)
    except KitError as error:
        return {"group": message(f"No advantages: {error}"), "plane": Markup("")}
    slate, rank = (tuple(x[0].tolist()) for x in (one.rewards.slate, one.rewards.rank))
    panel = views.credit_note(one.method) + views.group_panel(group, opened.config, one, other)
    return {"group": panel, "plane": charts.reward_plane(slate, rank)}


def _deep(page: Page, library: Library, opened: Opened, group: Group, own: Own, view: str) -> None:
    """Draw a view, unless it is drawn already for this choice and these files."""
    c = page.chosen
    choice = (opened, c.query, c.credit, c.against)
    names = [name for name in c.runs.split("\n") if name]
    depends = {
        "group": [c.run, c.query, c.credit, c.against, library.stamp(c.run, own)],
        "queries": [c.run, c.credit, c.against, library.stamp(c.run, own)],
        "compare": [c.run, c.query, c.a, c.b, *(library.stamp(name, own) for name in (c.run, c.a, c.b))],
        "runs": [c.run, c.query, c.credit, c.runs, *(library.stamp(name, own) for name in (c.run, *names))],
        "try": [c.run, c.query, library.stamp(c.run, own)],
    }  # fmt: skip
    key = json.dumps(depends[view])
    if page.drawn.get(view) == key:
        return
    page.html |= dict.fromkeys(DEEP[view], Markup(""))
    draw: dict[str, Callable[[], object]] = {
        "group": lambda: page.html.update(DRAWN.get(choice, lambda: grouped(*choice), _length)),
        "queries": lambda: _queries(page, opened),
        "compare": lambda: _compare(page, library, group, own),
        "runs": lambda: _runs(page, library, own, names),
        "try": lambda: _try_it(page, opened, group),
    }
    earlier = len(page.problems)
    _try(page, draw[view])
    page.html[DEEP[view][0]] = join(page.problems[earlier:]) + page.html[DEEP[view][0]]  # in the view that it is about
    del page.problems[earlier:]
    page.drawn[view] = key


def _queries(page: Page, opened: Opened) -> None:
    c = page.chosen
    rows = query_rows(opened, c.credit, c.against, QUERIES_LISTED)
    page.html["table"] = views.query_table(rows, c.run, c.credit, c.against, len(opened.keys))


def _compare(page: Page, library: Library, group: Group, own: Own) -> None:
    names, html = (page.chosen.a, page.chosen.b), page.html
    if not all(names):
        html["side"] = message("Choose two runs, A and B.")
        return
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
        html["scatter"] = runs.per_query(library, *names, own)
    except KitError as error:
        html["metrics"] = message(str(error))


def _runs(page: Page, library: Library, own: Own, names: list[str]) -> None:
    """Each part by itself: what one cannot show, the others may."""
    c = page.chosen
    for slot, draw in (
        ("overview", lambda: runs.overview(library, names, own)),
        ("overlaid", lambda: runs.overlaid(library, [name for name in names if name not in own])),
        ("histograms", lambda: runs.histograms(library, names, own, c.credit)),
        ("steps", lambda: runs.over_steps(library, c.run, c.query, own)),
    ):
        try:
            page.html[slot] = draw()
        except KitError as error:
            page.html[slot] = message(told(error))


def _try_it(page: Page, opened: Opened, group: Group) -> None:
    """The group as a page that computes rewards and credit itself, in a frame without access to the app; its download."""
    c = page.chosen
    found = build_page(replace(opened.trace, groups=[group], notes=()))
    name = re.sub(r"[^\w.-]+", "-", f"{printable(c.run, 40)}-{printable(c.query, 40)}").strip("-.") or "group"
    page.html["try"] = tag(
        '<p>Move candidates between pool, slate and ranking: rewards and advantages follow. '
        '<button type="button" data-save="{}.html">Download this page (HTML)</button></p>'
        '<iframe class="explorable" title="Try it: query {} of {}" sandbox="allow-scripts" srcdoc="{}"></iframe>',
        name, c.query, c.run, escaped(found.html),
    )  # fmt: skip


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
        return tag("<p>{}</p>{}", text, charts.training_curves(rows))

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
