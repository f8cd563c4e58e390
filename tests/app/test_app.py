"""The app without a browser: its texts, its numbers, what it refuses."""

import asyncio
import gc
import html
import json
import math
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from threading import Event

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.library import TRACE_BYTES, Cache, Library, open_trace
from app.markup import html_table, message, number, printable, signed, tag, told
from app.measures import (
    METHODS,
    METRICS,
    compare_traces,
    error_counts,
    error_words,
    flips,
    group_credit,
    measure_in_batches,
    query_rows,
    scores,
    zero_phases,
)
from app.playground import Form, config_of, example_from, form_of, generate, typed
from app.show import DEEP, FIRST, LIGHT, OPENING, Chosen, neighbour, queries_of_bar, show, training
from app.story import NEXT
from app.token_strip import COLOURS, PHASE_COLOURS, css, paint, tokens_of
from app.views import (
    errors_panel,
    fate_bars,
    group_panel,
    metrics_table,
    pool_table,
    query_list,
    query_table,
    side_by_side,
)
from fgrpo.config import Config, GrammarConfig, KitError, LMConfig
from fgrpo.data import Example
from fgrpo.evaluate import evaluate, greedy, measure_outputs
from fgrpo.interactive.page import build_page
from fgrpo.lm import text
from fgrpo.policy import Policy, Sampling
from fgrpo.prompt import Output
from fgrpo.runs.trace import Group, Trace, credit_of, from_lists, read_trace, write_trace
from tests.lm.test_text import made
from tests.lm.test_text import words as vectors

ROOT = Path(__file__).parents[2]
EXAMPLE = Example("q", "Which?", ("h",), tuple("abcdef"), frozenset({0, 1, 2}))


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    return Library(tmp_path_factory.mktemp("runs"))


# --- text -------------------------------------------------------------------------------------------------------------


def test_texts_are_escaped_and_invisible_characters_are_replaced() -> None:
    assert tag("<p>{}</p>", "<b>&${x}`") == "<p>&lt;b&gt;&amp;&#36;&#123;x&#125;&#96;</p>"
    assert printable("a\x1b[31m\u202e\ud800\n") == "a⌈1B⌉[31m⌈202E⌉⌈D800⌉ "
    assert printable("x" * 1_000_000, 5) == "xxxxx… (1,000,000 characters)"
    assert printable("Amélie · 千と千尋 ★ 👩") == "Amélie · 千と千尋 ★ 👩"
    assert "<td>&lt;i&gt;</td>" in html_table("c", ("a", "b"), [("x", "<i>")])
    assert [signed(x) for x in (0.25, -0.25, 0.0, -0.001)] == ["+0.25", "−0.25", "0.00", "0.00"]
    assert [number(-0.5), number(-0.0001), number(-1e-5, ".3g")] == ["−0.500", "0.000", "−1e−05"]
    assert message("a", items=["b", "<c>"]).endswith("a<ul><li>b</li><li>&lt;c&gt;</li></ul></div>")


def test_a_sentence_of_an_error_names_no_folder_of_the_server() -> None:
    cases = {
        "/srv/my/runs/x/items.json: no policy here": "items.json: no policy here",
        "model '/opt/models/base' is an adapter (/home/me/a.txt), see </SLATE></RANK>":
            "model 'base' is an adapter (a.txt), see </SLATE></RANK>",
        "runs/demo: https://example.com/a/b, and/or 1/2": "runs/demo: https://example.com/a/b, and/or 1/2",
    }  # fmt: skip
    for said, words in cases.items():
        assert told(KitError(said)) == words


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_every_text_is_safe_html(text) -> None:
    html = tag('<a title="{}">{}</a>', text, text)
    html.encode("utf-8")
    inner = html.removeprefix('<a title="').removesuffix("</a>")
    assert "<" not in inner and inner.count('"') == 1 and "{" not in inner


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_tokens_can_be_read_on_every_colour() -> None:
    colours = [css(c) for c in PHASE_COLOURS.values()]
    colours += [css(paint(v, c)) for c in COLOURS[1:] for v in (-2.0, -1.0, -0.3, 0.0, 0.6, 1.0, 5.0)]
    assert all((luminance(c) + 0.05) / (luminance("#111111") + 0.05) >= 4.5 for c in colours)
    assert css(paint(1.0, "advantage")) != css(paint(-1.0, "advantage")) != css(paint(None, "advantage"))
    praise, blame = (paint(v, "advantage") for v in (1.0, -1.0))
    assert praise[1] == max(praise) and blame[1] == min(blame)  # green and purple, as in a notebook
    assert all(len(set(paint(0.7, c))) == 1 for c in ("log-prob", "entropy"))  # grey: no praise, no blame, no phase


# --- runs and traces --------------------------------------------------------------------------------------------------


def test_a_whole_model_generates_without_its_base(tmp_path) -> None:
    saved = tmp_path / "whole/checkpoints/step-000001"
    saved.mkdir(parents=True)
    (tmp_path / "whole/config.json").write_text(json.dumps({"lm": {"model": "gone"}}))
    for rank in (4, 0):
        (saved / "policy.json").write_text(json.dumps({"model": "gone", "lora_rank": rank}))
        assert ("runs/whole" in Library(tmp_path).with_policy()) == (rank == 0)


