"""What the page shows, as HTML: pure functions of traces and numbers."""

import base64
import io
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.figure import Figure

from fgrpo.config import Config
from fgrpo.credit import JOINT
from fgrpo.data import Example
from fgrpo.evaluate import FATES
from fgrpo.prompt import Output
from fgrpo.runs.trace import Group, Traced

from .markup import join, message, shown, signed, table, tag
from .measures import FATE_WORDS, PHASE_NAMES, Comparison, Credit, fate_of, flips, scores, verdict, zero_phases
from .token_strip import Token, legend, span, strip, tokens_of

GREEDY = "greedy"


def places(items: Sequence[int]) -> dict[int, int]:
    """Place (from 1) of each candidate in a list."""
    return {item: place for place, item in enumerate(items, start=1)}


def query_panel(example: Example) -> Markup:
    """The query and its history."""
    history = join(tag("<li>{}</li>", text) for text in example.history[:50])
    more = f" ({len(example.history) - 50} more)" if len(example.history) > 50 else ""
    return tag(
        '<div class="query"><p><strong>Query</strong> {}</p>{}</div>', shown(example.query, 2000),
        tag("<details><summary>History: {} entries{}</summary><ol>{}</ol></details>", len(example.history), more, history)
        if example.history else "",
    )  # fmt: skip


def pool_table(example: Example, output: Output, caption: str = "The pool") -> Markup:
    """Every candidate: place in the slate, rank, relevance, gain, and what became of the relevant ones."""
    slate, rank, fate = places(output.slate), places(output.rank), fate_of(example, output)
    rows = [
        (
            str(i + 1), shown(text), _place(slate.get(i)), _place(rank.get(i)),
            "\N{BLACK STAR} relevant" if i in example.relevant else "no", "1" if i in example.relevant else "0",
            FATE_WORDS[fate[i]].split(":")[0] if i in fate else "",
        )
        for i, text in enumerate(example.candidates)
    ]  # fmt: skip
    head = ("#", "Candidate", "Slate", "Rank", "Relevant", "Gain", "What became of it")
    return table(caption, head, rows, sortable=True)


def _place(place: int | None) -> str:
    return "\N{EN DASH}" if place is None else str(place)


def verdict_panel(example: Example, traced: Traced, config: Config) -> Markup:
    """Rewards of one rollout, and its errors in words."""
    words = join(tag("<li>{}</li>", text) for text in verdict(example, traced.output))
    rewards = join(
        tag("<dt>{}</dt><dd>{}</dd>", name, f"{x:.3f}") for name, x in scores(example, traced.output, config).items()
    )
    return tag('<div class="verdict"><h2>Rewards and errors</h2><ul>{}</ul><dl>{}</dl></div>', words, rewards)


def advantage_panel(group: Group, rollout: int, credits: Sequence[Credit]) -> Markup:
    """Advantages of one rollout by phase, under each method."""
    rows = [(c.method, *(_range(c.of_phase(group, rollout, PHASE_NAMES[p])) for p in PHASE_NAMES)) for c in credits]
    return table("Advantage by phase", ("Method", "slate tokens", "rank tokens"), rows)


def _range(ends: tuple[float, float]) -> str:
    low, high = map(signed, ends)
    return low if low == high else f"{low} to {high}"


def strip_panel(tokens: Sequence[Token], colour: str, names: tuple[str, str]) -> Markup:
    """One completion with its legend."""
    return tag("<h2>The completion, token by token</h2>{}{}", legend(colour, span(tokens, colour)),
               strip(tokens, colour, names, f"Tokens of the completion, coloured by {colour}"))  # fmt: skip


def credit_note(method: str) -> Markup:
    """What a reader should know of a method as it is shown here."""
    if method == "gdpo":
        return message("gdpo divides by the spread of the whole batch; here the batch is this one query.")
    return Markup("")


def group_panel(group: Group, config: Config, one: Credit, other: Credit) -> Markup:
    """All rollouts of a query: rewards, advantages, tokens whose sign flips between two methods."""
    flipped = flips(group, one, other)
    rows = [_group_row(group, n, one, flipped[n]) for n in range(len(group.rollouts))]
    head = ("Rollout", "Slate length", "Slate reward", "Rank reward", "Format", "Sum",
            "Slate advantage", "Rank advantage", f"Signs flipped against {other.method}", "Error")  # fmt: skip
    tokens = [
        tokens_of(group.example, r, one.row(n), other.row(n)) for n, r in enumerate(group.rollouts)
    ]  # fmt: skip
    most = max((span(t, "advantage") for t in tokens), default=0.0)
    strips = join(
        tag('<div class="row"><span>{}</span>{}</div>', n + 1,
            strip(t, "advantage", (one.method, other.method), f"Rollout {n + 1}", most, compact=True))
        for n, t in enumerate(tokens)
    )  # fmt: skip
    return tag("{}{}{}<h2>Advantage of every token under {}</h2>{}{}", _flip_note(flipped, one, other), _zero_note(one),
               table(f"{len(rows)} rollouts, credit {one.method}", head, rows, sortable=True), one.method,
               legend("advantage", most), tag('<div class="strips">{}</div>', strips))  # fmt: skip


def _group_row(group: Group, n: int, one: Credit, flipped: tuple[int, int]) -> list[object]:
    output = group.rollouts[n].output
    slate, rank, form = (float(x[0, n]) + 0.0 for x in (one.rewards.slate, one.rewards.rank, one.rewards.format))
    zero = zero_phases(one.rewards)
    advantages = [
        _range(one.of_phase(group, n, code)) + (" (zero variance)" if phase in zero and one.method not in JOINT else "")
        for phase, code in PHASE_NAMES.items()
    ]
    words = f"{sum(flipped)} tokens ({flipped[0]} slate, {flipped[1]} rank)" if sum(flipped) else "none"
    button = tag('<button type="button" data-rollout="{}" aria-label="Inspect rollout {}">{}</button>', *[n + 1] * 3)
    return [button, str(len(output.slate)), f"{slate:.3f}", f"{rank:.3f}", signed(form), f"{slate + rank + form:.3f}",
            *advantages, words, output.error]  # fmt: skip


