"""The tab Runs: its numbers against the kit's own tables, what opens what, escaping, refusals."""

import html
import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app import runs
from app.library import Library
from app.runs import MOST_RUNS, histograms, labelled, measured, over_steps, overlaid, overview, per_query
from fgrpo.config import Config, GrammarConfig, KitError, RLConfig
from fgrpo.credit import with_credit
from fgrpo.data import Example
from fgrpo.evaluate import measure_outputs
from fgrpo.prompt import PHASE_RANK, PHASE_SLATE, Output
from fgrpo.runs.trace import Group, Trace, Traced, credit_of, from_lists, write_trace
from fgrpo.study.compare import Result
from fgrpo.study.report import table
from tests.app.test_charts import hovers, parsed

CONFIG = Config(grammar=GrammarConfig(slate_size=4, rank_size=3))
EXAMPLES = [
    Example(f"q{n}", "Which?", (), tuple(f"{n}-{c}" for c in "abcdef"), frozenset({n % 6, 2}), group=f"g{n // 2}")
    for n in range(20)
]
HOSTILE = "<b>${x} {y}"


def output(seed: object) -> Output:
    """Some well-formed lists."""
    chance = random.Random(repr(seed))
    slate = chance.sample(range(6), chance.randint(1, 4))
    return Output(tuple(slate), tuple(chance.sample(slate, min(3, len(slate)))))


def traced(seed: object) -> Traced:
    return from_lists(output(seed), 6)


def add(
    folder: Path, name: str, config: Config, groups: Sequence[Group], origin: object = None, logged: Sequence[object] = ()
) -> None:  # fmt: skip
    """Write a run as `fgrpo train` does."""
    at = folder / name
    at.mkdir(parents=True)
    (at / "config.json").write_text(json.dumps(config.to_dict() | {"made": {"origin": origin}}))
    write_trace(at / "trace.jsonl", Trace(name, config, list(groups), {}))
    (at / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in logged))


def made(method: str, seed: int) -> tuple[Config, list[Group]]:
    config = replace(CONFIG, seed=seed, rl=with_credit(RLConfig(), method))
    groups = [
        Group(e, traced((method, seed, e.id)), tuple(traced((seed, i, e.id)) for i in range(4))) for e in EXAMPLES
    ]
    return config, groups


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        for method in ("grpo", "fgrpo", "item"):
            log = [{"step": s, "reward/slate": s / 20 + seed, "slate_length": 2.0} for s in range(1, 21)]
            log[9]["test/ndcg@5"] = 0.25
            add(folder, f"c/{method}-seed{seed}", *made(method, seed), {"stage": "rl", "start": seed % 3}, log)
    config, groups = made("fgrpo", 0)
    add(
        folder,
        "sft",
        config,
        [replace(g, greedy=traced(g.example.id)) for g in groups],
        {"stage": "sft", "init": "base"},
    )
    add(folder, HOSTILE, replace(config, seed=7), groups)
    return Library(folder)


def names_of(*methods: str, seeds: int = 3) -> list[str]:
    return [f"runs/c/{method}-seed{seed}" for method in methods for seed in range(seeds)]