def test_runs_are_found_by_name_alone(library, tmp_path) -> None:
    assert library.having("trace.jsonl")[:3] == ["lab-rec", "lab-rec-fgrpo", "lab-rec-grpo"]
    assert library.with_policy()[:3] == ["lab-rec", "lab-rec-fgrpo", "lab-rec-grpo"]
    base = LMConfig(model=str(tmp_path))
    assert not [n for n in library.with_policy() if n.startswith("smollm2")] or Path("runs/smollm2").is_dir()
    assert "smollm2-movielens-sft" in Library(library.runs, base).with_policy()
    absent = Library(library.runs, replace(base, model=str(tmp_path / "absent")))
    assert "lab-rec" in absent.with_policy() and "smollm2-movielens-sft" not in absent.with_policy()
    for name in ("", ".", "..", "../checkpoints/lab-rec", str(ROOT), "runs/..", "lab-rec/../lab-rec", "lab-rec\0"):
        for read in (library.folder, library.policy, library.metrics, lambda n: library.trace(n, {})):
            with pytest.raises(KitError, match="was not found"):
                read(name)
    run = library.runs / "deep" / "er"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{")
    (run / "checkpoints" / "step-000001").mkdir(parents=True)
    (run / "checkpoints" / "step-000001" / "config.json").write_text("{}")
    library = Library(library.runs)  # the list is kept for a second
    assert [n for n in library.folders() if n.startswith("runs/")] == ["runs/deep/er"]
    with pytest.raises(KitError, match=r"config\.json: not JSON"):
        library.policy("runs/deep/er")
    with pytest.raises(KitError, match="its trace cannot be read"):
        library.trace("runs/deep/er", {})
    with pytest.raises(KitError, match="was deleted"):
        library.trace("yours: x", {"yours: x": str(tmp_path / "gone.jsonl")})


def test_a_trace_is_read_again_when_it_changed_and_not_before(library, tmp_path) -> None:
    bundled = (ROOT / "data/checkpoints/lab-rec/trace.jsonl").read_bytes().splitlines(keepends=True)
    path, own = tmp_path / "t.jsonl", {"mine": str(tmp_path / "t.jsonl")}
    path.write_bytes(b"".join(bundled[:3]))
    first = library.trace("mine", own)
    assert library.trace("mine", own) is first and len(first.keys) == 2
    path.write_bytes(b"".join(bundled[:5]))
    assert len(library.trace("mine", own).keys) == 4
    os.truncate(path, TRACE_BYTES + 1)
    with pytest.raises(KitError, match=f"opens up to {TRACE_BYTES:,}"):
        library.trace("mine", own)


def test_the_cache_is_bounded_by_number_and_by_bytes() -> None:
    cache, made = Cache(3, 100), []
    for key in (1, 2, 1, 3, 4):
        cache.get(key, lambda key=key: made.append(key), size=10)
    assert made == [1, 2, 3, 4] and list(cache._kept) == [1, 3, 4]
    cache.get(5, lambda: None, size=95)
    assert list(cache._kept) == [5]
    with pytest.raises(KitError):
        cache.get(6, lambda: (_ for _ in ()).throw(KitError("x")))
    assert list(cache._kept) == [5]


def test_the_cache_can_be_bounded_by_what_its_values_take() -> None:
    cache = Cache(9, 100)
    for key in "abcd":
        assert cache.get(key, lambda key=key: key * 40, len) == key * 40
    assert list(cache._kept) == ["c", "d"]
    assert cache.get("e", lambda: "e" * 500, len) and list(cache._kept) == ["e"]


def test_a_value_is_made_once_and_nobody_waits_for_another_key() -> None:
    cache, made, begun, go = Cache(3), [], Event(), Event()

    def slow() -> str:
        begun.set()
        made.append(1)
        assert go.wait(30)
        return "slow"

    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(cache.get, "a", slow) for _ in range(2)]
        assert begun.wait(30) and cache.get("b", lambda: "quick") == "quick"
        go.set()
        assert [w.result(30) for w in waiting] == ["slow"] * 2 and made == [1]


def test_queries_have_names_even_where_ids_repeat_or_are_not_printable(tmp_path) -> None:
    groups = [
        Group(replace(EXAMPLE, id=i), step=s) for i, s in (("a", 1), ("a", 2), ("a", 2), ("\x00", 1), ("z" * 99, 1))
    ]
    write_trace(tmp_path / "t.jsonl", Trace("t", Config(), groups, {}))
    opened = open_trace(tmp_path / "t.jsonl", "t")
    assert list(opened.keys) == ["a", "a@2", "#3", "#4", "#5"]
    assert opened.group("a@2").step == 2 and opened.find(replace(EXAMPLE, id="a")).step == 2
    with pytest.raises(KitError, match="query 'b' is not in t"):
        opened.group("b")


def test_invalid_lines_are_listed_and_the_rest_is_kept(tmp_path) -> None:
    lines = (ROOT / "data/checkpoints/lab-rec/trace.jsonl").read_bytes().splitlines(keepends=True)[:4]
    path, bad = tmp_path / "t.jsonl", []
    path.write_bytes(b"".join([lines[0], lines[1], b"[]\n", lines[2], b'{"query": {}}\n']))
    assert len(list(open_trace(path, "t", bad).groups())) == 2
    assert [b.split(":")[0] for b in bad] == ["t, line 3", "t, line 5"]
    with pytest.raises(KitError, match="t, line 3"):
        open_trace(path, "t")
    path.write_bytes(b'{"trace": 9}\n' + lines[1])
    with pytest.raises(KitError, match="newer kit"):
        open_trace(path, "t", bad)


