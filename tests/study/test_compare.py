"""Experiments as Configs, settling, baselines beside the policies."""

import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from fgrpo.baselines import baselines_by_name
from fgrpo.baselines.decoupled import decoupled
from fgrpo.baselines.rankers import random_order
from fgrpo.cli.main import main
from fgrpo.config import Config, KitError
from fgrpo.data import Splits
from fgrpo.prompt import Output
from fgrpo.runs.fields import with_fields
from fgrpo.runs.run import read_config
from fgrpo.runs.warm_start import SHIPPED, warm_start
from fgrpo.runs.workers import workers
from fgrpo.study.compare import Result, check_experiments, compare, read_curve, run_baseline, slug
from fgrpo.study.experiments import grid, parse_vary
from fgrpo.study.plots import name_of, style_of, sweep_of
from fgrpo.study.report import logged, made_of, settling_step
from fgrpo.tasks.lab import lab_catalogue


@pytest.fixture
def small(lab) -> Splits:
    return Splits(lab.train[:64], lab.validation[:8], lab.test[:12])


def items() -> list[str]:
    return [film.title for film in lab_catalogue()]


def test_a_field_is_replaced_in_its_concern() -> None:
    found = with_fields(Config(), lam=0.5, pool=50, slate_size=3, rank_size=2, model="some/folder")
    assert (found.rl.lam, found.pool, found.grammar.slate_size, found.lm.model) == (0.5, 50, 3, "some/folder")
    assert with_fields(found, lam=1.0, pool=20, slate_size=10, rank_size=5, model="") == Config()
    for values, message in (({"nose": 1}, "'nose' is not known"), ({"rl": 1}, "'rl' is not known"),
                            ({"group": 1}, "group 1 must be at least 2")):  # fmt: skip
        with pytest.raises(KitError, match=message):
            with_fields(Config(), **values)


def test_values_to_vary_are_typed_by_their_field() -> None:
    texts = ["one-relevant=false,true", "slate_size=5,10", "lam=0.5,1", "task=a:b/c.jsonl"]
    assert parse_vary(texts) == {
        "one_relevant": [False, True], "slate_size": [5, 10], "lam": [0.5, 1.0], "task": ["a:b/c.jsonl"]
    }  # fmt: skip
    for text, message in (
        ("lam", "must be FIELD=VALUE"), ("lam=", "must be FIELD=VALUE"), ("nose=1", "'nose' is not known"),
        ("rl=1", "'rl' is not known"), ("lr=fast", "must be of type float"), ("one_relevant=2", "must be of type bool"),
        ("pool=20,", "must be of type int"), ("credit=grpo", "with --credits"), ("seed=1", "with --seeds"),
    ):  # fmt: skip
        with pytest.raises(KitError, match=message):
            parse_vary([text])
    with pytest.raises(KitError, match="given twice"):
        parse_vary(["lam=1", "lam=2"])


def test_a_grid_is_every_method_under_every_combination() -> None:
    found = grid(Config(), ["grpo", "nested"], {"one_relevant": [False, True], "slate_size": [5, 10]})
    assert list(found) == [
        "one_relevant=false slate_size=5", "one_relevant=false slate_size=10",
        "one_relevant=true slate_size=5", "one_relevant=true slate_size=10",
    ]  # fmt: skip
    config = found["one_relevant=true slate_size=5"]["nested"]
    assert (config.one_relevant, config.grammar.slate_size, config.rl.credit, config.rl.rankings) == (
        True,
        5,
        "nested",
        2,
    )
    assert grid(Config(), ["fgrpo"]) == {"": {"fgrpo": Config()}}
    assert list(grid(Config(), ["grpo"], {"lr": [1e-4, 0.5]})) == ["lr=0.0001", "lr=0.5"]