def cells(markup: str, caption: str) -> list[list[str]]:
    """The texts of the table with this caption, row by row."""
    body = next(t for t in re.findall(r"<table.*?</table>", markup) if f"<caption><span>{caption}" in t)
    rows = re.findall(r"<tr>(.*?)</tr>", body)
    return [[html.unescape(re.sub("<[^>]*>", "", c)) for c in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


def signs(text: str) -> str:
    return text.replace("\N{MINUS SIGN}", "-")


def test_the_table_of_methods_is_that_of_the_command_compare(library) -> None:
    markup = overview(library, [*names_of("grpo", "fgrpo", "item"), "runs/sft"], {})

    def result(method: str, seed: int) -> Result:
        lists = [output((method, seed, e.id) if method != "sft" else e.id) for e in EXAMPLES]
        return Result(measure_outputs(lists, EXAMPLES, CONFIG.grammar))

    results = {"": {m: [result(m, s) for s in range(1 if m == "sft" else 3)] for m in ("sft", "grpo", "fgrpo", "item")}}
    expected = table(results, starts=[0, 1, 2], groups={"": [e.group for e in EXAMPLES]})
    shown = {row[0]: row for row in cells(markup, "NDCG@5 of methods")}
    head = shown.pop("Method")
    assert head[:4] == ["Method", "seed 0", "seed 1", "seed 2"] and head[-1] == "verdict"
    assert list(shown) == ["grpo", "fgrpo", "item", "sft"]
    for row in (r for r in expected if r["metric"] == "ndcg@5"):
        method, own = row["method"], dict(zip(head, map(signs, shown[row["method"]]), strict=True))
        seeds = results[""][method]
        assert [own[f"seed {s}"] for s in range(len(seeds))] == [f"{r.metrics['ndcg@5'].mean():.3f}" for r in seeds]
        assert own["mean [95 %]"] == f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        if method != "grpo":
            interval = f"{row['diff']:+.3f} [{row['diff_low']:+.3f}, {row['diff_high']:+.3f}]"
            assert own["difference to grpo [95 %]"] == interval
        if method in ("fgrpo", "item"):
            assert own["simultaneous"] == f"[{row['simultaneous_low']:+.3f}, {row['simultaneous_high']:+.3f}]"
            assert own["p (Holm)"] == f"{row['p_holm']:.3f}" and own["verdict"] == row["verdict"]
    assert shown["grpo"][-1] == "baseline" and shown["sft"][-1] == "not trained by RL: no verdict"
    assert "corrected for 2 comparisons" in markup and "20 queries that all 10 runs have" in markup
    one = result("item", 2).metrics
    row = next(r for r in cells(markup, "Means of each run") if r[0] == "runs/c/item-seed2")
    assert row[1:4] == ["item", "2", "runs/c 2"]
    assert row[4:] == [f"{one[m].mean():.3f}" for m in ("ndcg@5", "ndcg@1", "recall@5", "slate_recall", "slate_length")]


def test_few_seeds_give_no_verdict_and_a_seed_is_there_once(library) -> None:
    two = overview(library, names_of("grpo", "fgrpo", seeds=2), {})
    assert cells(two, "NDCG@5")[2][-1] == "no verdict: fewer than 3 seeds" and "p (Holm)" not in two
    assert "Fewer than 3 seeds in common with the baseline (fgrpo)" in two and "Two warm starts" in two
    apart = overview(library, ["runs/c/grpo-seed0", "runs/c/fgrpo-seed1"], {})
    assert cells(apart, "NDCG@5")[2][-1] == "no verdict: no seed in common with grpo"
    config, groups = made("fgrpo", 0)
    add(library.runs, "twice", config, groups)
    add(library.runs, "other", replace(config, rl=replace(config.rl, lam=0.5)), groups)
    library = Library(library.runs)
    twice = overview(library, ["runs/c/fgrpo-seed0", "runs/twice"], {})
    assert "are both fgrpo with seed 0" in twice and "not known" in twice and len(cells(twice, "Means")) == 3
    other = overview(library, ["runs/c/fgrpo-seed0", "runs/other", "runs/c/grpo-seed0"], {})
    assert [row[0] for row in cells(other, "NDCG@5")[1:]] == ["fgrpo lam=1.0", "fgrpo lam=0.5", "grpo"]
    assert "Besides the credit method, runs differ in lam" in other
    alone = overview(library, ["runs/sft"], {})
    assert cells(alone, "NDCG@5")[1][0] == "sft"


def test_runs_that_cannot_be_compared_are_refused_in_a_sentence(library, tmp_path) -> None:
    config, groups = made("fgrpo", 0)
    add(tmp_path, "task", replace(config, task="/data/mine.jsonl"), groups)
    add(tmp_path, "size", replace(config, grammar=GrammarConfig(5, 3)), groups)
    add(tmp_path, "pools", config, [replace(g, example=replace(g.example, candidates=tuple("uvwxyz"))) for g in groups])
    add(tmp_path, "sampled", config, [replace(g, greedy=None, rollouts=()) for g in groups])
    add(tmp_path, "first", config, groups)
    library = Library(tmp_path)
    for name, words in (
        ("task", r"task lab-rec, .*task mine.jsonl, .* cannot be compared: choose runs of one task and grammar"),
        ("size", "slates of up to 4, .*slates of up to 5, .* cannot be compared"),
        ("pools", "no greedy rollouts on the same query and pool"), ("sampled", "no greedy rollouts on the same"),
    ):  # fmt: skip
        for compare in (
            lambda n: overview(library, ["runs/first", n], {}), lambda n: per_query(library, "runs/first", n, {})
        ):  # fmt: skip
            with pytest.raises(KitError, match=words):
                compare(f"runs/{name}")
    for names, words in (
        ([], "0 runs are chosen: choose 1 to 12"), (map(str, range(MOST_RUNS + 1)), "13 runs are chosen"),
        (["../x"], "was not found"),
    ):  # fmt: skip
        names = list(names)
        for show in (
            lambda n: overview(library, n, {}),
            lambda n: overlaid(library, n),
            lambda n: histograms(library, n, {}),
        ):
            with pytest.raises(KitError, match=words):
                show(names)
    with pytest.raises(KitError, match="two different runs"):
        per_query(library, "runs/first", "runs/first", {})
    with pytest.raises(KitError, match="none of these runs has logged rewards of RL"):
        overlaid(library, ["runs/first"])
    with pytest.raises(KitError, match="two or more sampled rollouts"):
        histograms(library, ["runs/sampled"], {})
    with pytest.raises(KitError, match="runs/first: nested compares rankings of one slate"):
        histograms(library, ["runs/first"], {}, "nested")


def test_names_of_runs_are_escaped_everywhere(library) -> None:
    names = [f"runs/{HOSTILE}", "runs/c/grpo-seed0"]
    (library.runs / HOSTILE / "metrics.jsonl").write_text('{"step": 1, "reward/slate": 0.5, "ndcg<i>{": 0.5}\n')
    shown = [overview(library, names, {}), overlaid(library, names), per_query(library, *names, {})]
    shown += [histograms(library, names, {}), over_steps(library, names[0], "q0", {})]
    for markup in shown:
        assert not set("${}`") & set(markup) and "<b>" not in markup and "<i>" not in markup
        assert "&lt;b&gt;" in markup
        assert len(parsed(markup)) == markup.count("<svg")  # well-formed


def test_logs_are_overlaid_by_method_and_seed(library) -> None:
    markup = overlaid(library, [*names_of("grpo", "fgrpo", seeds=2), "runs/sft"])
    panels = parsed(markup)
    assert [p.get("aria-label").split(".")[0].split(":")[0] for p in panels] == [
        "slate reward", "slate length", "test/ndcg@5", "Runs",
    ]  # fmt: skip
    svg = "{http://www.w3.org/2000/svg}"
    lines = [p for p in panels[0].findall(f"{svg}path") if p.get("stroke-width") == "1.8"]
    assert [(p.get("stroke"), p.get("stroke-dasharray")) for p in lines] == [
        ("#555555", None), ("#555555", "7 3"), ("#D55E00", None), ("#D55E00", "7 3"),
    ]  # fmt: skip
    texts = hovers(markup)
    assert "runs/c/grpo-seed1, step 10: 1.275" in texts and "runs/c/fgrpo-seed0, step 10: 0.25" in texts
    assert "Nothing of this is logged by runs/sft." in markup


def test_points_open_queries_of_the_first_run(library) -> None:
    a, b = "runs/c/grpo-seed0", "runs/c/fgrpo-seed1"
    markup = per_query(library, a, b, {})
    queries = [list(measured(library, name, {}).values()) for name in (a, b)]
    values = {q.key: (q.values[0], p.values[0]) for q, p in zip(*queries, strict=True)}
    higher, lower = (sum(x < y for x, y in values.values()), sum(x > y for x, y in values.values()))
    assert f"Of 20 queries, NDCG@5 is higher in B for {higher}, higher in A for {lower}" in markup
    buttons = [e for e in parsed(markup)[0].iter() if e.get("data-query")]
    assert len(buttons) == len({(round(x, 3), round(y, 3)) for x, y in values.values()})
    counted = 0
    for button in buttons:
        x, y = values[button.get("data-query")]
        label = button.get("aria-label")
        assert button.get("data-run") == a and button.get("role") == "button" and button.get("tabindex") == "0"
        assert label.startswith(f"Open query {button.get('data-query')}: {x:.3f} in A, {y:.3f} in B")
        more = re.search(r"the first of (\d+) queries", label)
        counted += int(more[1]) if more else 1
    assert counted == 20


def test_histograms_are_of_the_sampled_rollouts_under_a_credit(library, monkeypatch) -> None:
    name = "runs/c/grpo-seed1"
    config, groups = made("grpo", 1)
    for method in ("", "fgrpo"):
        rl = with_credit(config.rl, method) if method else config.rl
        found = [credit_of(g, replace(config, rl=rl)) for g in groups]
        slate = torch.cat([r.slate[0] for r, _ in found])
        tokens = {
            phase: [a for g, (_, rows) in zip(groups, found, strict=True)
                    for r, row in zip(g.rollouts, rows.tolist(), strict=True)
                    for a, p in zip(row, r.phases, strict=False) if p == phase]
            for phase in (PHASE_SLATE, PHASE_RANK)
        }  # fmt: skip
        markup = histograms(library, [name], {}, method)
        labels = [panel.get("aria-label") for panel in parsed(markup)]
        assert f"{name}: mean {slate.double().mean():.3g} of 80 values" in labels[0]
        for label, phase in zip(labels[3:5], tokens, strict=True):
            assert f"of {len(tokens[phase]):,} values" in label
        ones = sum(float(x) > 0.95 for x in slate)
        assert f"{name}, 0.95 to 1: {100 * ones / 80:.1f} % ({ones} of 80)" in hovers(markup)
        assert (f"credit {method}" if method else "the credit of each run") in markup
    own, joint = (hovers(histograms(library, [name], {}, m)) for m in ("fgrpo", "grpo"))
    assert own != joint
    monkeypatch.setattr(runs, "MOST_QUERIES", 3)
    markup = histograms(library, [name, "runs/c/item-seed0"], {})
    assert "the first 3 queries with sampled rollouts" in markup and "of 12 values" in parsed(markup)[0].get(
        "aria-label"
    )


def test_one_query_over_the_steps_of_training(library, tmp_path) -> None:
    config, _ = made("fgrpo", 0)
    example = EXAMPLES[0]  # relevant: candidates 1 and 3
    good, bad = from_lists(Output((0, 2), (2, 0)), 6), Traced(Output((), (), "malformed"), (), (), ())
    groups = [Group(e, good if s == 20 else bad, (good, bad), step=s) for s in (20, 10) for e in (example, EXAMPLES[1])]
    add(tmp_path, "steps", config, groups)
    markup = over_steps(Library(tmp_path), "runs/steps", "q0", {})
    assert cells(markup, "Query q0 of runs/steps")[1:] == [
        ["10", "–", "–", "0.000", "0.000", "0.500", "0.500", "greedy: malformed, 1 of 2 sampled"],
        ["20", "0-a ★; 0-c ★", "0-c ★; 0-a ★", "1.000", "1.000", "0.500", "0.500", "1 of 2 sampled"],
    ]  # fmt: skip
    assert {"slate reward, greedy, step 10: 0", "rank reward, greedy, step 20: 1"} <= set(hovers(markup))
    assert over_steps(Library(tmp_path), "runs/steps", "q0@10", {}).count("<tr>") == 3
    assert "has this query without a step" in over_steps(library, "runs/c/grpo-seed0", "q0", {})
    add(tmp_path, "once", config, groups[:2])
    assert "at step 20 alone" in over_steps(Library(tmp_path), "runs/once", "q1", {})
    with pytest.raises(KitError, match="is not in"):
        over_steps(library, "runs/c/grpo-seed0", "q99", {})


def test_own_traces_and_the_last_of_several_steps_are_measured(library, tmp_path) -> None:
    config, groups = made("fgrpo", 5)
    later = [replace(g, greedy=traced("later"), step=9) for g in groups[:1]]
    write_trace(tmp_path / "own.jsonl", Trace("own", config, [*groups, *later], {}))
    own = {"yours: own": str(tmp_path / "own.jsonl")}
    (run,) = labelled(library, ["yours: own"], own)
    assert (run.method, run.trained, run.seed, run.start) == ("fgrpo", True, 5, "")
    found = list(measured(library, "yours: own", own).values())
    assert len(found) == 20 and found[0].key == "q0@9"
    expected = measure_outputs([output("later")], EXAMPLES[:1], CONFIG.grammar)
    assert found[0].values[0] == pytest.approx(float(expected["ndcg@5"][0]))
    assert cells(overview(library, ["yours: own", "runs/c/grpo-seed0"], own), "Means")[1][3] == "not known"