def test_a_query_that_is_too_large_is_refused(tmp_path) -> None:
    wide = replace(EXAMPLE, candidates=tuple(map(str, range(3000))))
    long = from_lists(Output(tuple(range(600)), (1,)), 2000)
    for group, words in (
        (Group(wide), "query 2: 3,000 candidates; the app shows up to 2,000"),
        (Group(replace(wide, candidates=wide.candidates[:2000]), long), "600 candidates in a list"),
        (Group(EXAMPLE, None, (from_lists(Output((1,), (1,)), 6),) * 65), "65 rollouts"),
    ):
        write_trace(tmp_path / "t.jsonl", Trace("t", Config(), [Group(EXAMPLE), group], {}))
        with pytest.raises(KitError, match=words):
            open_trace(tmp_path / "t.jsonl", "t")


# --- numbers and words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (Output((0, 3), (0, 3)), ["slate miss: 2 of 3 relevant candidates not in the slate"]),
        (
            Output((0, 1, 2, 3), (3, 0, 1)),
            [
                "rank drop: 3 of 3 relevant candidates in the slate, "
                "but not ranked or ranked below an irrelevant one"
            ],
        ),
        (Output((2, 1, 0), (1, 0, 2)), ["no error: all 3 relevant candidates are ranked above every irrelevant one"]),
        (Output(error="duplicate"), ["format error (duplicate): a candidate appears twice in a list; both rewards are 0"]),
        (
            Output((0, 1), (), "duplicate"),
            [
                "format error (duplicate): a candidate appears twice in a list; the rank reward is 0, "
                "the slate keeps its own"
            ],
        ),
        (Output((0, 1, 2, 3), (1, 0)), ["rank drop: 1 of 3 relevant candidates in the slate, "
                                        "but not ranked or ranked below an irrelevant one"]),
    ],
)  # fmt: skip
def test_errors_in_words(output, words) -> None:
    assert error_words(EXAMPLE, output, GrammarConfig()) == words
    assert printable(EXAMPLE.candidates[0]) in pool_table(EXAMPLE, output, GrammarConfig())


def test_what_there_was_no_room_for_is_no_error() -> None:
    """Three relevant candidates, of which two may be ranked."""
    grammar = GrammarConfig(slate_size=4, rank_size=2)
    words = ["no error: all 2 relevant candidates are ranked above every irrelevant one"]
    assert error_words(EXAMPLE, Output((0, 1, 2, 3), (1, 0)), grammar) == words


def test_scores_are_those_of_training(library) -> None:
    opened = library.trace("lab-rec-fgrpo", {})
    group = opened.group("test-0")
    rewards, _ = credit_of(group, opened.config)
    for n, traced in enumerate(group.rollouts):
        slate, rank, form = scores(group.example, traced.output, opened.config).values()
        assert (slate, rank, form) == pytest.approx(
            [float(x[0, n]) for x in (rewards.slate, rewards.rank, rewards.format)]
        )
    broken = from_lists(Output(error="foreign"), 6)
    assert scores(EXAMPLE, broken.output, Config())["format"] == -0.5
    assert "<dd>−0.500</dd>" in errors_panel(EXAMPLE, broken, Config())


def test_signs_flip_where_joint_credit_follows_the_other_phase(library) -> None:
    opened = library.trace("lab-rec-fgrpo", {})
    group = opened.group("test-0")
    one, other = (group_credit(group, opened.config, m) for m in ("fgrpo", "grpo"))
    slate, rank = one.rewards.slate[0], one.rewards.rank[0]
    own, joint = [x - x.mean() for x in (slate, rank)], slate + rank - (slate + rank).mean()
    for n, (s, r) in enumerate(flips(group, one, other)):
        phases = group.rollouts[n].phases
        assert s == (phases.count(1) if own[0][n] * joint[n] < 0 else 0)
        assert r == (phases.count(2) if own[1][n] * joint[n] < 0 else 0)
        marked = [t.flips for t in tokens_of(group.example, group.rollouts[n], one.row(n), other.row(n))]
        assert sum(marked) == s + r
    assert flips(group, one, one) == [(0, 0)] * 8
    same = replace(group, rollouts=(group.rollouts[0],) * 2, rankings=1)
    alike = group_credit(same, opened.config, "fgrpo")
    assert zero_phases(alike.rewards) == ["slate", "rank"]
    assert "zero variance" in group_panel(same, opened.config, alike, alike)
    panel = group_panel(same, opened.config, alike, group_credit(same, opened.config, "grpo"))
    assert "No token&#39;s advantage has opposite signs under grpo and fgrpo." in panel and "blames" not in panel


