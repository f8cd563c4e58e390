"""The parts of the page as HTML: pure functions of traces and numbers."""

from collections.abc import Sequence

from markupsafe import Markup

from fgrpo.config import Config, GrammarConfig
from fgrpo.credit import JOINT
from fgrpo.data import Example
from fgrpo.evaluate import FATES
from fgrpo.prompt import Output
from fgrpo.runs.trace import Group, Traced

from .markup import html_table, join, message, number, printable, signed, tag
from .measures import (
    FATE_WORDS,
    PHASE_NAMES,
    Comparison,
    GroupCredit,
    QueryRow,
    error_words,
    fate_of,
    flips,
    scores,
    zero_phases,
)
from .story import credit_words, most_flipped
from .token_strip import Token, legend, strip, tokens_of

GREEDY, EMPTY = "greedy", "\N{EN DASH}"


def numbered(items: Sequence[int]) -> dict[int, int]:
    """Position (from 1) of each candidate in a list."""
    return {item: position for position, item in enumerate(items, start=1)}


def query_panel(example: Example) -> Markup:
    """The query and its history."""
    history = join(tag("<li>{}</li>", text) for text in example.history[:50])
    more = f" ({len(example.history) - 50} more)" if len(example.history) > 50 else ""
    return tag(
        '<div class="query"><p><strong>Query</strong> {}</p>{}</div>', printable(example.query, 2000),
        tag("<details><summary>History: {} entries{}</summary><ol>{}</ol></details>", len(example.history), more, history)
        if example.history else "",
    )  # fmt: skip


def pool_table(example: Example, output: Output, grammar: GrammarConfig, caption: str = "Pool") -> Markup:
    """Every candidate: position in the slate, rank, relevance, gain, and the fate of the relevant ones.

    Ranked candidates come first, in their order, then those of the slate, then the rest of the pool.
    """
    slate, rank, fate = numbered(output.slate), numbered(output.rank), fate_of(example, output, grammar)
    gains = example.gains or [float(i in example.relevant) for i in range(len(example.candidates))]
    last = len(example.candidates)
    order = sorted(range(last), key=lambda i: (rank.get(i, last + 1), slate.get(i, last + 1), i))
    rows = [
        (
            str(i + 1), printable(example.candidates[i]), _position(slate.get(i)), _position(rank.get(i)),
            "\N{BLACK STAR} relevant" if i in example.relevant else "no", number(gains[i], "g"),
            fate[i].replace("_", " ") if i in fate else "",
        )
        for i in order
    ]  # fmt: skip
    head = ("#", "Candidate", "Slate", "Rank", "Relevant", "Gain", "Fate")
    return html_table(caption, head, rows, sortable=True)


def _position(position: int | None) -> str:
    return EMPTY if position is None else str(position)


def errors_panel(example: Example, traced: Traced, config: Config) -> Markup:
    """Rewards of one rollout, and its errors in words."""
    words = join(tag("<li>{}</li>", text) for text in error_words(example, traced.output, config.grammar))
    rewards = join(
        tag("<dt>{}</dt><dd>{}</dd>", name, number(x)) for name, x in scores(example, traced.output, config).items()
    )
    return tag('<div class="errors"><h2>Rewards and errors</h2><ul>{}</ul><dl>{}</dl></div>', words, rewards)


def advantage_panel(group: Group, rollout: int, credits: Sequence[GroupCredit]) -> Markup:
    """Range of the advantages of one rollout by phase, under each credit method."""
    rows = [(c.method, *(_range(c.of_phase(group, rollout, PHASE_NAMES[p])) for p in PHASE_NAMES)) for c in credits]
    return html_table("Advantage by phase", ("Method", "slate tokens", "rank tokens"), rows)


def _range(limits: tuple[float, float]) -> str:
    low, high = map(signed, limits)
    return low if low == high else f"{low} to {high}"


def strip_panel(shown: Sequence[tuple[str, Sequence[Token]]], colour: str) -> Markup:
    """One completion: a strip for each credit method, one above the other, or a single one without a name."""
    names = [name for name, _ in shown]
    strips = []
    for n, (name, tokens) in enumerate(shown):
        title = f"Tokens of the completion, coloured by {colour}" + (f" under {name}" if name else "")
        head = tag("<h3>{} <small>{}</small></h3>", name, credit_words(name)) if name else ""
        strips.append(tag("{}{}", head, strip(tokens, colour, (name, names[1 - n] if len(names) > 1 else name), title)))
    return tag('<div class="completion">{}{}<p class="readout" aria-live="polite">Point at a token, or use the arrow keys, '
               "to read its values.</p></div>", legend(colour), join(strips))  # fmt: skip


def credit_note(method: str) -> Markup:
    """What the method does, and how the app differs from training, if it does."""
    words = credit_words(method)
    if method == "gdpo":
        words += " It divides by a standard deviation over the whole batch; here the batch is this one query."
    return message(f"{method}: {words}")


