"""A completion as a strip of tokens: each has its value as a number and a colour, and all its values when it has focus."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fgrpo.data import Example
from fgrpo.interactive.html import BLAME, PRAISE
from fgrpo.prompt import PHASE_SLATE
from fgrpo.runs.trace import Traced

from .markup import join, printable, signed, tag

COLOURS = ("phase", "advantage", "log-prob", "entropy")
WHITE, GREY = (255, 255, 255), (64, 64, 64)
PHASE_COLOURS = {"slate": (207, 227, 245), "rank": (251, 227, 184)}
SATURATION = 0.5
"""share of the colour at the end of a scale: black text on it has a contrast above 4.5"""
ENDS = {"advantage": 1.0, "log-prob": 5.0, "entropy": 3.0}
"""ends of the colour scales, the same in every view: what lies beyond has the colour of the end"""


@dataclass(frozen=True)
class Token:
    """One token and its values; None if the trace does not have them."""

    text: str
    candidate: str
    relevant: bool
    phase: str
    advantage: float | None
    log_prob: float | None
    entropy: float | None
    against: float | None = None  # its advantage under the second credit method

    @property
    def flips(self) -> bool:
        """Whether its advantages under the two methods have opposite signs."""
        return (self.advantage or 0.0) * (self.against or 0.0) < 0

    def value(self, colour: str) -> float | None:
        """The value that a colouring shows; None for the phase."""
        values = {"advantage": self.advantage, "log-prob": self.log_prob, "entropy": self.entropy}
        return values.get(colour)


def tokens_of(
    example: Example, traced: Traced, advantages: Sequence[float] | None = None, against: Sequence[float] | None = None
) -> list[Token]:
    """The tokens of a rollout, with its advantages (T) under one or two credit methods if given."""

    def at(values: Sequence[float] | None, place: int) -> float | None:
        return values[place] if values else None

    return [
        Token(
            text, f"[{item + 1}] {example.candidates[item]}" if item >= 0 else "", item in example.relevant,
            "slate" if phase == PHASE_SLATE else "rank", at(advantages, i), at(traced.logprobs, i),
            at(traced.entropy, i), at(against, i),
        )
        for i, (text, item, phase) in enumerate(zip(traced.tokens, traced.items, traced.phases, strict=True))
    ]  # fmt: skip


def strip(tokens: Sequence[Token], colour: str, names: tuple[str, str], title: str, compact: bool = False) -> Markup:
    """The strip as HTML. `names`: the two credit methods."""
    cells = join(_cell(t, i, len(tokens), colour, names, compact) for i, t in enumerate(tokens))
    if not tokens:
        cells = tag("<p>No tokens: this trace has parsed lists only, and this output could not be parsed.</p>")
    return tag('<div class="strip{}" role="group" aria-label="{}" data-strip>{}</div>',
               " compact" if compact else "", title, cells)  # fmt: skip


def legend(colour: str) -> Markup:
    """The colour scale, the same in every view."""
    if colour == "phase":
        chips = join(
            tag('<span class="chip" style="background:{}">{} phase</span>', css(c), n) for n, c in PHASE_COLOURS.items()
        )
        return tag('<p class="legend">Colour: {}</p>', chips)
    unit, end = {"advantage": "units of reward", "log-prob": "nats", "entropy": "nats"}[colour], ENDS[colour]
    low, high = {"advantage": (-end, end), "log-prob": (-end, 0.0), "entropy": (0.0, end)}[colour]
    stops = ", ".join(css(paint(low + (high - low) * i / 16, colour)) for i in range(17))
    ends = ("blame ", " praise") if colour == "advantage" else ("", "")
    return tag(
        '<p class="legend">{} ({}): <span>{}{}</span><span class="ramp" style="background:linear-gradient(90deg, {})">'
        "</span><span>{}{}</span></p>", colour, unit, ends[0], signed(low), stops, signed(high), ends[1],
    )  # fmt: skip


def paint(value: float | None, colour: str) -> tuple[int, int, int]:
    """RGB colour of a value. It grows with the root of the value, so that small advantages are seen too."""
    if value is None:
        return WHITE
    full = GREY if colour != "advantage" else PRAISE if value > 0 else BLAME
    share = SATURATION * min(1.0, abs(value) / ENDS[colour]) ** 0.5
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(WHITE, full, strict=True))
    return red, green, blue


def css(colour: tuple[int, int, int]) -> str:
    """A colour in CSS."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _cell(token: Token, place: int, count: int, colour: str, names: tuple[str, str], compact: bool) -> Markup:
    value = token.value(colour)
    back = PHASE_COLOURS[token.phase] if colour == "phase" else paint(value, colour)
    small = token.phase if colour == "phase" else "not recorded" if value is None else signed(value)
    name = _short(token.candidate.partition("] ")[2] or token.text, 16 if compact else 40)
    flips = Markup('<span class="flip">\N{RIGHTWARDS ARROW OVER LEFTWARDS ARROW} flips</span>') if token.flips else ""
    return tag(
        '<button type="button" class="token {}" style="background:{}" tabindex="{}" aria-label="{}" title="{}">'
        "<span>{}{}</span><small>{}</small>{}</button>",
        token.phase + (" flipped" if token.flips else ""), css(back), 0 if place == 0 else -1,
        *[_words(token, place, count, names)] * 2, "\N{BLACK STAR} " if token.relevant else "", name, small, flips,
    )  # fmt: skip


def _short(text: str, limit: int) -> str:
    """A title that fits into a token; the whole one is read out."""
    return printable(text) if len(text) <= limit else printable(text[: limit - 1]) + "\N{HORIZONTAL ELLIPSIS}"


def _words(token: Token, place: int, count: int, names: tuple[str, str]) -> str:
    parts = [f"token {place + 1} of {count}: {printable(token.text, 60)}"]
    if token.candidate:
        parts.append(printable(token.candidate, 120) + (", relevant" if token.relevant else ", not relevant"))
    parts.append(f"{token.phase} phase")
    for name, value, unit in (("log-prob", token.log_prob, " nats"), ("entropy", token.entropy, " nats")):
        parts.append(f"{name} not recorded" if value is None else f"{name} {signed(value, 3)}{unit}")
    if token.advantage is not None:
        parts.append(f"advantage under {names[0]} {signed(token.advantage, 3)}")
    if token.against is not None and names[0] != names[1]:
        parts.append(f"under {names[1]} {signed(token.against, 3)}" + (" (opposite sign)" if token.flips else ""))
    return "; ".join(parts)
