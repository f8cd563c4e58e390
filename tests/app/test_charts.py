"""Figures of the app: numbers in their markup, escaping, the buttons in them, downloads, contrast."""

import base64
import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.charts import (
    CURVES,
    INK,
    POINTS,
    Point,
    Series,
    curves,
    figure,
    histogram,
    key_of,
    reward_plane,
    scatter,
    smooth,
    ticks,
    training_curves,
)
from fgrpo.study.plots import OTHERS, RANK, SLATE, STYLES

HOSTILE = '"><script>alert(1)</script>${x} {y} `z` \u202e'
SVG = "{http://www.w3.org/2000/svg}"


def parsed(markup: str) -> list[ElementTree.Element]:
    """The SVG panels of some markup, which must be well-formed."""
    return [ElementTree.fromstring(part) for part in re.findall(r"<svg.*?</svg>", markup, re.DOTALL)]


def hovers(markup: str) -> list[str]:
    return [e.text or "" for panel in parsed(markup) for e in panel.iter(f"{SVG}title")]


def downloaded(markup: str) -> str:
    return base64.b64decode(re.search(r"base64,([^\"]+)", markup)[1]).decode()


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(3, 8))
@settings(max_examples=200, deadline=None)
def test_ticks_are_round_and_few(low, length, count) -> None:
    found = ticks(low, low + length, count)
    assert 1 <= len(found) <= count + 1
    assert all(low - 1e-6 * length <= t <= low + (1 + 1e-6) * length for t in found)
    steps = [b - a for a, b in pairwise(found)]
    for step in steps:
        digits = step / 10 ** math.floor(math.log10(step) + 1e-6)
        assert min(abs(digits - d) for d in (1, 2, 5)) < 1e-3


def test_ticks_of_steps_are_whole_numbers() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(1, 3, whole=True) == [1, 2, 3]
    assert ticks(10, 300) == [100, 200, 300]


def test_curves_have_gaps_and_texts_to_hover() -> None:
    one = Series("a", [0.0, math.nan, 0.5, 1.0], [1, 2, 3, 4], SLATE, "6 4")
    markup = curves([one, Series(HOSTILE, [0.25] * 1000, range(1000))], "reward", "value")
    paths = re.findall(r'<path d="(M[^"]*)" fill="none" stroke-width="1.8"', markup)
    assert (paths[0].count("M"), paths[0].count("L")) == (2, 1)
    assert paths[1].count("M") == 1 and POINTS // 2 < paths[1].count("L") <= POINTS
    texts = hovers(markup)
    assert texts[:3] == ["a, step 1: 0", "a, step 3: 0.5", "a, step 4: 1"]
    assert len(texts) == 3 + 12 and texts[3].endswith("step 0: 0.25") and texts[-1].endswith("step 999: 0.25")
    assert 'stroke-dasharray="6 4"' in markup and f'stroke="{SLATE}"' in markup
    assert "<script" not in markup and not set("{}$`\u202e") & set(markup)
    assert "a: 1 at step 4" in parsed(markup)[0].get("aria-label")
    assert hovers(curves([Series("empty", [], [])], "", "")) == []
    long = curves([Series("runs/" + 20 * "a" + 20 * "b" + "/seed0", [1.0], [1])], "t" * 99, "y" * 99)
    assert "runs/aaaaaaaaaaaaaaa\N{HORIZONTAL ELLIPSIS}bbbbbbbbbbbbb/seed0</text>" in long
    assert max(len(t.text) for t in parsed(long)[0].iter(f"{SVG}text")) <= 44


def test_a_histogram_has_the_shares_of_shared_bins() -> None:
    markup = histogram([Series("a", [1, 1, 2, 4]), Series("b", [2, 2]), Series("c", [])], "length", "slate length")
    assert hovers(markup) == [
        "a, 0.5 to 1.5: 50.0 % (2 of 4)", "a, 1.5 to 2.5: 25.0 % (1 of 4)", "a, 3.5 to 4.5: 25.0 % (1 of 4)",
        "b, 1.5 to 2.5: 100.0 % (2 of 2)",
    ]  # fmt: skip
    assert "a: mean 2 of 4 values; b: mean 2 of 2 values" in parsed(markup)[0].get("aria-label")
    fine = hovers(histogram([Series("x", [0.0, 0.04, 0.5, 1.0, math.nan])], "", "", bins=20))
    assert fine[0] == "x, 0 to 0.05: 50.0 % (2 of 4)" and len(fine) == 3
    assert hovers(histogram([Series("x", [0.5, 0.5])], "", "", bins=2)) == ["x, 0.5 to 1: 100.0 % (2 of 2)"]


