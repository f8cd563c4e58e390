"""SFT that goes on beside RL: on RL's queries, for RL's compute, resumable."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fgrpo.config import Config
from fgrpo.data import Example, Splits
from fgrpo.lm.prefix import SharedPolicy
from fgrpo.runs.fields import with_fields
from fgrpo.runs.policies import save_policy
from fgrpo.runs.run import Run, read_config, read_metrics
from fgrpo.runs.sft import sft_stage
from fgrpo.study.compare import SFT_MORE, SFT_ONCE, Result, go_on_with_sft
from fgrpo.study.sft_more import continued, passes_per_query, queries_of, steps_of
from fgrpo.tasks.lab import lab_catalogue
from fgrpo.trainer import batch_of, fit, rl_stage

STRUCTURE = 5
"""tokens of an output that are no items: two opening and two closing tags, and the end"""


@pytest.fixture
def start(policy, tmp_path) -> Path:
    save_policy(policy, tmp_path / "start")
    return tmp_path / "start"


@pytest.fixture(params=["stream", "list"])
def splits(lab, request) -> Splits:
    """The same task with training examples without end, and with ten of them."""
    return Splits(lab.train if request.param == "stream" else lab.train[:10], lab.validation[:4], lab.test[:8])


def go_on(
    config, splits, start: Path, folder: Path, row: str = SFT_MORE, resume: bool = False, every: int = 0
) -> Result:
    return go_on_with_sft(config, splits, start, row, folder, None, True, resume, every)


def trained_on(config: Config, splits: Splits, start: Path, folder: Path, once: bool) -> list[Example]:
    """The queries of every step, in order."""
    seen: list[Example] = []
    policy, queries, run = continued(config, splits, start, folder, once)
    stage = sft_stage(run.config)

    def step(policy, optimizer, some, *rest):
        seen.extend(some)
        return stage.step(policy, optimizer, some, *rest)

    fit(policy, queries, run.config, run, replace(stage, step=step), quiet=True)
    return seen


@pytest.mark.parametrize(("group", "epochs"), [(8, 1), (4, 2)])
def test_passes_are_those_counted_by_hand(policy, lab, config, group, epochs) -> None:
    """RL: prompt and G completions of 10 + 5 items, once forward to sample, then 1 + 2 an epoch. SFT: 1 + 2."""
    config = with_fields(config, group=group, epochs=epochs)
    queries = queries_of(lab, config)
    prompt = sum(len(policy.labels.prompt_ids(e, config.grammar)) for e in queries) / len(queries)
    written = sum(2 * len(e.relevant) for e in queries) / len(queries) + STRUCTURE  # the relevant ones in both lists
    rl = (1 + 3 * epochs) * (prompt + group * (10 + 5 + STRUCTURE))
    passes = passes_per_query(policy, queries, config)
    assert passes == pytest.approx(rl / (3 * (prompt + written)), rel=1e-6) and passes > 1
    for kind in ("filled", "ranked"):  # whatever SFT writes later: the shortest lists, in its favour
        assert passes_per_query(policy, queries, with_fields(config, demonstrations=kind)) == passes
    assert steps_of(policy, queries, config) == math.ceil(passes * len(queries) / config.sft.sft_batch)
    assert steps_of(policy, queries, with_fields(config, sft_batch=5), once=True) == 4  # of 16 queries


def test_queries_are_those_of_every_batch_of_rl(config, splits, tmp_path) -> None:
    """Recorded from an RL run with the same seed."""
    for seed in (0, 3):
        seen: list[Example] = []
        own, stage = replace(config, seed=seed), rl_stage(config)

        def step(policy, optimizer, queries, *rest, seen=seen, stage=stage):
            seen.extend(queries)
            return stage.step(policy, optimizer, queries, *rest)

        items, run = [film.title for film in lab_catalogue()], Run(tmp_path / f"{seed}", own)
        fit(SharedPolicy.tiny(items, own.model), splits.train, own, run, replace(stage, step=step), quiet=True)
        assert queries_of(splits, own) == seen and len(seen) == 16
    assert queries_of(splits, own) != queries_of(splits, config)


def test_once_shows_every_query_once_and_more_shows_each_as_often_as_another(config, splits, start, tmp_path) -> None:
    ids = sorted(e.id for e in queries_of(splits, config))
    once = trained_on(config, splits, start, tmp_path / "once", True)
    assert sorted(e.id for e in once) == ids and [e.id for e in once] != ids  # in an order of its own
    more = [e.id for e in trained_on(config, splits, start, tmp_path / "more", False)]
    passes, rest = divmod(len(more), len(ids))
    assert passes >= 3 and sorted(more[: passes * len(ids)]) == sorted(ids * passes)
    assert len(more[passes * len(ids) :]) == rest < len(ids)
    assert read_config(tmp_path / "more").sft.sft_steps * config.sft.sft_batch == len(more)


@pytest.mark.parametrize("row", [SFT_MORE, SFT_ONCE])
def test_it_goes_on_from_the_warm_start_and_is_resumed_bit_identical(
    config, lab, start, tmp_path, row, monkeypatch
) -> None:
    splits = Splits(lab.train, lab.validation[:4], lab.test[:8])
    whole = go_on(config, splits, start, tmp_path / "whole", row)
    steps = read_config(tmp_path / "whole").sft.sft_steps
    first = load_file(tmp_path / "whole/checkpoints/step-000000/model.safetensors")
    assert all(torch.equal(t, first[name]) for name, t in load_file(start / "model.safetensors").items())
    logged = Run.log
    for cut in range(1, steps + 1):
        monkeypatch.setattr(
            Run, "log", lambda self, line, cut=cut: logged(self, line) if line["step"] < cut else _stop()
        )
        with pytest.raises(KeyboardInterrupt):
            go_on(config, splits, start, tmp_path / f"{cut}", row)
        monkeypatch.setattr(Run, "log", logged)
        found = go_on(config, splits, start, tmp_path / f"{cut}", row, resume=True)
        assert all(torch.equal(found.metrics[name], values) for name, values in whole.metrics.items())
        assert found.tokens == whole.tokens > 0 and len(read_metrics(tmp_path / f"{cut}")) == steps
        a, b = (tmp_path / name / f"checkpoints/step-{steps:06d}/model.safetensors" for name in ("whole", f"{cut}"))
        assert a.read_bytes() == b.read_bytes()


def _stop() -> None:
    raise KeyboardInterrupt


def test_it_is_measured_with_full_lists_and_on_the_way(config, lab, start, tmp_path) -> None:
    """As often as RL, or after each of its own steps where there are fewer."""
    splits = Splits(lab.train, lab.validation[:4], lab.test[:8])
    for batch, points in ((8, 2), (4096, 1)):
        own = with_fields(config, sft_batch=batch)
        found = go_on(own, splits, start, tmp_path / f"{batch}", every=2)
        assert set(found.metrics["slate_length"].tolist()) == {10.0} and len(found.curve) == points
        tokens, ndcg = found.curve[-1]
        assert tokens == found.tokens and torch.equal(ndcg, found.metrics["ndcg@5"].double())
    once = go_on(config, splits, start, tmp_path / "once", SFT_ONCE, every=2)
    assert once.curve == [] and set(once.metrics["slate_length"].tolist()) == {10.0}


def test_another_seed_goes_on_on_other_queries(config, lab) -> None:
    own = [{e.id for e in queries_of(lab, replace(config, seed=seed))} for seed in range(3)]
    assert all(a.isdisjoint(b) for a, b in ((own[0], own[1]), (own[0], own[2]), (own[1], own[2])))
    sft = {e.id for n in range(9) for e in batch_of(lab.train, 64, n, 0, "sft")}
    assert sft.isdisjoint(own[0])  # the warm start has seen none of them
