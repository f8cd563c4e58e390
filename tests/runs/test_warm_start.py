"""Warm starts: the shipped one, independent ones, and what a stream of examples means to a run."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fgrpo.baselines import sequential
from fgrpo.cli.main import main
from fgrpo.config import Config, KitError
from fgrpo.data import Example, Splits
from fgrpo.runs.fields import check_pools, with_fields
from fgrpo.runs.origin import digest_of
from fgrpo.runs.run import Run, read_config, read_metrics
from fgrpo.runs.warm_start import check_warm_start, fits_shipped, made_by, warm_start
from fgrpo.study.compare import compare
from fgrpo.study.experiments import grid
from fgrpo.tasks.lab import Viewers, lab_catalogue
from fgrpo.trainer import batch_of

ITEMS = [film.title for film in lab_catalogue()]


@pytest.fixture
def small(lab) -> Splits:
    """Training examples without end, few to measure on."""
    return Splits(lab.train, lab.validation[:4], lab.test[:6])


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_warm_starts_of_other_seeds_are_independent(config, small, tmp_path) -> None:
    """Other initial weights and other queries; the same seed gives the same bits, whatever the seed of the run."""
    made = {seed: warm_start(config, small, ITEMS, tmp_path / f"{seed}", True, seed=seed) for seed in range(3)}
    again = warm_start(replace(config, seed=7), small, ITEMS, tmp_path / "again", True, seed=1)
    assert same(weights(made[1]), weights(again))
    assert [read_config(tmp_path / f"{seed}").seed for seed in made] == [0, 1, 2]
    for step in ("step-000000", "step-000004"):
        found = [weights(tmp_path / f"{seed}" / "checkpoints" / step)["model.embed_tokens.weight"] for seed in made]
        correlations = torch.corrcoef(torch.stack([x.flatten() for x in found]))
        assert correlations.triu(1).abs().max() < 0.1
    shown = [{e.history for n in range(4) for e in batch_of(small.train, 8, n, seed, "sft")} for seed in made]
    assert len(set.union(*shown)) == 3 * 4 * 8


@pytest.mark.parametrize("seed", [0, 2])
def test_a_warm_start_is_resumed_bit_identical_and_not_as_that_of_another_seed(
    config, small, tmp_path, seed, monkeypatch
) -> None:
    whole, logged = warm_start(config, small, ITEMS, tmp_path / "whole", True, seed=seed), Run.log
    for cut in (1, 3):
        folder = tmp_path / f"{cut}"
        monkeypatch.setattr(Run, "log", lambda self, row, cut=cut: logged(self, row) if row["step"] < cut else _stop())
        with pytest.raises(KeyboardInterrupt):
            warm_start(config, small, ITEMS, folder, True, seed=seed)
        monkeypatch.setattr(Run, "log", logged)
        check_warm_start(folder, config, True, seed)
        with pytest.raises(KitError, match=rf"cannot resume with seed = {seed + 1}, it began with {seed}"):
            check_warm_start(folder, config, True, seed + 1)
        with pytest.raises(KitError, match="already holds a run"):
            check_warm_start(folder, config, False, seed)
        found = warm_start(config, small, ITEMS, folder, True, resume=True, seed=seed)
        assert same(weights(whole), weights(found)) and len(read_metrics(folder)) == 4


def _stop() -> None:
    raise KeyboardInterrupt


def test_filling_the_lists_needs_no_warm_start_of_its_own(config, small, tmp_path) -> None:
    """`full` says nothing about demonstrations, which may be short: with it and without it is the same SFT."""
    full = with_fields(config, full=True)
    assert made_by(full) == made_by(config) != made_by(with_fields(config, slate_size=9))
    a, b = (warm_start(c, small, ITEMS, tmp_path / name, True) for name, c in (("a", config), ("b", full)))
    assert same(weights(a), weights(b)) and not read_config(tmp_path / "b").grammar.full
    assert fits_shipped(Config()) and fits_shipped(with_fields(Config(), full=True, steps=9, lr=0.5))
    assert not fits_shipped(Config(), seed=1)
    fields = {"taste": 2.0, "hard": 0.0, "pool": 30, "demonstrations": "filled", "sft_steps": 999}
    likelihood = {"temperature": 0.7, "decoding": "free"}  # of a demonstration
    for name, value in (fields | likelihood).items():
        own = with_fields(Config(), **{name: value})
        assert not fits_shipped(own) and made_by(own) != made_by(Config()), name


def test_runs_of_a_comparison_take_turns_with_the_warm_starts(config, small, tmp_path) -> None:
    """Seed s starts from warm start s mod 2, SFT goes on from each; another number of them is another comparison."""

    def again(seeds: int = 3, **options):
        experiments = grid(config, ["grpo"])
        return compare(experiments, seeds, tmp_path, lambda c: (small, ITEMS), {}, jobs=1, quiet=True, **options)

    found = again(starts=2)[""]
    assert {row: len(results) for row, results in found.items()} == {
        "sft_full": 2, "sft_once": 2, "sft_more": 2, "sft": 2, "grpo": 3
    }  # fmt: skip
    made = [weights(tmp_path / name / "checkpoints/step-000004") for name in ("warm-start", "warm-start-seed1")]
    assert not same(*made)
    for folder, start in (("grpo-seed0", 0), ("grpo-seed1", 1), ("grpo-seed2", 0), ("sft_more-start1", 1),
                          ("sft_once-start0", 0)):  # fmt: skip
        assert same(weights(tmp_path / folder / "checkpoints/step-000000"), made[start]), folder
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(
        KitError, match=r"grpo-seed2: cannot resume from warm start 2, it began from 0: give the --starts"
    ):
        again(starts=3, resume=True)
    with pytest.raises(KitError, match=r"grpo-seed1: cannot resume from warm start 0, it began from 1"):
        again(starts=1, resume=True)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    resumed = again(seeds=4, starts=2, resume=True)[""]  # one more seed: the others are as they were
    assert len(resumed["grpo"]) == 4 and all(
        torch.equal(a.metrics["ndcg@5"], b.metrics["ndcg@5"])
        for a, b in zip(found["grpo"], resumed["grpo"], strict=False)
    )
    assert list(again(seeds=4, starts=2, resume=True, sft_more=False)[""]) == ["sft_full", "sft", "grpo"]


def test_sft_that_went_on_before_is_not_overwritten(config, small, tmp_path) -> None:
    """It is found before anything is loaded or trained."""
    (tmp_path / "sft_more-start1").mkdir()
    (tmp_path / "sft_more-start1/metrics.jsonl").write_text("")

    def load(config: Config) -> tuple[Splits, list[str]]:
        raise AssertionError("loaded")

    with pytest.raises(KitError, match="sft_more-start1 already holds a run"):
        compare(grid(config, ["grpo"]), 2, tmp_path, load, {}, jobs=1, quiet=True, starts=2)


def test_longer_runs_need_other_sft_beside_them(config, small, tmp_path) -> None:
    """With a constant learning rate RL may go on, but SFT that went on beside it cannot: said before anything is done."""

    def again(steps: int, **options):
        experiments = grid(with_fields(config, lr_decay="none", steps=steps), ["grpo"])
        return compare(experiments, 1, tmp_path, lambda c: (small, ITEMS), {}, jobs=1, quiet=True, **options)[""]

    again(4)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(KitError, match=r"sft_once-start0: SFT went on here beside RL of 4 steps, not 6.*--no-sft-more"):
        again(6, resume=True)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert list(again(6, resume=True, sft_more=False)) == ["sft_full", "sft", "grpo"]
    assert len(read_metrics(tmp_path / "grpo-seed0")) == 6


@dataclass(frozen=True)
class Counted(Viewers):
    """Viewers that count how many were made."""

    made: Counter = None  # type: ignore[assignment]

    def take(self, first: int, count: int, seed: int = 0, use: str = "train") -> list[Example]:
        if self.made is not None:
            self.made["viewers"] += count
        return super().take(first, count, seed, use)


def test_digests_and_pools_of_a_stream_are_told_by_its_options(lab) -> None:
    changes = ({"pool": 30}, {"one_relevant": True}, {"taste": 1.5}, {"hard": 0.25})
    streams = [Viewers(), *(Viewers(**change) for change in changes)]
    assert len({digest_of(stream) for stream in streams}) == len(streams) and digest_of(Viewers()) == digest_of(
        lab.train
    )
    assert digest_of(lab.train) != digest_of(lab.train[:64]) != digest_of(lab.train[:65])
    counter: Counter = Counter()
    digest_of(Counted(made=counter)), check_pools(Counted(made=counter), Config())
    assert 0 < counter["viewers"] < 100  # of a stream without end only the first are looked at
    with pytest.raises(KitError, match="pool of 5 candidates is smaller than slate_size 10"):
        check_pools(Viewers(pool=5), Config())
    check_pools(Viewers(pool=5), with_fields(Config(), slate_size=5))


SMALL = "--demonstrations ranked --json --hidden-size 32 --layers 1 --heads 2 --sft-steps 3 --sft-batch 8"
RL = "--steps 2 --queries 4 --group 4"


@pytest.mark.parametrize(
    ("command", "trained", "written"),
    [
        ("train --sft", 1, ["."]), (f"train {RL}", 1, ["warm-start"]),
        (f"compare --seeds 2 --starts 2 --jobs 1 --limit 8 --credits grpo --baselines random {RL}", 1,
         ["warm-start", "warm-start-seed1", "sft_once-start0", "sft_more-start1"]),
        (f"compare --seeds 1 --jobs 1 --limit 8 --credits grpo --baselines decoupled --no-sft-more {RL}", 2,
         ["warm-start"]),  # once more for the baseline, which knows the task alone
    ],
)  # fmt: skip
def test_ranked_demonstrations_train_their_ranker_once(
    tmp_path, monkeypatch, capsys, command, trained, written
) -> None:
    """However many warm starts and continuations learn from it; its order fills both lists."""
    monkeypatch.chdir(tmp_path)
    calls = []

    def gru4rec_ranker(splits: Splits, seed: int = 0):
        calls.append(seed)
        return lambda examples: [list(range(len(e.candidates)))[::-1] for e in examples]

    monkeypatch.setattr(sequential, "gru4rec_ranker", gru4rec_ranker)
    assert main([*command.split(), "--out", "a", *SMALL.split()]) == 0
    assert len(calls) == trained
    for name in written:
        assert {row["tokens"] for row in read_metrics(Path("a") / name)} == {8 * (10 + 5 + 5)}, name