def test_two_traces_compare_as_evaluation_does(library, lab, tmp_path) -> None:
    a, b = (library.trace(name, {}) for name in ("lab-rec-grpo", "lab-rec-fgrpo"))
    found = compare_traces(a, b)
    assert len(found.keys) == 100 and [row[0] for row in found.rows] == list(METRICS)
    measured = evaluate(library.policy("lab-rec-fgrpo"), lab.test[:64], b.config)
    part = compare_traces(cut(a, 64), cut(b, 64))
    assert {row[0]: row[2] for row in part.rows}["ndcg@5"] == pytest.approx(float(measured["ndcg@5"].mean()))
    for _, mean_a, mean_b, difference, low, high in found.rows:
        assert difference == pytest.approx(mean_b - mean_a) and low <= difference <= high
    assert sum(found.shares[0].values()) == pytest.approx(1.0)
    misses = [float(x) for x in measured["slate_miss"]]
    assert len(part.with_fate(1, "slate_miss")) == sum(x > 0 for x in misses)
    assert all(row[3:] == (0.0, 0.0, 0.0) for row in compare_traces(a, a).rows)
    assert fate_bars(found, ("<a>", "b")).count("&lt;a&gt;") == 4
    renamed = replace(cut(b, 9), keys={f"b{n}": n for n in range(9)})
    part = compare_traces(cut(a, 9), renamed)
    assert part.with_fate(1, "rank_drop") and set(part.with_fate(1, "rank_drop")) <= set(renamed.keys)
    assert set(part.with_fate(0, "rank_drop")) <= set(a.keys)
    assert 'data-run="x" data-query="b' in query_list(part, 1, "rank_drop", "x")
    write_trace(tmp_path / "t.jsonl", Trace("t", Config(), [Group(EXAMPLE)], {}))
    other = open_trace(tmp_path / "t.jsonl", "t")
    with pytest.raises(KitError, match="choose runs of one task"):
        compare_traces(a, other)


def test_metrics_in_batches_are_those_of_the_whole(library) -> None:
    opened = library.trace("lab-rec-fgrpo", {})
    groups, grammar = list(opened.groups())[:40], opened.config.grammar
    outputs, examples = [g.greedy.output for g in groups], [g.example for g in groups]
    whole = measure_outputs(outputs, examples, grammar)
    for cells in (1, 10 * 20 * 7, 10**9):
        parts = measure_in_batches(outputs, examples, grammar, cells)
        assert parts.keys() == whole.keys() and all(torch.equal(parts[name], whole[name]) for name in whole)


def cut(opened, count):
    return replace(opened, keys=dict(list(opened.keys.items())[:count]))


def test_differences_of_two_outputs_are_marked() -> None:
    html = side_by_side(
        EXAMPLE, Output((0, 1, 2), (0, 1)), Output((0, 1, 3), (1, 3)), ("x", "y"), (GrammarConfig(),) * 2
    )
    for words in ("only in the slate of A", "only in the slate of B", "↑ 2 to 1 in B", "only in the rank of A"):
        assert words in html


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_shows_something_for_every_method_and_colour(library) -> None:
    for method in METHODS:
        for colour in COLOURS:
            chosen = Chosen("lab-rec", "test-1", "2", colour, method, "grpo", "lab-rec", "lab-rec-grpo")
            page = show(library, chosen, {})
            assert not page.problems and set(page.html) == set(LIGHT) and all(page.html.values())
    for view, slots in DEEP.items():
        page = show(library, chosen, {}, view)
        assert not page.problems and set(page.html) == {*LIGHT, *slots} and all(page.html.values())
        again = show(library, replace(chosen, rollout="3"), {}, view, page.drawn)
        assert set(again.html) == set(LIGHT) and again.drawn == page.drawn  # on the page already
        other = show(library, replace(chosen, run="lab-rec-grpo"), {}, view, page.drawn)
        assert set(slots) <= set(other.html) and other.drawn != page.drawn


def test_the_page_opens_on_a_perfect_slate_that_joint_credit_blames(library) -> None:
    page = show(library, Chosen(FIRST), {})
    assert (page.chosen.query, page.chosen.rollout) == OPENING and not page.problems
    words = page.html["reading"]
    assert "its slate reward is 1.00, above the mean of the group" in words
    assert "grpo blames its slate tokens (\N{MINUS SIGN}" in words and "fgrpo praises them (+" in words
    assert page.html["strip"].count("data-strip") == 2
    assert page.html["strip"].index(">grpo <small>") < page.html["strip"].index(">fgrpo <small>")
    step = NEXT[0][1]
    other = show(library, Chosen(**{k: v for k, v in step.items() if k in Chosen.__dataclass_fields__}), {})
    assert (
        "below the mean" in other.html["reading"].split(";")[1]
        and "grpo praises its rank tokens" in other.html["reading"]
    )


def test_the_table_of_queries_has_what_a_group_has(library) -> None:
    opened = library.trace("lab-rec-fgrpo", {})
    rows = {row.key: row for row in query_rows(opened, "fgrpo", "grpo", 5)}
    assert list(rows) == [f"test-{n}" for n in range(5)]
    group = opened.group("test-1")
    one, other = (group_credit(group, opened.config, m) for m in ("fgrpo", "grpo"))
    row = rows["test-1"]
    assert row.slate == pytest.approx(float(one.rewards.slate.mean())) and row.rollouts == 8
    assert row.flips == sum(map(sum, flips(group, one, other))) > 0
    apart = [abs(x - y) for n, r in enumerate(group.rollouts) for x, y in zip(one.row(n), other.row(n), strict=True)
             if x or y][: sum(len(r.tokens) for r in group.rollouts)]  # fmt: skip
    assert (
        row.difference == pytest.approx(sum(apart) / sum(len(r.tokens) for r in group.rollouts)) and row.difference > 0
    )
    assert query_rows(opened, "fgrpo", "fgrpo", 1)[0].difference == 0
    assert row.titles == tuple(group.example.candidates[i] for i in sorted(group.example.relevant))
    assert row.errors == error_counts(group.example, group.greedy.output, opened.config.grammar)
    table = query_table(list(rows.values()), "<run>", "fgrpo", "grpo", 9)
    assert table.index('data-query="test-1"') < table.index('data-query="test-0"') and "The first 5 queries" in table
    assert 'data-run="&lt;run&gt;"' in table
    assert all(r.flips is None for r in query_rows(opened, "fgrpo", "nosuch", 2))