def group_panel(group: Group, config: Config, one: GroupCredit, other: GroupCredit) -> Markup:
    """All rollouts of a query: rewards, advantages, and tokens whose sign differs between two methods."""
    flipped = flips(group, one, other)
    rows = [_group_row(group, n, one, flipped[n]) for n in range(len(group.rollouts))]
    head = ("Rollout", "Slate length", "Slate reward", "Rank reward", "Format", "Sum",
            "Slate advantage", "Rank advantage", f"Sign differs from {other.method}", "Error")  # fmt: skip
    tokens = [
        tokens_of(group.example, r, one.row(n), other.row(n)) for n, r in enumerate(group.rollouts)
    ]  # fmt: skip
    strips = join(
        tag('<div class="row"><span>{}</span>{}</div>', n + 1,
            strip(t, "advantage", (one.method, other.method), f"Rollout {n + 1}", compact=True))
        for n, t in enumerate(tokens)
    )  # fmt: skip
    return tag("{}{}{}<h2>Advantage of every token under {}</h2>{}{}", _flip_note(flipped, one, other), _zero_note(one),
               html_table(f"{len(rows)} rollouts, credit {one.method}", head, rows, sortable=True), one.method,
               legend("advantage"), tag('<div class="strips">{}</div>', strips))  # fmt: skip


def _group_row(group: Group, n: int, one: GroupCredit, flipped: tuple[int, int]) -> list[object]:
    output = group.rollouts[n].output
    slate, rank, form = (float(x[0, n]) + 0.0 for x in (one.rewards.slate, one.rewards.rank, one.rewards.format))
    zero = zero_phases(one.rewards)
    advantages = [
        _range(one.of_phase(group, n, code)) + (" (zero variance)" if phase in zero and one.method not in JOINT else "")
        for phase, code in PHASE_NAMES.items()
    ]
    tokens = f"{sum(flipped)} token{'s' * (sum(flipped) > 1)}"
    words = f"{tokens} ({flipped[0]} slate, {flipped[1]} rank)" if sum(flipped) else "none"
    button = tag('<button type="button" data-rollout="{}" aria-label="Inspect rollout {}">{}</button>', *[n + 1] * 3)
    return [button, str(len(output.slate)), number(slate), number(rank), signed(form), number(slate + rank + form),
            *advantages, words, output.error]  # fmt: skip


def _flip_note(flipped: Sequence[tuple[int, int]], one: GroupCredit, other: GroupCredit) -> Markup:
    if one.method == other.method:
        return message("Choose two different credit methods to see where their signs differ.")
    counts = [(sum(f[i] for f in flipped), phase) for i, phase in enumerate(PHASE_NAMES)]
    found = [f"{count} {phase} token{'s' * (count > 1)}" for count, phase in counts if count]
    if not found:
        return message(f"No token's advantage has opposite signs under {other.method} and {one.method}.")
    verb, them = ("has an advantage", "it") if sum(c for c, _ in counts) == 1 else ("have advantages", "them")
    return message(
        f"{' and '.join(found)} {verb} of opposite sign under {other.method} and {one.method}: "
        f"one method praises {them}, the other blames {them}."
    )


def _zero_note(one: GroupCredit) -> Markup:
    zero = zero_phases(one.rewards)
    if not zero:
        return Markup("")
    return message(f"Zero variance in the {' and the '.join(zero)} reward: it is the same for all rollouts.")


def query_table(rows: Sequence[QueryRow], run: str, credit: str, against: str, total: int) -> Markup:
    """The queries of a trace, those with the most flips first; the page sorts and searches them."""
    head = ("Query", "Relevant", "Slate reward", "Rank reward", "Spread", "Difference", "Flips", "Errors", "Rollouts")
    cells = []
    for row in most_flipped(list(rows)):
        button = tag('<button type="button" data-run="{}" data-query="{}">{}</button>', run, row.key, row.key)
        numbers = [EMPTY if x is None else number(x) for x in (row.slate, row.rank, row.spread, row.difference)]
        flips = EMPTY if row.flips is None else str(row.flips)
        cells.append((button, "; ".join(printable(t, 40) for t in row.titles[:6]), *numbers, flips, row.errors,
                      str(row.rollouts)))  # fmt: skip
    caption = (
        f"{total:,} queries of {run}. Rewards: means over a query's sampled rollouts; spread: the standard deviation of "
        f"their sum. Of {against} and {credit}, difference: between a token's advantages, mean of the absolute values; "
        "flips: tokens that one praises and the other blames. Errors: of the greedy rollout."
    )
    more = message(f"The first {len(rows):,} queries are listed; type the name of any other above.")
    search = Markup(
        '<p><label>Search <input type="search" data-filter placeholder="a title, an error, a name"></label> '
        '<span role="status" class="found"></span></p>'
    )
    table = html_table(caption, head, cells, sortable=True)
    return join([more if len(rows) < total else Markup(""), search, table])