def _flip_note(flipped: Sequence[tuple[int, int]], one: Credit, other: Credit) -> Markup:
    if one.method == other.method:
        return message("Choose two different methods to see whose tokens change sides.")
    slate, rank = (sum(f[i] for f in flipped) for i in (0, 1))
    return message(
        f"{slate} slate tokens and {rank} rank tokens change sign between {other.method} and {one.method}: what one "
        "method praises, the other blames."
    )


def _zero_note(one: Credit) -> Markup:
    zero = zero_phases(one.rewards)
    if not zero:
        return Markup("")
    return message(f"Zero variance in the {' and the '.join(zero)} reward: all rollouts are paid alike.")


# --- two runs side by side --------------------------------------------------------------------------------------------


def side_by_side(example: Example, a: Output, b: Output, names: tuple[str, str]) -> Markup:
    """Two outputs on one pool: what only one of them has, and what stands at another place, is said in words."""
    slates, ranks = [places(o.slate) for o in (a, b)], [places(o.rank) for o in (a, b)]
    rows = []
    for i, text in enumerate(example.candidates):
        found = [x.get(i) for x in (*slates, *ranks)]
        rows.append((
            str(i + 1), shown(text) + (" \N{BLACK STAR}" if i in example.relevant else ""), *map(_place, found),
            _difference(found[0], found[1], "slate", moved=False), _difference(found[2], found[3], "rank", moved=True),
        ))  # fmt: skip
    head = ("#", "Candidate (\N{BLACK STAR} relevant)", "Slate A", "Slate B", "Rank A", "Rank B",
            "Slate differs", "Order differs")  # fmt: skip
    told = join(
        tag("<li><strong>{} ({})</strong> {}</li>", side, name, "; ".join(verdict(example, o)))
        for side, name, o in zip("AB", names, (a, b), strict=True)
    )
    return tag("<ul>{}</ul>{}", told, table(f"A: {names[0]}, B: {names[1]}", head, rows, sortable=True))


def _difference(a: int | None, b: int | None, what: str, moved: bool) -> Markup | str:
    if a is None and b is None:
        return ""
    if a is None or b is None:
        return tag("<mark>only in the {} of {}</mark>", what, "B" if a is None else "A")
    if not moved or a == b:
        return ""
    return tag("<mark>{} {} in B</mark>", "\N{UPWARDS ARROW}" if b < a else "\N{DOWNWARDS ARROW}", f"{a} to {b}")


def metrics_table(found: Comparison, names: tuple[str, str]) -> Markup:
    """Means over the queries of both runs, and the difference with its interval."""
    rows = []
    for metric, a, b, difference, low, high in found.rows:
        judged = "B higher" if low > 0 else "A higher" if high < 0 else "no difference shown"
        interval = f"{signed(difference, 3)} [{signed(low, 3)}, {signed(high, 3)}]"
        rows.append((metric, f"{a:.3f}", f"{b:.3f}", interval, judged))
    caption = f"{len(found.keys)} queries, greedy lists. Paired bootstrap over queries: it knows nothing of seeds."
    return table(caption, ("Metric", f"A: {names[0]}", f"B: {names[1]}", "B \N{MINUS SIGN} A [95 %]", "Verdict"), rows)


def fate_bars(found: Comparison, names: tuple[str, str]) -> Markup:
    """Share of the relevant candidates by what became of them; a bar is a button that lists its queries."""
    bars = []
    for fate in FATES:
        for run, name in enumerate(names):
            share, count = found.shares[run][fate], len(found.with_fate(run, fate))
            bars.append(tag(
                '<button type="button" class="bar {}" data-run="{}" data-fate="{}">'
                '<span class="name">{} \N{MIDDLE DOT} {}</span><span class="track"><span style="width:{}%"></span></span>'
                '<span class="share">{} % ({} queries)</span></button>',
                fate, run, fate, fate.replace("_", " "), f"{'AB'[run]}: {shown(name, 60)}", f"{100 * share:.1f}",
                f"{100 * share:.1f}", count,
            ))  # fmt: skip
    return tag('<h2>What became of the relevant candidates</h2><p>Share of each query\'s relevant candidates, mean over '
               'queries. A bar lists its queries.</p><div class="bars">{}</div>', join(bars))  # fmt: skip


def query_list(found: Comparison, run: int, fate: str, name: str, most: int = 200) -> Markup:
    """The queries behind a bar, as buttons that open them."""
    keys = found.with_fate(run, fate)
    buttons = join(tag('<button type="button" data-query="{}">{}</button>', k, k) for k in keys[:most])
    more = f" The first {most} are listed." if len(keys) > most else ""
    told = f"{len(keys)} queries of {'AB'[run]} ({shown(name, 60)}) with {FATE_WORDS[fate]}.{more}"
    return tag(
        '<div class="queries" role="region" aria-label="Queries" aria-live="polite"><p>{}</p>{}</div>', told, buttons
    )


# --- figures ----------------------------------------------------------------------------------------------------------


def picture(figure: Figure, alt: str, file: str) -> Markup:
    """A figure as PNG inside the page, with words for it and a link that saves it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Markup(  # the data are base64: nothing in them needs escaping
        '<figure><img src="{}" alt="{}"><figcaption><a href="{}" download="{}">Save this figure (PNG)</a></figcaption>'
        "</figure>"
    ).format(Markup(data), alt, Markup(data), file)