def test_next_and_previous_go_round(library) -> None:
    chosen = Chosen("lab-rec", "test-99")
    assert neighbour(library, chosen, {}, 1) == "test-0" and neighbour(library, chosen, {}, -1) == "test-98"
    assert neighbour(library, Chosen("nosuch", "x"), {}, 1) == neighbour(library, Chosen("lab-rec", "x"), {}, 1) == ""


def test_a_query_is_read_from_where_its_line_is(library, tmp_path) -> None:
    opened = library.trace("lab-rec-fgrpo", {})
    whole = read_trace(ROOT / "data/checkpoints/lab-rec-fgrpo/trace.jsonl").groups
    assert list(opened.groups()) == whole and not opened.trace.groups
    path = tmp_path / "t.jsonl"
    path.write_bytes((ROOT / "data/checkpoints/lab-rec/trace.jsonl").read_bytes())
    mine = open_trace(path, "mine")
    path.write_bytes(b"x" * 1_000_000)
    with pytest.raises(KitError, match="its trace has changed meanwhile; choose the run again"):
        mine.group("test-9")
    path.unlink()
    with pytest.raises(KitError, match="its trace cannot be read"):
        mine.group("test-9")


JUNK = st.sampled_from(["", "lab-rec", "test-3", "greedy", "9", "-1", "nested", "../..", "\x00", "a" * 2000]) | st.text(
    max_size=20
)


@given(
    st.lists(JUNK, min_size=9, max_size=9), st.sampled_from(["lab-rec", ""]), st.sampled_from([*DEEP, "inspect", "x"])
)
@settings(max_examples=60, deadline=None)
def test_no_choice_raises(library, names, run, view) -> None:
    page = show(library, Chosen(run or names[0], *names[1:]), {}, view)
    assert page.problems or any(page.html.values())
    assert queries_of_bar(library, names[0], names[1], {}, "0", "slate_miss")
    assert training(library, names[0])


def test_a_run_that_cannot_be_opened_is_replaced_and_named(library, tmp_path) -> None:
    for name in ("yours: gone", "nosuch", ""):
        page = show(library, Chosen(name, "q", "3"), {"yours: gone": str(tmp_path / "gone.jsonl")})
        assert page.chosen.run == "lab-rec-fgrpo" and page.html["strip"].count("token") > 5
        assert "Showing lab-rec-fgrpo in its place" in page.problems[1]


def test_the_explorable_is_shut_in_its_frame(library, tmp_path) -> None:
    shown = show(library, Chosen("lab-rec-fgrpo", "test-1"), {}, "try").html["try"]
    assert (
        shown.count("<iframe") == 1
        and 'sandbox="allow-scripts"' in shown
        and 'data-save="lab-rec-fgrpo-test-1.html"' in shown
    )
    inner = shown.split('srcdoc="')[1].removesuffix('"></iframe>')
    assert not set(inner) & set('<>"$`{}')
    group = library.trace("lab-rec-fgrpo", {}).group("test-1")
    trace = replace(library.trace("lab-rec-fgrpo", {}).trace, groups=[group], notes=())
    assert html.unescape(inner) == build_page(trace).html
    write_trace(tmp_path / "t.jsonl", Trace("t", Config(), [Group(EXAMPLE)], {}))
    page = show(library, Chosen("mine"), {"mine": str(tmp_path / "t.jsonl")}, "try")
    assert "no query has two rollouts" in page.html["try"] and not page.problems


def test_a_trace_of_lists_alone_and_one_without_rollouts(library, tmp_path) -> None:
    only = Group(EXAMPLE, from_lists(Output((0, 3), (3,)), 6), (from_lists(Output((1,), (1,)), 6),) * 3)
    write_trace(tmp_path / "l.jsonl", Trace("l", Config(), [only, Group(replace(EXAMPLE, id="none"))], {}))
    own = {"mine": str(tmp_path / "l.jsonl")}
    page = show(library, Chosen("mine", "q", "1", "entropy", "item", "nested", "mine", "mine"), own)
    assert "not recorded" in page.html["strip"] and "nested compares rankings" in page.html["reading"]
    assert "nested compares rankings" in show(library, page.chosen, own, "group").html["group"]
    assert "This query has no rollouts" in show(library, Chosen("mine", "none"), own).html["strip"]


def test_training_draws_what_was_logged(library) -> None:
    assert "Step 300 of 300" in training(library, "lab-rec-fgrpo") and "<svg" in training(library, "lab-rec")


# --- the playground ---------------------------------------------------------------------------------------------------

FORM = Form("Which?", "h", "* a\nb\n* c", 1.0, 3, 2, "constrained", 4, 0)


