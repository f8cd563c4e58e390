"""Safe HTML: every string from a file or a user goes through `printable`, and is then escaped by Markup.format."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from markupsafe import Markup

TEXT_LIMIT = 300
"""maximum number of characters displayed of one text; of a longer one, its length is added"""
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories that are invisible or change how other text is displayed: replaced by their code point"""

CODES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {c: f"&#{ord(c)};" for c in "\"'${}`"})
PATH = re.compile(r"(?<![\w.:/])/(?:[^\s/:,;()'\"<>]+/)+")
"""the folders of an absolute path"""


def printable(text: str, limit: int = TEXT_LIMIT) -> str:
    """The text without control characters, direction marks and lone surrogates, cut at `limit` characters."""
    cut = text[:limit]
    seen = "".join(
        " "
        if c in "\t\n\r"
        else f"\N{LEFT CEILING}{ord(c):X}\N{RIGHT CEILING}"
        if unicodedata.category(c) in HIDDEN
        else c
        for c in cut
    )
    return seen if len(text) <= limit else f"{seen}\N{HORIZONTAL ELLIPSIS} ({len(text):,} characters)"


def tag(template: str, *values: object, **named: object) -> Markup:
    """`template` is trusted HTML; its {} are filled in and escaped, $ and braces too (gradio reads them as templates)."""
    return Markup(template).format(*map(_safe, values), **{k: _safe(v) for k, v in named.items()})


def _safe(value: object) -> object:
    return value if isinstance(value, Markup) or not isinstance(value, str) else escaped(printable(value, 4000))


def escaped(text: str) -> Markup:
    """The whole text, so that neither HTML nor gradio's templates read anything in it."""
    return Markup(text.translate(CODES))


def join(parts: Iterable[str], between: str = "") -> Markup:
    """Concatenate pieces of HTML."""
    return Markup(between).join(parts)


def html_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[object]], sortable: bool = False) -> Markup:
    """A table with a caption. Cells are text (escaped) or Markup; the first cell of a row is its header."""
    names = [tag('<button type="button" data-sort>{}</button>', h) if sortable and h else h for h in head]
    body = join(
        tag("<tr>{}</tr>", join([tag('<th scope="row">{}</th>', row[0]), *(tag("<td>{}</td>", c) for c in row[1:])]))
        for row in rows
    )
    return tag(
        '<div class="scroll" tabindex="0" role="region" aria-label="{}"><table{}><caption><span>{}</span></caption>'
        "<thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>",
        caption, Markup(' class="sortable"' if sortable else ""), caption,
        join(tag('<th scope="col">{}</th>', n) for n in names), body,
    )  # fmt: skip


def message(text: str, kind: str = "note", items: Sequence[str] = ()) -> Markup:
    """A sentence for the user and a list. `kind` is note or problem, written in words as well as shown by colour."""
    listed = tag("<ul>{}</ul>", join(tag("<li>{}</li>", item) for item in items)) if items else ""
    role, word = ("alert", "Problem:") if kind == "problem" else ("status", "Note:")
    return tag('<div class="message {}" role="{}"><strong>{}</strong> {}{}</div>', kind, role, word, text, listed)


def told(error: Exception) -> str:
    """The sentence of an error, without the folders of the server."""
    return PATH.sub("", str(error))


def number(x: float, form: str = ".3f") -> str:
    """A number with the minus sign that all numbers of the page have, and none before a zero."""
    return f"{x:z{form}}".replace("-", "\N{MINUS SIGN}")


def signed(x: float, digits: int = 2) -> str:
    """+0.25, \N{MINUS SIGN}0.25, 0.00."""
    text = number(x, f".{digits}f")
    return f"+{text}" if float(f"{x:.{digits}f}") > 0 else text