def test_names_that_would_be_mixed_up_are_refused() -> None:
    c = Config()
    for experiments, message in (
        ({}, "at least one method"), ({"": {}}, "at least one method"),
        ({"": {"a b": c, "a_b": c}}, "same name"), ({"a:": {"x": c}, "a-": {"x": c}}, "same name"),
        ({"": {"": c}}, "needs another name"), ({"": {"sft": c}}, "needs another name"),
        ({"": {"random": c}}, "needs another name"), ({"": {"sft_once": c}}, "needs another name"),
        ({"": {"sft_more": c}}, "needs another name"), ({"": {"sft_more of mine": c}}, "needs another name"),
        ({"": {"sft more": c}}, "needs another name"), ({"": {"warm-start": c}}, "needs another name"),
        ({"a": {"x": c}, "b": {"y": c}}, "must hold the methods"),
        ({"": {"x": c, "y": replace(c, pool=50)}}, "make them settings"),
        ({"": {"x": with_fields(c, credit="who")}}, "'who' is not known"),
    ):  # fmt: skip
        with pytest.raises(KitError, match=message):
            check_experiments(experiments, {"random": random_order})
    for name in ("sft", "sft_full", "sft_more", "sft_more, again"):
        with pytest.raises(KitError, match="that of a row of SFT"):
            check_experiments({"": {"x": c}}, {name: random_order})
    assert slug("../grpo: K=4 (a/b)") == "-grpo-_K-4_-a-b-" and slug("lam=0.5 pool=20") == "lam-0.5_pool-20"


def test_figures_know_new_names_and_those_of_recorded_tables() -> None:
    assert sweep_of(["lam=0.5", "lam=1", "lam=2e-05"]) == {"lam=0.5": 0.5, "lam=1": 1.0, "lam=2e-05": 2e-05}
    assert sweep_of(["group=4:queries=32", "group=8:queries=16"]) == {"group=4:queries=32": 4, "group=8:queries=16": 8}
    assert sweep_of([""]) == sweep_of(["a=1", "b=1"]) == sweep_of(["lam=0.5 pool=20"]) == {}
    assert name_of("nested:rankings=2:queries=24") == "nested rankings=2"
    assert name_of("zero_shot:model=/a/b:gguf_file=c") == "zero_shot" and name_of("grpo, lam 2") == "grpo, lam 2"
    plain, recorded, new = (style_of(m, 1) for m in ("nested", "nested:rankings=2:queries=24", "nested rankings=4"))
    assert plain["color"] == recorded["color"] == new["color"] and recorded["markerfacecolor"] == "white"
    assert "markerfacecolor" not in plain and style_of("my own", 0) != style_of("my own", 1)


def test_a_report_keeps_what_each_method_changes() -> None:
    made = made_of(grid(Config(), ["grpo", "fgrpo"], {"lam": [1.0, 2.0]}))
    assert made["config"]["rl"]["credit"] == "grpo" and made["command"]
    assert made["changes"] == [
        {"setting": "lam=1", "method": "grpo"}, {"setting": "lam=1", "method": "fgrpo", "rl.credit": "fgrpo"},
        {"setting": "lam=2", "method": "grpo", "rl.lam": 2.0},
        {"setting": "lam=2", "method": "fgrpo", "rl.credit": "fgrpo", "rl.lam": 2.0},
    ]  # fmt: skip


def test_every_setting_starts_from_its_own_warm_start_and_pairs_its_methods(config, small, tmp_path) -> None:
    """lam shares one warm start, slate_size needs one each; a seed gives the same run whatever is trained beside it."""
    calls = []

    def load(c: Config) -> tuple[Splits, list[str]]:
        calls.append(c)
        return small, items()

    config = replace(config, rl=replace(config.rl, steps=1))
    experiments = grid(config, ["grpo", "fgrpo"], {"slate_size": [5, 8], "lam": [1.0, 2.0]})
    found = compare(experiments, 2, tmp_path / "a", load, baselines={}, jobs=1, quiet=True)
    assert len(calls) == 2 and len(list((tmp_path / "a").glob("*/warm-start"))) == 2
    assert list(found) == ["slate_size=5 lam=1", "slate_size=5 lam=2", "slate_size=8 lam=1", "slate_size=8 lam=2"]
    rows = ["sft_full", "sft_once", "sft_more", "sft", "grpo", "fgrpo"]
    assert all(list(methods) == rows for methods in found.values())
    assert found["slate_size=5 lam=1"]["grpo"][0].metrics["slate_length"].max() <= 5
    # by hand, under a free name, beside a method that needs a warm start of its own
    wide, other = with_fields(config, slate_size=8, credit="grpo"), with_fields(config, slate_size=6, credit="grpo")
    alone = compare({"": {"by hand": wide, "other": other}}, 1, tmp_path / "b", load, {}, jobs=1, quiet=True)
    first, second = alone[""]["by hand"][0], found["slate_size=8 lam=1"]["grpo"][0]
    assert all(torch.equal(first.metrics[name], second.metrics[name]) for name in first.metrics)
    assert {p.name for p in (tmp_path / "b").iterdir()} - {".lock"} == {
        "warm-start", "warm-start-2", "by_hand-seed0", "other-seed0", "sft_once-start0", "sft_more-start0",
    }  # fmt: skip