def test_a_typed_query_is_an_example_and_back() -> None:
    example = example_from(FORM)
    assert example.candidates == ("a", "b", "c") and example.relevant == {0, 2} and example.history == ("h",)
    assert typed(example) == (FORM.query, FORM.history, FORM.pool)
    source = replace(example, candidate_ids=("7", "8", "9"), history_ids=("1",))
    assert example_from(replace(FORM, pool="* c\na"), source).candidate_ids == ("9", "7")
    assert example_from(replace(FORM, pool="* c\nnew"), source).candidate_ids == ()
    assert example_from(FORM, replace(source, id="s")).id == "s"  # unchanged: other runs may have it
    for changed in ({"query": "What?"}, {"history": "h\ni"}, {"pool": "* a\n* b\nc"}):
        assert example_from(replace(FORM, **changed), replace(source, id="s")).id == "typed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": ""}, "0 candidates"),
        ({"pool": "* a\n" * 300}, "300 candidates"),
        ({"pool": "a\nb"}, "marked as relevant"),
        ({"pool": "* \nb"}, "pool, line 1"),
        ({"history": "x\n" * 60}, "60 entries"),
        ({"query": "q" * 3000}, "query, line 1"),
    ],
)
def test_a_bad_form_is_refused(changes, message) -> None:
    with pytest.raises(KitError, match=message):
        example_from(replace(FORM, **changes))


@pytest.mark.parametrize("decoding", ["constrained", "free"])
def test_rollouts_come_one_by_one_and_the_greedy_one_is_that_of_evaluation(policy: Policy, lab, decoding) -> None:
    config = config_of(replace(FORM, decoding=decoding, slate_size=6, rank_size=3), Config())
    found = list(generate(policy, lab.test[0], config, 3, seed=1))
    assert [done for done, _ in found] == [0, 1, 2, 3] and [len(g.rollouts) for _, g in found] == [0, 1, 2, 3]
    group = found[-1][1]
    sampling = Sampling(config.grammar, decoding == "constrained")
    assert group.greedy.output == greedy(policy, [lab.test[0]], sampling)[0]
    assert list(generate(policy, lab.test[0], config, 3, seed=1))[-1][1] == group
    assert list(generate(policy, lab.test[0], config, 2, seed=1))[-1][1].rollouts == group.rollouts[:2]
    assert list(generate(policy, lab.test[0], config, 3, seed=2))[-1][1].rollouts != group.rollouts
    assert len({r.tokens for r in group.rollouts}) == 3
    small = example_from(
        replace(FORM, pool="* " + "\n".join(lab.test[0].candidates[:3]), history=lab.test[0].history[0])
    )
    assert len(list(generate(policy, small, config, 1, 0))[-1][1].greedy.output.slate) <= 3
    assert torch.isfinite(torch.tensor(group.rollouts[0].logprobs)).all()


def test_any_title_can_be_typed_for_a_policy_that_reads_texts(monkeypatch) -> None:
    monkeypatch.setattr(text, "embed", vectors)
    policy = made("text")
    with torch.no_grad():
        policy.model.prior.bias[0] = 50.0  # by likeness alone
    pool = "\n".join(f"{'* ' * (n == 3)}Unheard of {n}" for n in range(12))
    typed = example_from(replace(FORM, history="Unheard of 3", pool=pool))
    config = config_of(replace(FORM, slate_size=6, rank_size=3), Config())
    group = list(generate(policy, typed, config, 2, seed=1))[-1][1]
    assert group.greedy.output.rank[0] == 3 and len(group.rollouts) == 2


def test_a_visitor_keeps_a_few_traces_until_the_last_session_ends(tmp_path) -> None:
    pytest.importorskip("gradio")
    from app.visitors import KNOWN, OWN, Visitor

    visitor = Visitor()
    for n in range(OWN + 2):
        (tmp_path / str(n)).mkdir()
        (tmp_path / str(n) / "t.jsonl").write_text("x")
        visitor.add(f"t{n}", tmp_path / str(n) / "t.jsonl")
    assert list(visitor.traces) == [f"t{n}" for n in range(2, OWN + 2)] and len(list(tmp_path.iterdir())) == OWN
    ticket, sessions = visitor.ticket, [visitor, visitor]
    del visitor
    sessions.pop()
    assert ticket in KNOWN and len(list(tmp_path.iterdir())) == OWN
    sessions.pop()  # the last session of this visitor ends
    gc.collect()
    assert ticket not in KNOWN and not list(tmp_path.iterdir())


def test_a_turn_lasts_until_the_answer_is_sent_and_nobody_else_waits_for_it() -> None:
    pytest.importorskip("gradio")
    from app.visitors import WAITING, Visitor, in_turn

    from .serving import run

    event, sent = in_turn(lambda visitor, name: name), []

    async def answer(visitor: Visitor, name: str, steps: int) -> None:
        """As gradio answers: what the function returns is prepared in steps, and then sent."""
        found = await event(visitor, name)
        for _ in range(steps):
            await asyncio.to_thread(lambda: None)
        sent.append(found)

    async def answers() -> tuple[Visitor, list]:
        one = Visitor()
        ends = await asyncio.gather(
            answer(one, "long", 200), answer(one, "short", 0), answer(Visitor(), "other", 0),
            *(answer(one, "too many", 0) for _ in range(WAITING - 1)), return_exceptions=True,
        )  # fmt: skip
        return one, ends

    one, ends = run(answers())
    assert sent == ["other", "long", "short", *["too many"] * (WAITING - 2)]
    assert [str(e) for e in ends if e] == ["'Too many clicks at once: wait for the answers.'"]
    assert not one.waiting and not one.turn.locked()


