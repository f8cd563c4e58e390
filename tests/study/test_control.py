"""The positive control: what it trains, what it says of its results, and the exit status of `compare --control`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fgrpo.cli import compare as cli
from fgrpo.cli.main import main
from fgrpo.config import Config
from fgrpo.runs.fields import with_fields
from fgrpo.study.compare import Results, seed_starts
from fgrpo.study.control import control_experiments, control_found
from tests.study.test_report import QUALITY, result, runs

HOLDS, FAILS = "The control holds", "The control FAILS: the instrument is broken"
UNDECIDED = "The control is undecided"
FEW = "Fewer than 3 seeds decide nothing."


def made(joint: float, own: float, seeds: int = 5, seed_sd: float = 0.001) -> Results:
    """Results by hand: gains of both methods over the warm start with filled lists."""
    return {"": {
        "sft_full": [result(QUALITY)], "sft": [result(QUALITY - 0.1)],
        "grpo": runs(joint, seeds, seed_sd, seed=1), "fgrpo": runs(own, seeds, seed_sd, seed=100),
    }}  # fmt: skip


def test_the_ranker_learns_alone_and_the_slate_is_paid_noise() -> None:
    """Whatever the run it is made of; all other options are that run's."""
    config = with_fields(Config(), steps=7, lr=0.1, sft_steps=3, pool=30, credit="item", learn="slate")
    found = control_experiments(config)
    assert list(found) == [""] and list(found[""]) == ["grpo", "fgrpo"]
    for name, own in found[""].items():
        rl = own.rl
        assert (rl.credit, rl.learn, rl.slate_noise, rl.rank_noise, rl.steps) == (name, "rank", 1.0, 0.0, 120)
        assert own.grammar.full and (own.pool, own.sft) == (30, config.sft)


@pytest.mark.parametrize(
    ("joint", "own", "seeds", "seed_sd", "last"),
    [
        (-0.08, 0.02, 3, 0.001, HOLDS), (-0.08, 0.02, 5, 0.001, HOLDS),
        (0.02, 0.02, 5, 0.001, FAILS),  # joint credit rises
        (-0.08, -0.02, 5, 0.001, FAILS),  # own credit falls
        (0.0, 0.0, 5, 0.001, FAILS),  # nothing, although it would have been seen
        (-0.02, 0.02, 5, 0.1, UNDECIDED),  # seeds vary too much to tell
        (0.0, 0.05, 5, 0.001, UNDECIDED),  # own credit is better, and joint credit not shown to fall
        (-0.08, 0.02, 2, 0.001, FEW), (-0.08, 0.02, 1, 0.001, FEW), (0.02, -0.02, 2, 0.001, FEW),
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_json", [False, True])
def test_it_says_whether_it_holds_and_exits_with_1_if_not(
    joint, own, seeds, seed_sd, last, as_json, monkeypatch, capsys, tmp_path
) -> None:
    results, starts = made(joint, own, seeds, seed_sd), seed_starts(seeds, 1)
    found = control_found(results, starts)
    assert found.sentences[-1].startswith(last) and found.holds == (last == HOLDS) and found.seeds == seeds
    asked = []

    def trained(args, experiments, baselines, sft_more):
        asked.append((experiments, baselines, sft_more))
        return results, starts, {"": [""] * len(QUALITY)}, Path("runs/x")

    monkeypatch.setattr(cli, "_compare", trained)
    status = main(["compare", "--control", "--sft-steps", "7", *(["--json"] if as_json else [])])
    out, err = capsys.readouterr()
    assert status == (0 if last == HOLDS else 1) and not err
    ((experiments, baselines, sft_more),) = asked
    assert baselines == {} and not sft_more and experiments[""]["fgrpo"].sft.sft_steps == 7
    if as_json:
        row = json.loads(out)
        assert row["holds"] == found.holds and row["seeds"] == seeds and row["task"] == "lab-rec"
        for name, gain in (("joint", joint), ("own", own)):
            low, mean, high = (row[name][key] for key in ("low", "gain", "high"))
            assert low <= mean <= high and abs(mean - gain) < 0.01 + 2 * seed_sd
    else:
        assert out == "\n".join([*found.sentences, "All files are in runs/x."]) + "\n"


def test_the_sentences_hold_the_numbers(monkeypatch) -> None:
    flat = {"": {name: [result(torch.full((50,), level))] * 4 for name, level in
                 (("sft_full", 0.5), ("sft", 0.4), ("grpo", 0.42), ("fgrpo", 0.515))}}  # fmt: skip
    assert control_found(flat, [0, 0, 1, 1]).sentences[:3] == [
        "grpo: NDCG@5 0.500 -> 0.420 (-0.080 [-0.080, -0.080]); it must fall.",
        "fgrpo: NDCG@5 0.500 -> 0.515 (+0.015 [+0.015, +0.015]); it must rise.",
        "fgrpo minus grpo: +0.095 [+0.095, +0.095]; it must be above 0.",
    ]


def test_warm_starts_and_groups_are_clusters() -> None:
    """A gain that differs between two warm starts is not one of four independent seeds; nor are queries of one user."""
    x = made(-0.08, 0.02, 4)
    for k, run in enumerate(x[""]["fgrpo"]):
        x[""]["fgrpo"][k] = replace(run, metrics={name: v + 0.01 * (-1) ** k for name, v in run.metrics.items()})
    one, two = control_found(x, [0, 0, 0, 0]), control_found(x, [0, 1, 0, 1])
    assert two.own.se > 1.2 * one.own.se and not two.holds
    users = control_found(made(-0.08, 0.02), [0] * 5, {"": ["a", "b"] * 100})
    assert users.own.query_df < control_found(made(-0.08, 0.02), [0] * 5).own.query_df