def test_settling_step() -> None:
    early, late = [min(1.0, i / 20) for i in range(100)], [min(1.0, i / 80) for i in range(100)]
    assert settling_step(early, window=1) == 19 and settling_step(late, window=1) == 73
    assert settling_step([0.0, 1.0]) == 2


def test_compare_sweeps_and_measures_on_the_way(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["--queries", "2", "--group", "4", "--steps", "2", "--hidden-size", "32", "--layers", "1", "--heads", "2",
            "--sft-steps", "2", "--sft-batch", "4"]  # fmt: skip
    argv = ["compare", "--credits", "grpo,nested", "--vary", "lam=0.5,1,2", "--seeds", "1", "--every", "1",
            "--limit", "16", "--split", "validation", "--jobs", "1", "--baselines", "random", "--out", "c", "--json",
            *tiny]  # fmt: skip
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
    assert main([*argv, "--resume"]) == 0  # nothing is trained or measured again
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


def test_decoupled_on_a_stream_ranks_the_slates_of_its_own_selector(config, lab, small, tmp_path) -> None:
    """Those of the examples that the ranker sees, which are not the ones of the sample that a stream is as a sequence."""
    stream = small._replace(train=lab.train)
    own = decoupled(stream, items(), config, tmp_path, slates="selector")
    assert len(own) == 12 and not any(o.error for o in own)
    longer = decoupled(small, items(), config, tmp_path / "longer", sft_steps=6)
    assert len(longer) == 12 and all(
        read_config(tmp_path / "longer" / name).sft.sft_steps == 6 for name in ("selector", "ranker-gold")
    )


def test_decoupled_is_trained_as_long_as_sft_and_rl_together(config, small, tmp_path) -> None:
    """Each of its policies gets the steps of the warm start and those of SFT that goes on for RL's compute."""
    given = []

    def own(splits: Splits, sft_steps: int = 0, option: int = 1) -> list[list[int]]:
        given.append((sft_steps, option))
        return random_order(splits)

    found = {"decoupled": decoupled, "own": own, "bound": partial(own, sft_steps=3, option=2), "random": random_order}
    compare(grid(config, ["grpo"]), 1, tmp_path, lambda c: (small, items()), found, jobs=1, quiet=True)
    more = read_config(tmp_path / "sft_more-start0").sft.sft_steps
    assert more > 4 and given == [(config.sft.sft_steps + more, 1), (3, 2)]
    for name in ("selector", "ranker-gold"):
        assert read_config(tmp_path / "baselines" / name).sft.sft_steps == config.sft.sft_steps + more


def test_baselines_are_functions_and_get_what_they_name(config, small, tmp_path) -> None:
    given = {}

    def own(splits: Splits, config: Config, folder: Path, option: str = "") -> list[Output]:
        given.update(config=config, folder=folder, option=option)
        return [Output((1, 0), (1,)) for _ in splits.test]

    def measured(baseline) -> Result:
        return run_baseline(baseline, small, items(), config, tmp_path / "x")

    assert measured(partial(own, option="/a/path:with colon")).metrics["slate_length"].unique().item() == 2
    assert given == {"config": config, "folder": tmp_path / "x", "option": "/a/path:with colon"}
    measured(partial(own, folder=tmp_path / "bound"))
    assert given["folder"] == tmp_path / "bound"  # what is bound already is not replaced
    for baseline in (random_order, partial(decoupled, slates="selector")):
        found = measured(baseline)
        assert found.metrics["ndcg@5"].shape == (12,) and found.seconds > 0
    assert (tmp_path / "x" / "ranker-selector").is_dir()
    with pytest.raises(KitError, match="slates 'some' is not known"):
        measured(partial(decoupled, slates="some"))


def test_baselines_by_name() -> None:
    assert list(baselines_by_name(["bm25", "random"])) == ["bm25", "random"]
    for name, message in (
        ("best", "baseline 'best' is not known; choose from random"), ("dense:model=x", "'dense:model=x' is not known"),
        ("zero_shot", r"needs a model, so it runs from Python: compare\(..., baselines=\{'zero_shot': partial\(zero_shot, "),
        ("cross_encoder", "needs a model, so it runs from Python"),
    ):  # fmt: skip
        with pytest.raises(KitError, match=message):
            baselines_by_name([name])


def test_the_shipped_warm_start_is_used_for_what_it_was_made_for(tmp_path) -> None:
    assert warm_start(Config(), Splits([], [], []), [], tmp_path).parts[-4:-1] == (
        "checkpoints",
        "lab-rec",
        "checkpoints",
    )


def test_what_can_be_refused_is_refused_before_anything_is_loaded(config, tmp_path) -> None:
    def load(c: Config) -> tuple[Splits, list[str]]:
        raise AssertionError("loaded")

    (tmp_path / "held/grpo-seed1").mkdir(parents=True)
    (tmp_path / "held/grpo-seed1/metrics.jsonl").write_text("")
    (tmp_path / "file").write_text("")
    for folder, every, said in (("held", 0, "already holds a run"), ("file", 0, "cannot be written"),
                                ("new", 99, "every 99 is above steps 4")):  # fmt: skip
        with pytest.raises(KitError, match=said):
            compare(grid(config, ["grpo"]), 2, tmp_path / folder, load, {}, jobs=1, quiet=True, every=every)
    assert not (tmp_path / "new").exists()


def test_a_comparison_is_not_resumed_with_other_queries_or_another_start(config, small, tmp_path) -> None:
    def again(splits: Splits = small, **options: object) -> None:
        compare(grid(config, ["grpo"]), 1, tmp_path, lambda c: (splits, items()), {}, jobs=1, quiet=True, **options)

    again(every=2)
    for splits, options, said in (
        (small, {}, "with --every 0, it began with 2"), (small._replace(test=small.test[:5]), {"every": 2}, "other queries"),
        (small._replace(train=small.train[:32]), {"every": 2}, "the task's data has changed"),
        (small, {"every": 2, "start": SHIPPED}, "another initial policy"),
    ):  # fmt: skip
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
        with pytest.raises(KitError, match=said):
            again(splits, resume=True, **options)
        assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    compare(grid(config, ["fgrpo", "grpo"]), 1, tmp_path, lambda c: (small, items()), {}, jobs=1, quiet=True,
            resume=True, every=2)  # a warm start made with the credit of another method first  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["", '{"2": [8, [0.5', "[" * 100_000, "[]", '{"2": 3}', '{"2": [1.5, [0.5]]}', '{"2": [8, ["x"]]}', '{"2": [8, [NaN]]}',
     '{"2": [8, [0.5]], "4": [9, []]}', '{"2": [8, [1e400]]}'],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_an_odd_curve_gets_one_line(tmp_path, text) -> None:
    (tmp_path / "curve.json").write_text(text)
    with pytest.raises(KitError, match=r"curve.json: ") as error:
        read_curve(tmp_path / "curve.json")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_metrics_that_lack_a_step_are_reported_before_figures_are_drawn(tmp_path) -> None:
    row = {"reward/slate": 0.5, "reward/rank": 0.5, "slate_length": 5.0}
    lines = [json.dumps({"step": n, **row}) + "\n" for n in (1, 2, 3)]
    for kept, whole in ((lines, True), (lines[1:], False), ([*lines[:2], '{"step": 3}\n'], False)):
        (tmp_path / "metrics.jsonl").write_text("".join(kept))
        if whole:
            assert len(logged(tmp_path, 3)) == 3
            continue
        with pytest.raises(KitError, match="steps or fields are missing"):
            logged(tmp_path, 3)


def test_values_that_look_alike_have_settings_of_their_own() -> None:
    found = grid(Config(), ["grpo"], {"lam": [0.1234567, 0.1234568]})
    assert list(found) == ["lam=0.1234567", "lam=0.1234568"]
    with pytest.raises(KitError, match="'lam=1' is there twice"):
        grid(Config(), ["grpo"], {"lam": [1.0, 1.0]})


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_reported() -> None:
    with pytest.raises(KitError, match="a worker process was killed"), workers(1) as pool:
        pool.submit(_die).result()