def test_free_decoding_explains_what_breaks_the_grammar(library, tmp_path) -> None:
    pytest.importorskip("gradio")
    from app.form import Playground

    shown = Playground._result
    config = config_of(replace(FORM, decoding="free"), Config())
    broken = Group(EXAMPLE, from_lists(Output(error="malformed"), 6), (from_lists(Output((0,), (0,)), 6),) * 2)
    assert "1 of 3 rollouts break the grammar" in shown(None, broken, config, "fgrpo", "grpo", False)
    constrained = replace(config, rl=replace(config.rl, decoding="constrained"))
    assert "break the grammar" not in shown(None, broken, constrained, "fgrpo", "grpo", False)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, None, "query: enter at most 500,000 characters"),
        (2, "x" * 500_001, "pool: enter at most"),
        (3, 0.0, "temperature: enter a number between 0.1 and 2"),
        (3, float("nan"), "temperature: enter"),
        (4, 10**9, "slate size: enter a number between 1 and 20"),
        (5, "5", "rank size: enter"),
        (7, True, "group: enter a number between 1 and 16"),
        (8, -5, "seed: enter a number between 0 and 2,147,483,647"),
    ],
)
def test_a_value_that_the_form_cannot_hold_is_named(place, value, message) -> None:
    values = [getattr(FORM, f.name) for f in fields(Form)]
    assert form_of(*values) == FORM
    values[place] = value
    with pytest.raises(KitError, match=message):
        form_of(*values)


# --- odd files in a folder of runs ------------------------------------------------------------------------------------


def run_with(runs: Path, **files: bytes) -> Library:
    """A library of one more run, odd: the shipped one, with these files in place of its own."""
    folder = runs / "odd"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "metrics.jsonl", "trace.jsonl"):
        (folder / name).write_bytes((ROOT / "data/checkpoints/lab-rec" / name).read_bytes())
    for name, blob in files.items():
        (folder / name.replace("_", ".")).write_bytes(blob)
    return Library(runs)


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (b"", "nothing is logged yet"),
        (b'{"step": 1}\n', "nothing is logged yet"),
        (b'{"step": 1, "reward/slate": "x", "loss": [1], "tokens": null}\n', "must be a number; delete the line"),
        (b'{"step": 1, "loss": 1.5}\n{"step": 2, "loss": Infin', "Step 1 of 1,000"),
        (b'{"step": 1, "loss": NaN}\n{"step": 2, "loss": 2.0, "<b>": 1e29}\n', "&lt;b&gt; 1e+29"),
        (b'{"step": 1, "loss": 1e308}\n{"step": 2, "loss": -Infinity, "reward/rank": 0.5}\n', "<svg"),
        (b'{"step": 1, "loss": 1' + b"0" * 400 + b', "slate_length": 3}\n', "<svg"),
        (b'{"step": 1000000000000000000, "loss": 1}\n', "a step that is not the number of a step"),
        (b'{"step": -1, "loss": 1}\n', "a step that is not the number of a step"),
        (b'{"step": 1' + b"0" * 400 + b', "loss": 1}\n', "a step that is not the number of a step"),
        (b'{"step": 1.5}\n', "must be a whole number"),
        (b"\x00\xff\n", "not a JSON object"),
        (b"[" * 100_000 + b"\n", "nested too deep"),
        (b'{"loss": 1}\n' * 3, "must be a whole number"),
    ],
)
def test_odd_metrics_are_drawn_as_far_as_they_are_numbers(tmp_path, metrics, words) -> None:
    shown = training(run_with(tmp_path, metrics_jsonl=metrics), "runs/odd")
    assert words in shown and "cannot be shown" not in shown


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (b"", "config.json: not JSON"),
        (b"[" * 100_000, "config.json: not JSON"),
        (b'{"model": {"layers": 1e7}}', "must be of type int"),
        (b'{"grammar": {"slate_size": 1e999}}', "must be of type int"),
        (b" " * 1_000_001, "has 1,000,001 bytes"),
        ("{}".encode("utf-16"), "config.json: is damaged"),
    ],
)
def test_an_odd_configuration_of_a_run_is_a_sentence(tmp_path, config, words) -> None:
    library = run_with(tmp_path, config_json=config)
    with pytest.raises(KitError) as error:
        library.policy("runs/odd")
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and links")
def test_pipes_devices_and_broken_links_of_a_run_are_not_read(tmp_path) -> None:
    library = run_with(tmp_path)
    readers = {
        "trace.jsonl": lambda: library.trace("runs/odd", {}),
        "metrics.jsonl": lambda: library.metrics("runs/odd"),
    }
    for name, read in readers.items():
        path = tmp_path / "odd" / name
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(KitError, match="it is not a file"):
            read()
        path.unlink()
        path.symlink_to("/dev/zero")
        with pytest.raises(KitError, match="it is not a file"):
            read()
        assert library.download("runs/odd", {}, tmp_path) is None
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "config.json").symlink_to(tmp_path / "nothing")
    assert "runs/odd" in Library(tmp_path).folders()
    assert not (tmp_path / "downloads").exists()


