"""The palette: one colour, one meaning; readable on white; different for the colour-blind too."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from fgrpo.study.plots import PHASES, STYLES, error_types, style_of

METHODS = ("grpo", "fgrpo", "reward_to_go", "nested", "item", "gdpo")
DICHROMACY = {  # Machado, Oliveira and Fernandes (IEEE Trans. Vis. Comput. Graph., 2009), severity 1, linear RGB
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour: str) -> np.ndarray:
    x = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def cielab(rgb: np.ndarray) -> np.ndarray:
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(matrix) @ np.clip(rgb, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("method", STYLES)
def test_a_line_has_a_contrast_of_3_on_white(method: str) -> None:
    luminance = linear(STYLES[method][0]) @ [0.2126, 0.7152, 0.0722]
    assert 1.05 / (luminance + 0.05) >= 3


@pytest.mark.parametrize("eyes", DICHROMACY)
def test_methods_differ_from_each_other_and_from_the_phases(eyes: str) -> None:
    colours = {name: STYLES[name][0] for name in METHODS} | {name: colour for name, colour, _ in PHASES.values()}
    seen = {name: cielab(np.array(DICHROMACY[eyes]) @ linear(colour)) for name, colour in colours.items()}
    pairs = {(a, b): np.linalg.norm(seen[a] - seen[b]) for a, b in combinations(seen, 2)}
    assert min(pairs.values()) > 15, min(pairs, key=lambda pair: pairs[pair])


def test_markers_and_lines_tell_methods_apart_in_grey() -> None:
    assert len({STYLES[name][1] for name in STYLES if name not in ("shared", "unshared", "trl")}) == len(STYLES) - 3
    assert style_of("nested:rankings=2")["color"] == style_of("nested")["color"]


def test_a_lost_candidate_has_the_colour_of_the_phase_at_fault() -> None:
    parts = ("right", "rank_drop", "slate_miss", "format_error")
    (axes,) = error_types([{"method": "grpo", "metric": part, "mean": 0.25} for part in parts]).axes
    drawn = {text.get_text(): patch.get_facecolor() for text, patch in
             zip(axes.get_legend().get_texts(), axes.get_legend().get_patches(), strict=True)}  # fmt: skip
    slate, rank = (to_rgba(colour) for _, colour, _ in PHASES.values())
    assert (drawn["slate miss"], drawn["rank drop"]) == (slate, rank)
    assert not set(drawn.values()) & {to_rgba(style_of(method)["color"]) for method in METHODS}
