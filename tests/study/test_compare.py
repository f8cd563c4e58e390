"""Methods and settings by name, the corrected table, sample efficiency, pipelines beside the policies."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fgrpo.baselines.decoupled import decoupled
from fgrpo.cli.main import main
from fgrpo.config import Config, KitError, changed, with_method
from fgrpo.data import Splits
from fgrpo.runs.warm_start import warm_start
from fgrpo.study.compare import Result, compare, measure_baseline, settings
from fgrpo.study.report import crossing, efficiency, format_table, settling_step, table
from fgrpo.tasks.lab import lab_catalogue

NAMES = ("ndcg@5", "recall@5", "slate_recall", "slate_length")


def result(values: torch.Tensor, curve: list[tuple[int, torch.Tensor]] | None = None) -> Result:
    return Result(dict.fromkeys(NAMES, values), 10, 1.0, curve or [])


@pytest.fixture
def small(lab) -> Splits:
    return Splits(lab.train[:64], lab.validation[:8], lab.test[:12])


def items() -> list[str]:
    return [film.title for film in lab_catalogue()]


def test_a_method_is_a_credit_with_options() -> None:
    rl = with_method(Config(), "nested:rankings=2:queries=24").rl
    assert (rl.credit, rl.rankings, rl.queries, rl.lam) == ("nested", 2, 24, 1.0)
    for method, message in (
        ("grpo:std", "must be FIELD=VALUE"), ("grpo:nose=1", "'nose' is not known"),
        ("grpo:lr=fast", "must be of type float"), ("grpo:group=1", "group 1 must be at least 2"),
        ("grpo:rl=1", "'rl' is not known"),
    ):  # fmt: skip
        with pytest.raises(KitError, match=message):
            with_method(Config(), method)


def test_settings_are_every_combination() -> None:
    found = settings(Config(), ["one_relevant=false,true", "slate-size=5,10"])
    assert list(found) == [
        "one_relevant=false slate_size=5", "one_relevant=false slate_size=10",
        "one_relevant=true slate_size=5", "one_relevant=true slate_size=10",
    ]  # fmt: skip
    assert found["one_relevant=true slate_size=5"] == replace(
        Config(one_relevant=True), grammar=replace(Config().grammar, slate_size=5)
    )
    assert settings(Config(), []) == {"": Config()}
    equal = settings(Config(), ["group=4:queries=32,8:queries=16"])
    assert [(c.rl.group, c.rl.queries) for c in equal.values()] == [(4, 32), (8, 16)]
    assert changed(Config(), {"pool": "50"}).pool == 50


def test_every_setting_starts_from_its_own_warm_start_and_pairs_its_methods(config, small, tmp_path) -> None:
    """lam shares one warm start, slate_size needs one each; the same seed gives the same run whatever stands beside it."""
    calls = []

    def load(c: Config) -> tuple[Splits, list[str]]:
        calls.append(c)
        return small, items()

    config = replace(config, rl=replace(config.rl, steps=1))
    vary = ["slate_size=5,8", "lam=1,2"]
    found = compare(config, ["grpo", "fgrpo"], 2, tmp_path / "a", load, vary, [], jobs=1, quiet=True)
    assert len(calls) == 2 and len(list((tmp_path / "a").glob("*/warm-start"))) == 2
    assert list(found) == ["slate_size=5 lam=1", "slate_size=5 lam=2", "slate_size=8 lam=1", "slate_size=8 lam=2"]
    assert all(list(methods) == ["sft_full", "sft", "grpo", "fgrpo"] for methods in found.values())
    assert found["slate_size=5 lam=1"]["grpo"][0].metrics["slate_length"].max() <= 5
    alone = compare(config, ["grpo"], 1, tmp_path / "b", load, ["slate_size=8"], [], jobs=1, quiet=True)
    first, second = alone["slate_size=8"]["grpo"][0], found["slate_size=8 lam=1"]["grpo"][0]
    assert all(torch.equal(first.metrics[name], second.metrics[name]) for name in first.metrics)


def test_table_says_when_no_difference_is_shown() -> None:
    noise = torch.rand(50, generator=torch.Generator().manual_seed(0)).double()
    results = {
        "": {
            "sft": [result(noise - 0.1)], "grpo": [result(noise)] * 2, "fgrpo": [result(noise + 0.02)] * 2,
            "reward_to_go": [result(noise)] * 2,
        }
    }  # fmt: skip
    rows = {r["method"]: r for r in table(results) if r["metric"] == "ndcg@5"}
    assert {m: r["verdict"] for m, r in rows.items()} == {
        "sft": "lower", "grpo": "", "fgrpo": "higher", "reward_to_go": "no difference shown",
    }  # fmt: skip
    rows = {r["method"]: r for r in table(results, "fgrpo") if r["metric"] == "ndcg@5"}
    assert rows["grpo"]["verdict"] == "lower" and rows["grpo"]["diff"] == pytest.approx(-0.02)
    text = format_table(table(results))
    assert "no difference shown" in text and "difference to grpo" in text and len(text.splitlines()) == 5


def test_one_lucky_setting_among_many_is_not_a_finding() -> None:
    """A difference that one comparison would show is not shown among twenty, and its corrected interval covers zero."""
    generator = torch.Generator().manual_seed(2)

    def cell(shift: float) -> dict[str, list[Result]]:
        base, noise = torch.rand(2, 3, 200, generator=generator).double()
        other = base + 0.3 * (noise - noise.mean()) + shift
        return {"sft": [result(base[0])], "grpo": [result(x) for x in base], "fgrpo": [result(x) for x in other]}

    lucky = cell(0.02)
    (alone,) = [r for r in table({"a": lucky}) if (r["method"], r["metric"]) == ("fgrpo", "ndcg@5")]
    others = {f"other={i}": cell(0.0) for i in range(19)}
    rows = [r for r in table({"a": lucky, **others}) if (r["method"], r["metric"]) == ("fgrpo", "ndcg@5")]
    assert alone["verdict"] == "higher" and alone["holm_low"] == alone["diff_low"] > 0
    assert rows[0]["diff_low"] == alone["diff_low"] and rows[0]["p_holm"] > 0.05 and rows[0]["holm_low"] < 0
    assert {r["verdict"] for r in rows} == {"no difference shown"}


def test_tokens_to_reach_a_level() -> None:
    assert crossing([0, 100, 200], [0.2, 0.4, 0.8], 0.6) == 150
    assert crossing([0, 100], [0.5, 0.6], 0.4) == 0 and crossing([0, 100], [0.1, 0.2], 0.3) == float("inf")
    start = torch.full((20,), 0.2).double()
    slow = [(100, start + 0.1), (200, start + 0.2)]
    fast = [(50, start + 0.2), (100, start + 0.3)]
    results = {"": {"sft": [result(start)], "grpo": [result(start, slow)] * 2, "fgrpo": [result(start, fast)] * 2}}
    points, reached = efficiency(results)
    assert [(r["method"], r["tokens"], r["target"]) for r in reached] == [
        ("grpo", pytest.approx(200), pytest.approx(0.4)), ("fgrpo", pytest.approx(50), pytest.approx(0.4)),
    ]  # fmt: skip
    assert [p["tokens"] for p in points if p["method"] == "fgrpo"] == [0, 50, 100]
    uneven = torch.linspace(0, 0.4, 20).double()  # queries differ much, methods by a constant: pairing sees through it
    slow, fast = ([(t, uneven + t / k) for t in (100, 200)] for k in (1000, 500))
    results = {"": {"sft": [result(uneven)], "grpo": [result(uneven, slow)] * 2, "fgrpo": [result(uneven, fast)] * 2}}
    assert [(r["low"], r["high"]) for r in efficiency(results)[1]] == [
        pytest.approx((200, 200)),
        pytest.approx((100, 100)),
    ]


def test_settling_step() -> None:
    early, late = [min(1.0, i / 20) for i in range(100)], [min(1.0, i / 80) for i in range(100)]
    assert settling_step(early, window=1) == 19 and settling_step(late, window=1) == 73
    assert settling_step([0.0, 1.0]) == 2


def test_compare_sweeps_and_measures_on_the_way(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["--queries", "2", "--group", "4", "--steps", "2", "--hidden-size", "32", "--layers", "1", "--heads", "2",
            "--sft-steps", "2", "--sft-batch", "4"]  # fmt: skip
    argv = ["compare", "--credits", "grpo,nested:rankings=2", "--vary", "lam=0.5,1,2", "--seeds", "1", "--every", "1",
            "--limit", "16", "--split", "validation", "--jobs", "1", "--out", "c", "--json", *tiny]  # fmt: skip
    assert main(argv) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {r["setting"] for r in rows} == {"lam=0.5", "lam=1", "lam=2"}
    for name in (
        "comparison.png",
        "efficiency.png",
        "efficiency.csv",
        "reached.csv",
        "settling.csv",
        "lam-0.5/learning.png",
    ):
        assert (Path("c") / name).stat().st_size > 0
    first = Path("c/reached.csv").read_text().split("\n", 1)[1]
    assert main([*argv, "--resume"]) == 0  # nothing is trained or measured twice
    assert Path("c/reached.csv").read_text().split("\n", 1)[1] == first
    assert list(json.loads(Path("c/lam-1/grpo-seed0/curve.json").read_text())) == ["1", "2"]


def test_decoupled_trains_each_on_its_own_phase(config, small, tmp_path) -> None:
    grammar = config.grammar
    gold = decoupled(small, items(), config, tmp_path)
    own = decoupled(small, items(), config, tmp_path, slates="selector", resume=True)
    assert [o.slate for o in gold] == [o.slate for o in own]  # one selector
    for o in [*gold, *own]:
        assert not o.error and set(o.rank) <= set(o.slate) and len(o.slate) <= grammar.slate_size
    assert {p.name for p in tmp_path.iterdir()} == {"selector", "ranker-gold", "ranker-selector"}


def test_baselines_by_name(config, small, tmp_path) -> None:
    for name in ("random", "decoupled:slates=selector"):
        found = measure_baseline(name, small, items(), config, tmp_path)
        assert found.metrics["ndcg@5"].shape == (12,) and found.seconds > 0
    for name, message in (
        ("best", "baseline 'best' is not known"), ("random:model=x", "unexpected keyword argument 'model'"),
        ("decoupled:slates=some", "slates 'some' is not known"), ("llm", "name a model"), ("random:x", "FIELD=VALUE"),
    ):  # fmt: skip
        with pytest.raises(KitError, match=message):
            measure_baseline(name, small, items(), config, tmp_path)


def test_the_shipped_warm_start_is_used_for_what_it_was_made_for(tmp_path) -> None:
    assert warm_start(Config(), Splits([], [], []), [], tmp_path).parts[-4:-1] == (
        "checkpoints",
        "lab-rec",
        "checkpoints",
    )