def test_every_rollout_of_the_plane_is_a_button() -> None:
    markup = reward_plane([0.5, 1.0, 0.0, 0.5], [0.3, 1.0, 0.0, 0.3])
    (panel,) = parsed(markup)
    assert panel.get("role") == "group"  # axe: an image must not hold what can be focused
    buttons = {e.get("data-rollout"): e for e in panel.iter(f"{SVG}g")}
    assert list(buttons) == ["1", "2", "3", "4"]  # in the order of the Tab key
    assert all(e.get("role") == "button" and e.get("tabindex") == "0" for e in buttons.values())
    assert buttons["1"].get("aria-label") == "Open rollout 1: slate reward 0.50, rank reward 0.30"
    places = {n: (e.find(f"{SVG}circle").get("cx"), e.find(f"{SVG}circle").get("cy")) for n, e in buttons.items()}
    assert places["1"] == places["4"] and len(set(places.values())) == 3
    assert [buttons[n].find(f"{SVG}text").text for n in "14"] == ["1,", "4"]
    assert hovers(markup)[:2] == ["mean slate reward: 0.50", "mean rank reward: 0.40"]
    assert len(parsed(reward_plane([0.7] * 64, [0.2] * 64))[0].findall(f"{SVG}g")) == 64


def test_points_say_what_they_open() -> None:
    points = [Point(0.2, 0.4, HOSTILE, {"run": HOSTILE, "query": "q1"}), Point(1.0, 0.0, "b", {"run": "r"}, count=30)]
    markup = scatter(points, "A", HOSTILE)
    buttons = parsed(markup)[0].findall(f"{SVG}g")
    assert [b.get("data-query") for b in buttons] == [None, "q1"]  # large points first: below the small ones
    assert buttons[1].get("data-run").startswith('"><script>') and buttons[0].get("aria-label") == "b"
    radius = [float(b.find(f"{SVG}circle").get("r")) for b in buttons]
    assert radius[0] > 2 * radius[1]
    assert "<script" not in markup and not set("{}$`\u202e") & set(markup)


def test_a_figure_is_downloaded_without_what_only_the_page_needs() -> None:
    panel = scatter([Point(0.2, 0.4, "Open q", {"query": "q"})], "A", "B")
    names = [Series(HOSTILE, [], colour=RANK)]
    markup = figure([panel, panel, panel, key_of(names)], HOSTILE, "a.svg")
    assert 'download="a.svg"' in markup and "<script" not in markup and not set("{}$`") & set(markup)
    text = downloaded(markup)
    root = ElementTree.fromstring(text)
    assert [(p.get("x"), p.get("y")) for p in root.findall(f"{SVG}svg")] == [
        ("0", "0"), ("370", "0"), ("740", "0"), ("0", "260"),
    ]  # fmt: skip
    assert (root.get("width"), root.get("height")) == ("1110", "327")
    assert "currentColor" not in text and INK in text and "data-" not in text and "color-mix" not in text
    assert root.find(f"{SVG}rect").get("fill") == "#ffffff" and RANK in text


def test_training_curves_are_running_means_by_phase() -> None:
    rows = [{"step": s, "reward/slate": s / 30, "reward/rank": 0.5, "loss": -1.0} for s in range(1, 31)]
    rows[3]["ndcg"] = 0.7
    markup = training_curves(rows)
    titles = [t.text for p in parsed(markup) for t in p.findall(f"{SVG}text") if t.get("font-weight")]
    assert titles == ["reward", "loss"] == [CURVES[i][0] for i in (0, 3)]
    assert smooth(rows, "reward/slate").values == pytest.approx([(s + 5.5) / 30 for s in range(21)])
    assert smooth(rows, "reward/slate").steps == list(range(10, 31))
    assert (smooth(rows, "ndcg").values, smooth(rows, "ndcg").steps) == ([0.7], [4])
    assert "slate phase, step 10: 0.1833" in hovers(markup) and "loss, step 30: −1" in hovers(markup)
    assert hovers(training_curves(rows[:1])).count("rank phase, step 1: 0.5") == 1
    rows[20].pop("reward/rank")
    gap = [math.isnan(v) for v in smooth(rows, "reward/rank").values]
    assert gap.index(True) == 11 and sum(gap) == 10


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Ratio of relative luminances (WCAG 2.2) of two sRGB colours."""
    light = []
    for colour in (one, other):
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in colour]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


def rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def test_every_colour_can_be_seen_in_light_and_dark_mode() -> None:
    palette = {SLATE, RANK, *(s[0] for s in STYLES.values()), *(s[0] for s in OTHERS)}
    for text, ground in (("#1f2937", "#ffffff"), ("#f3f4f6", "#0b0f19"), ("#f3f4f6", "#1f2937")):
        for colour in palette:
            drawn = curves([Series("a", [0.0, 1.0], [0, 1], colour)], "", "")
            mixed = re.search(r"stroke:color-mix\(in srgb, (#\w+) (\d+)%, currentColor\)", drawn)
            assert mixed or colour == "#000000"  # black is the colour of the text
            share = int(mixed[2]) / 100 if mixed else 0.0
            seen = tuple(share * a + (1 - share) * b for a, b in zip(rgb(colour), rgb(text), strict=True))
            assert contrast(seen, rgb(ground)) > 3, (colour, ground)
