"""How a notebook shows the kit's objects: short tables, rollouts as coloured tokens with titles.

IPython asks here for objects of the core (`register`); those of this room have a `_repr_html_` of their own.
"""

import sys
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from torch import Tensor

from ..config import KitError
from ..data import Example, Splits, Stream
from ..prompt import PHASE_SLATE
from ..rewards import Rewards
from ..rollout import Rollouts
from ..runs.trace import Traced
from ..study.plots import PHASES

PHASE_COLORS = {name.split()[0]: color for name, color, _ in PHASES.values()}
"""the line under a token: the phase it belongs to, as in every figure"""
PRAISE, BLAME = (27, 120, 55), (118, 42, 131)
"""ends of the scale of advantages: green and purple, which the colour-blind can distinguish; the number is there too"""
STAR = "\N{BLACK STAR}"
LISTED = 20
"""rows of a long list that are shown"""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """An HTML table. Cells and heads are HTML already."""
    head = "".join(f'<th style="text-align:left;vertical-align:bottom">{c}</th>' for c in columns)
    cell = '<td style="text-align:left;vertical-align:top">{}</td>'
    body = "".join(f"<tr>{''.join(cell.format(x) for x in row)}</tr>" for row in rows)
    above = f'<caption style="text-align:left;caption-side:top">{caption}</caption>' if caption else ""
    return (
        f'<div style="overflow-x:auto"><table>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def example_html(example: Example) -> str:
    """Query, history and pool, the relevant candidates starred and in bold."""
    gains = example.gains or [float(i in example.relevant) for i in range(len(example.candidates))]
    pool = [
        f"<b>{STAR}&nbsp;{escape(text)}</b>" + (f" (gain {gains[i]:g})" if example.gains else "")
        if i in example.relevant
        else escape(text)
        for i, text in enumerate(example.candidates)
    ]
    rows = [
        ["query", f"{escape(example.query)} <small>({escape(example.id)})</small>"],
        ["history", _some([escape(text) for text in example.history])],
        [f"pool of {len(pool)}", _some(pool, 3 * LISTED)],
    ]
    return table(["Example", f"{STAR} relevant"], rows)


def _some(texts: Sequence[str], most: int = LISTED) -> str:
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return " &middot; ".join(texts[:most]) + more


def splits_html(splits: Splits) -> str:
    """The sizes of the splits, with what a pool looks like."""
    rows = []
    for name, part in zip(splits._fields, splits, strict=True):
        some = part[:1000]
        pools, relevant = ([len(x) for x in xs] for xs in ([e.candidates for e in some], [e.relevant for e in some]))
        rows.append([name, size_of(part), *(f"{min(x)} to {max(x)}" if x else "" for x in (pools, relevant))])
    return table(["split", "examples", "candidates", "relevant"], rows)


def size_of(part: Sequence[Example]) -> str:
    """The number of examples, if it ends."""
    return "a stream without end" if isinstance(part, Stream) else f"{len(part):,}"


def rewards_html(rewards: Rewards) -> str:
    """Mean and range of both rewards over each group."""
    rows = [
        [str(q), *(f"{r[q].mean():.2f} ({r[q].min():.2f} to {r[q].max():.2f})" for r in (rewards.slate, rewards.rank))]
        for q in range(min(LISTED, len(rewards.slate)))
    ]
    shape = " x ".join(map(str, rewards.slate.shape))
    return table(["query", "slate reward: mean (range)", "rank reward"], rows, f"Rewards, queries x rollouts: {shape}")


def rollouts_html(rollouts: Rollouts) -> str:
    """The lists of each rollout, as pool indices; `lab.group(...)` shows titles, since it knows the query."""
    rows = [
        [
            str(row // rollouts.group),
            str(row % rollouts.group + 1),
            *(", ".join(map(str, x)) for x in o[:2]),
            escape(o.error),
        ]
        for row, o in enumerate(rollouts.outputs[:LISTED])
    ]
    caption = f"Rollouts: {len(rollouts.outputs)}, {rollouts.group} per query, of up to {rollouts.mask.shape[1]} tokens"
    return table(["query", "rollout", "slate", "rank", "error"], rows, caption)


def tokens_html(traced: Traced, example: Example, advantages: Sequence[float] | None = None, most: float = 1.0) -> str:
    """One rollout as tokens. The line below a token is its phase; its colour and number, if given, are its advantage.

    `advantages` has one number per token, `most` is the largest of the picture.
    """
    chips = []
    for i, (text, item, phase) in enumerate(zip(traced.tokens, traced.items, traced.phases, strict=True)):
        known = item >= 0
        word = escape(example.candidates[item] if known else text)
        word = f"<b>{STAR}&nbsp;{word}</b>" if known and item in example.relevant else word
        background, number = "transparent", ""
        if advantages is not None:
            share = min(1.0, abs(advantages[i]) / most) if most else 0.0
            color = PRAISE if advantages[i] > 0 else BLAME
            background = f"rgba({color[0]},{color[1]},{color[2]},{0.55 * share:.2f})"
            number = f"<br><small>{signed(advantages[i])}</small>"
        line = PHASE_COLORS["slate" if phase == PHASE_SLATE else "rank"]
        style = f"display:inline-block;padding:0 .3em;margin:1px;border-bottom:3px solid {line};background:{background}"
        chips.append(f'<span style="{style};text-align:center">{word}{number}</span>')
    error = f" <b>{escape(traced.output.error)}</b>" if traced.output.error else ""
    return "".join(chips) + error


def legend_html(advantages: bool = False) -> str:
    """What the colours mean."""
    line = '<span style="border-bottom:3px solid {}">{}</span>'
    phases = ", ".join(line.format(color, f"{name} phase") for name, color in PHASE_COLORS.items())
    words = f"{STAR} relevant. Line below a token: {phases}."
    if advantages:
        shade = '<span style="background:rgba({},{},{},.55);padding:0 .3em">{}</span>'
        ends = ", ".join(shade.format(*c, w) for c, w in ((PRAISE, "made more likely"), (BLAME, "made less likely")))
        words += f" Colour and number: the token's advantage, {ends}."
    return f"<p><small>{words}</small></p>"


def signed(x: float) -> str:
    """A number with its sign, and a minus as wide as the plus; nothing but 0.00 for what rounds to it."""
    text = f"{x:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "\N{MINUS SIGN}")


def scores_html(scores: Mapping[str, Tensor], metrics: Sequence[str]) -> str:
    """Means of metrics with the number of queries."""
    rows = [[name, f"{scores[name].mean():.3f}"] for name in metrics]
    return table(["metric", f"mean of {len(next(iter(scores.values()))):,} queries"], rows)


SHOWN = {Example: example_html, Splits: splits_html, Rewards: rewards_html, Rollouts: rollouts_html}
SHORT = {
    Example: lambda x: f"Example({x.id!r}: {len(x.candidates)} candidates, {len(x.relevant)} relevant)",
    Splits: lambda x: f"Splits({', '.join(f'{n} {size_of(p)}' for n, p in zip(x._fields, x, strict=True))})",
    Rewards: lambda x: f"Rewards(slate {x.slate.mean():.3f}, rank {x.rank.mean():.3f}; shape {tuple(x.slate.shape)})",
    Rollouts: lambda x: f"Rollouts({len(x.outputs)}, {x.group} per query, up to {x.mask.shape[1]} tokens)",
}  # fmt: skip
"""short texts, in place of all fields with their tensors"""


def register() -> None:
    """Tell IPython, if this runs in it, how to show objects of the core."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None:
        return
    formatters = shell.display_formatter.formatters
    for kind, show in SHOWN.items():
        formatters["text/html"].for_type(kind, show)
    for kind, short in SHORT.items():
        formatters["text/plain"].for_type(kind, lambda x, printer, _, short=short: printer.text(short(x)))
    # one sentence, as everywhere: IPython asks an exception for this
    KitError._render_traceback_ = lambda error: [f"{KitError.__name__}: {error}"]  # type: ignore[attr-defined]