def test_sizes_of_a_header_change_no_number(library) -> None:
    opened = library.trace("lab-rec-fgrpo", {})
    for sizes in ({"slate_size": 9_999}, {"slate_size": 10_000, "rank_size": 10_000}):
        config = replace(opened.config, grammar=replace(opened.config.grammar, **sizes))
        large = replace(opened, trace=replace(opened.trace, config=config))
        found = compare_traces(cut(large, 20), cut(opened, 20))
        assert all(row[3:] == (0.0, 0.0, 0.0) for row in found.rows)


def test_queries_of_one_group_count_as_one_in_an_interval(library, tmp_path) -> None:
    """Each query four times: the interval is that of the queries once, if their group says so, else about half as wide."""
    names = ("lab-rec-grpo", "lab-rec-fgrpo")

    def width(copies: int, grouped: bool) -> float:
        runs = []
        for opened in (cut(library.trace(name, {}), 40) for name in names):
            groups = [
                replace(g, example=replace(g.example, id=f"{n}-{c}", group=str(n) if grouped else ""), rollouts=())
                for n, g in enumerate(opened.groups()) for c in range(copies)
            ]  # fmt: skip
            write_trace(tmp_path / "t.jsonl", replace(opened.trace, groups=groups))
            runs.append(open_trace((tmp_path / "t.jsonl").rename(tmp_path / f"{len(runs)}-{copies}{grouped}"), "t"))
        *_, low, high = compare_traces(*runs).rows[0]
        return high - low

    assert width(4, grouped=True) == pytest.approx(width(1, grouped=False))
    assert width(4, grouped=False) == pytest.approx(width(1, grouped=False) / 2, rel=0.05)


def test_one_query_alone_gives_no_interval(library) -> None:
    a, b = (cut(library.trace(name, {}), 1) for name in ("lab-rec-grpo", "lab-rec-fgrpo"))
    found = compare_traces(a, b)
    assert all(row[4:] == (-math.inf, math.inf) for row in found.rows)
    assert "no difference found" in metrics_table(found, ("a", "b"))


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--port", "99999"), "--port 99999: choose a number"),
        (("--port", "-1"), "--port -1: choose a number"),
        (("--port", "eighty"), "invalid int value: 'eighty'"),
        (("--host", "192.0.2.1"), "cannot listen on 192.0.2.1:7860 ("),
        (("--host", "a" * 70), "choose another --port, or another --host"),
        (("--host", ""), "choose another --port, or another --host"),
        (("--runs", __file__), "cannot be used (File exists); name another folder with --runs"),
        (("--runs", "r" * 300), "File name too long"),
        (("--gguf-file", "x.gguf"), "name the folder that contains the file with --model"),
        (("--nosuch",), "unrecognized arguments: --nosuch"),
        (("runs",), "unrecognized arguments: runs"),
    ],
)
def test_a_bad_call_is_one_line(args, words, capsys, monkeypatch, tmp_path) -> None:
    from app.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert main(list(args)) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("app: ") and err.count("\n") == 1 and words in err
    assert not list(tmp_path.iterdir())


def test_the_app_runs_from_a_clone_only(tmp_path, monkeypatch) -> None:
    pytest.importorskip("gradio")
    from app.__main__ import launch

    monkeypatch.setattr("app.library.BUNDLED", tmp_path / "data" / "checkpoints")
    monkeypatch.setattr("os.environ", dict(os.environ))
    with pytest.raises(KitError, match=r"runs from a clone, where its traces are; .*checkpoints is missing"):
        launch("127.0.0.1", 7860, tmp_path, tmp_path)
    assert not Library(tmp_path).folders()


def test_runs_may_be_read_only(tmp_path) -> None:
    from app.__main__ import temporary_folder

    with temporary_folder(tmp_path / "new") as name:
        assert Path(name).parent == tmp_path / "new"
    tty = Path("/proc/tty")  # nobody can write there, not even root
    if not tty.is_dir():
        pytest.skip("no such folder")
    with temporary_folder(tty) as name:
        assert not Path(name).is_relative_to(tty)


def test_what_a_killed_app_left_is_removed_at_the_next_start(tmp_path) -> None:
    from app.__main__ import temporary_folder

    killed, fresh, kept = (tmp_path / name for name in (".app-killed", ".app-fresh", "mine"))
    for folder in (killed, fresh, kept):
        (folder / "uploads").mkdir(parents=True)
        (folder / "uploads" / "a.jsonl").write_text("{}")
    with temporary_folder(tmp_path) as running:
        for folder in (killed, kept, Path(running)):
            os.utime(folder, (0, 0))
        with temporary_folder(tmp_path) as name:
            assert {p.name for p in tmp_path.iterdir()} == {Path(running).name, Path(name).name, ".app-fresh", "mine"}
    assert {p.name for p in tmp_path.iterdir()} == {".app-fresh", "mine"}


def app(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "app", *args], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_taken_port_and_a_folder_that_cannot_be_written_are_reported(tmp_path) -> None:
    pytest.importorskip("gradio")
    (tmp_path / "file").write_text("")
    done = app("--runs", str(tmp_path / "file"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--runs" in done.stderr
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        done = app("--runs", str(tmp_path), "--port", str(s.getsockname()[1]))
    assert done.returncode == 2 and "choose another --port" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob(".app-*"))  # nothing is left behind
