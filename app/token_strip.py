"""A completion as a strip of tokens: each shows its value in words and colour, and says all it knows when it has focus."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fgrpo.data import Example
from fgrpo.prompt import PHASE_SLATE
from fgrpo.runs.trace import Traced

from .markup import join, shown, signed, tag

COLOURS = ("phase", "advantage", "log-prob", "entropy")
WHITE, BLUE, RED, PURPLE, GREEN = (255, 255, 255), (33, 102, 172), (178, 24, 43), (106, 61, 154), (27, 120, 55)
PHASES = {"slate": (207, 227, 245), "rank": (251, 227, 184)}
DEEPEST = 0.5
"""share of colour at the end of a scale: black on it keeps a contrast above 4.5"""


@dataclass(frozen=True)
class Token:
    """One token with all that is known of it; None where nobody recorded it."""

    text: str
    candidate: str
    relevant: bool
    phase: str
    advantage: float | None
    log_prob: float | None
    entropy: float | None
    against: float | None = None  # its advantage under the method compared with

    @property
    def flips(self) -> bool:
        """Whether the two methods blame and praise it, or the other way round."""
        return (self.advantage or 0.0) * (self.against or 0.0) < 0

    def value(self, colour: str) -> float | None:
        """What a colouring shows; None for phases."""
        values = {"advantage": self.advantage, "log-prob": self.log_prob, "entropy": self.entropy}
        return values.get(colour)


def tokens_of(
    example: Example, traced: Traced, advantages: Sequence[float] | None = None, against: Sequence[float] | None = None
) -> list[Token]:
    """The tokens of a rollout, with its row of advantages under one or two methods where it has them."""

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


def strip(
    tokens: Sequence[Token], colour: str, names: tuple[str, str], title: str, most: float = 0.0, compact: bool = False
) -> Markup:
    """The strip. `names`: the credit method and the one compared with; `most`: end of the scale, 0: that of these."""
    most = most or span(tokens, colour)
    cells = join(_cell(t, i, len(tokens), colour, names, most, compact) for i, t in enumerate(tokens))
    if not tokens:
        cells = tag("<p>No tokens: the lists alone are recorded, and an ill-formed output has none.</p>")
    out = Markup("") if compact else Markup('<p class="readout" aria-live="polite">Point at a token, or move with '
                                            "the arrow keys, to read its values.</p>")  # fmt: skip
    return tag('<div class="strip{}" role="group" aria-label="{}" data-strip>{}</div>{}',
               " compact" if compact else "", title, cells, out)  # fmt: skip


def span(tokens: Sequence[Token], colour: str) -> float:
    """Largest size of the values that a colouring shows, 0 if there are none."""
    return max((abs(v) for t in tokens if (v := t.value(colour)) is not None), default=0.0)


def legend(colour: str, most: float) -> Markup:
    """The range of the colours, in numbers."""
    if colour == "phase":
        chips = join(
            tag('<span class="chip" style="background:{}">{} phase</span>', css(c), n) for n, c in PHASES.items()
        )
        return tag('<p class="legend">Colour: {}</p>', chips)
    unit = {"advantage": "units of reward", "log-prob": "nats", "entropy": "nats"}[colour]
    if most == 0:
        return tag('<p class="legend">{}: all values shown are 0 or not recorded.</p>', colour)
    ends = {"advantage": (-most, most), "log-prob": (-most, 0.0), "entropy": (0.0, most)}[colour]
    stops = ", ".join(css(paint(ends[0] + (ends[1] - ends[0]) * i / 8, colour, most)) for i in range(9))
    return tag(
        '<p class="legend">{} ({}): <span>{}</span><span class="ramp" style="background:linear-gradient(90deg, {})">'
        "</span><span>{}</span></p>", colour, unit, signed(ends[0]), stops, signed(ends[1]),
    )  # fmt: skip


def paint(value: float | None, colour: str, most: float) -> tuple[int, int, int]:
    """Colour of a value on a scale that ends at `most`."""
    if value is None or most == 0:
        return WHITE
    end = {"advantage": BLUE if value > 0 else RED, "log-prob": PURPLE}.get(colour, GREEN)
    share = DEEPEST * min(1.0, abs(value) / most)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(WHITE, end, strict=True))
    return red, green, blue


def css(colour: tuple[int, int, int]) -> str:
    """A colour in CSS."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _cell(
    token: Token, place: int, count: int, colour: str, names: tuple[str, str], most: float, compact: bool
) -> Markup:
    value = token.value(colour)
    back = PHASES[token.phase] if colour == "phase" else paint(value, colour, most)
    small = token.phase if colour == "phase" else "not recorded" if value is None else signed(value)
    name = token.candidate.split(" ")[0] if compact and token.candidate else shown(token.candidate or token.text, 40)
    flips = Markup('<span class="flip">\N{RIGHTWARDS ARROW OVER LEFTWARDS ARROW} flips</span>') if token.flips else ""
    return tag(
        '<button type="button" class="token {}" style="background:{}" tabindex="{}" aria-label="{}" title="{}">'
        "<span>{}{}</span><small>{}</small>{}</button>",
        token.phase + (" flipped" if token.flips else ""), css(back), 0 if place == 0 else -1,
        *[_words(token, place, count, names)] * 2, "\N{BLACK STAR} " if token.relevant else "", name, small, flips,
    )  # fmt: skip


def _words(token: Token, place: int, count: int, names: tuple[str, str]) -> str:
    parts = [f"token {place + 1} of {count}: {shown(token.text, 60)}"]
    if token.candidate:
        parts.append(shown(token.candidate, 120) + (", relevant" if token.relevant else ", not relevant"))
    parts.append(f"{token.phase} phase")
    for name, value, unit in (("log-prob", token.log_prob, " nats"), ("entropy", token.entropy, " nats")):
        parts.append(f"{name} not recorded" if value is None else f"{name} {signed(value, 3)}{unit}")
    if token.advantage is not None:
        parts.append(f"advantage under {names[0]} {signed(token.advantage, 3)}")
    if token.against is not None and names[0] != names[1]:
        parts.append(f"under {names[1]} {signed(token.against, 3)}" + (", the sign flips" if token.flips else ""))
    return "; ".join(parts)