# --- two runs side by side --------------------------------------------------------------------------------------------


def side_by_side(
    example: Example, a: Output, b: Output, names: tuple[str, str], grammars: tuple[GrammarConfig, GrammarConfig]
) -> Markup:
    """Two outputs on one pool: candidates that only one of them has, or at another rank, are marked in words."""
    slates, ranks = [numbered(o.slate) for o in (a, b)], [numbered(o.rank) for o in (a, b)]
    last, rows = len(example.candidates) + 1, []

    def best(i: int) -> tuple[int, int, int]:
        return min(r.get(i, last) for r in ranks), min(s.get(i, last) for s in slates), i

    for i in sorted(range(len(example.candidates)), key=best):
        text, found = example.candidates[i], [x.get(i) for x in (*slates, *ranks)]
        rows.append((
            str(i + 1), printable(text) + (" \N{BLACK STAR}" if i in example.relevant else ""), *map(_position, found),
            _difference(found[0], found[1], "slate", moved=False), _difference(found[2], found[3], "rank", moved=True),
        ))  # fmt: skip
    head = ("#", "Candidate (\N{BLACK STAR} relevant)", "Slate A", "Slate B", "Rank A", "Rank B",
            "Slate difference", "Rank difference")  # fmt: skip
    errors = join(
        tag("<li><strong>{} ({})</strong> {}</li>", side, name, "; ".join(error_words(example, o, grammar)))
        for side, name, o, grammar in zip("AB", names, (a, b), grammars, strict=True)
    )
    return tag("<ul>{}</ul>{}", errors, html_table(f"A: {names[0]}, B: {names[1]}", head, rows, sortable=True))


def _difference(a: int | None, b: int | None, what: str, moved: bool) -> Markup | str:
    if a is None and b is None:
        return ""
    if a is None or b is None:
        return tag("<mark>only in the {} of {}</mark>", what, "B" if a is None else "A")
    if not moved or a == b:
        return ""
    return tag("<mark>{} {} in B</mark>", "\N{UPWARDS ARROW}" if b < a else "\N{DOWNWARDS ARROW}", f"{a} to {b}")


def metrics_table(found: Comparison, names: tuple[str, str]) -> Markup:
    """Means over the common queries, and the difference with its interval."""
    rows = []
    for metric, a, b, difference, low, high in found.rows:
        verdict = "B higher" if low > 0 else "A higher" if high < 0 else "no difference found"
        interval = f"{signed(difference, 3)} [{signed(low, 3)}, {signed(high, 3)}]"
        rows.append((metric, number(a), number(b), interval, verdict))
    caption = (
        f"{len(found.keys)} queries, greedy decoding. Intervals: over queries alone. These are two single runs: other seeds "
        "of the same methods may differ more, so a difference here says nothing about the methods."
    )
    return html_table(
        caption, ("Metric", f"A: {names[0]}", f"B: {names[1]}", "B \N{MINUS SIGN} A [95 %]", "Verdict"), rows
    )


def fate_bars(found: Comparison, names: tuple[str, str]) -> Markup:
    """Share of the relevant candidates by fate; each bar is a button that lists its queries."""
    bars = []
    for fate in FATES:
        for run, name in enumerate(names):
            share, count = found.shares[run][fate], len(found.with_fate(run, fate))
            bars.append(tag(
                '<button type="button" class="bar {}" data-run="{}" data-fate="{}">'
                '<span class="name">{} \N{MIDDLE DOT} {}</span><span class="track"><span style="width:{}%"></span></span>'
                '<span class="share">{} % ({} queries)</span></button>',
                fate, run, fate, fate.replace("_", " "), f"{'AB'[run]}: {printable(name, 60)}", f"{100 * share:.1f}",
                f"{100 * share:.1f}", count,
            ))  # fmt: skip
    return tag('<h2>Fate of the relevant candidates</h2><p>Share of each query\'s relevant candidates, averaged over '
               'queries. Choose a bar to list its queries.</p><div class="bars">{}</div>', join(bars))  # fmt: skip


def query_list(found: Comparison, run: int, fate: str, name: str, limit: int = 200) -> Markup:
    """The queries counted in a bar, as buttons that open them."""
    keys = found.with_fate(run, fate)
    button = '<button type="button" data-run="{}" data-query="{}">{}</button>'
    buttons = join(tag(button, name, k, k) for k in keys[:limit])
    more = f" The first {limit} are listed." if len(keys) > limit else ""
    where = f"{len(keys)} queries of {'AB'[run]} ({printable(name, 60)})"
    text = f"{where} with a relevant candidate of this fate: {FATE_WORDS[fate]}.{more}"
    return tag(
        '<div class="queries" role="region" aria-label="Queries" aria-live="polite"><p>{}</p>{}</div>', text, buttons
    )
