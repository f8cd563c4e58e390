"""Several processes train like one: same rollouts, same loss curve, one of them writes."""

import itertools
import json
import os
import random
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from fgrpo.cli.main import main
from fgrpo.config import Config, KitError
from fgrpo.data import Example
from fgrpo.lm.prefix import SharedPolicy
from fgrpo.rollout import Rollouts, rollout
from fgrpo.runs.fields import config_with
from fgrpo.runs.run import Run, read_metrics
from fgrpo.runs.sft import sft_stage
from fgrpo.scale import processes as distributed
from fgrpo.scale.processes import Processes, launched
from fgrpo.tasks.jsonl import write_jsonl
from fgrpo.tasks.lab import lab_catalogue
from fgrpo.trainer import ALONE, Stopped, Team, fit, sampling_of
from tests.families import examples, policy_of, save_model
from tests.processes import launch

SMALL = {
    "queries": 4,
    "group": 4,
    "steps": 3,
    "hidden_size": 32,
    "layers": 1,
    "heads": 2,
    "sft_steps": 3,
    "sft_batch": 8,
}
CASES = {
    "fgrpo": {"steps": 10, "queries": 8},
    "noise": {"credit": "gdpo", "slate_noise": 0.3, "queries": 8, "micro": 2, "epochs": 2, "decoding": "free"},
    "nested": {"credit": "nested", "rankings": 2, "beta": 0.1},
    "sft": {"micro": 2},
    "lora": {"credit": "item", "steps": 2, "slate_size": 6, "rank_size": 3, "ratio": "item"},
}
SAMPLED = {
    "constrained": {},
    "free": {"decoding": "free"},
    "nested": {"credit": "nested", "rankings": 2},
    "lora": {"slate_size": 6, "rank_size": 3},
}
CLI = ["train", "--json", "--queries", "4", "--group", "4", "--hidden-size", "32", "--layers", "1", "--heads", "2",
       "--init", "base", "--save-every", "2"]  # fmt: skip


@cache
def queries() -> list[Example]:
    """Queries over the lab's catalogue, some with a smaller pool."""
    rng, titles, made = random.Random(0), [film.title for film in lab_catalogue()], []
    for n in range(60):
        films, pool = rng.sample(titles, 28), 20 if n % 3 else 14
        made.append(Example(f"q{n}", "", tuple(films[20:]), tuple(films[:pool]), frozenset(rng.sample(range(pool), 3))))
    return made


def train(case: str, folder: Path, team: Team, model: Path, stop: int = 0) -> Run:
    """One run of a case; with `stop`, it is stopped after that many steps and resumed."""
    options = {**SMALL, **CASES[case]}
    options["micro"] = options.get("micro", 0) // team.size  # `micro` counts queries of each process
    config = config_with(**options)
    for end in (stop, 0) if stop else (0,):
        run, began = Run(folder / case, config, resume=end < stop, save_every=2, writes=team.main), itertools.count()
        new = (
            policy_of(model) if case == "lora" else SharedPolicy.tiny([f.title for f in lab_catalogue()], config.model)
        )
        data, stage = examples(8) if case == "lora" else queries(), sft_stage(config) if case == "sft" else None
        with suppress(Stopped):
            fit(
                new, data, config, run, stage, True, team=team, stop=lambda end=end, n=began: end > 0 and next(n) == end
            )
    return run


def sampled(case: str, team: Team, model: Path, micro: int = 0, order: slice = slice(None)) -> tuple[Rollouts, list]:
    """Rollouts of this process's share of four queries, and the ids of those queries."""
    config = config_with(**{**SMALL, **SAMPLED[case], "micro": micro})
    policy = policy_of(model) if case == "lora" else SharedPolicy.tiny([f.title for f in lab_catalogue()], config.model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # fresh weights are small: every choice is nearly as likely as the others
        for p in policy.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    some = team.share((examples(4) if case == "lora" else queries()[:4])[order])
    rl, sampling = config.rl, sampling_of(config)
    found = rollout(policy, some, sampling, rl.group, config.seed, 5, rankings=rl.rankings, micro=micro)
    return found, [e.id for e in some]


def written(found: tuple[Rollouts, list]) -> dict[str, list]:
    """By query: token ids and parsed output of each of its rollouts, as JSON gives them back."""
    rollouts, ids = found
    tokens = [row[m].tolist() for row, m in zip(rollouts.completions, rollouts.mask, strict=True)]
    rows = [[row, *map(list, o[:2]), o.error] for row, o in zip(tokens, rollouts.outputs, strict=True)]
    return {name: rows[n * rollouts.group : (n + 1) * rollouts.group] for n, name in enumerate(ids)}


def curve(run: Run) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(run.folder)]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of every case on one process and on two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    model = two / "model"
    save_model("qwen3", model)
    write_jsonl(model / "few.jsonl", queries()[1:40:3])
    printed = launch("tests.scale.test_distributed", two, model)
    assert (
        json.loads(printed[0])["queries"] == 1 and printed[1] == ""
    )  # of the command line; the other process is silent
    for case in CASES:
        train(case, one, ALONE, model)
    return one, two


@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_curve_of_one(both: tuple[Path, Path], case: str) -> None:
    a, b = (curve(Run(folder / case, Config(), writes=False)) for folder in both)
    assert len(a) == len(b) >= 2
    for x, y in zip(a, b, strict=True):
        if case == "noise":  # with --micro, means of a part's tokens are averaged over the parts, whatever these hold
            x, y = (
                {k: v for k, v in row.items() if not k.startswith(("entropy", "clipfrac", "approx"))} for row in (x, y)
            )
        assert y == pytest.approx(x, abs=1e-4), x["step"]
    assert len({row["loss"] for row in a}) == len(a)


def test_one_process_writes_and_what_it_wrote_is_whole(both: tuple[Path, Path]) -> None:
    for case in CASES:
        one, two = (folder / case for folder in both)
        assert sorted(p.name for p in one.rglob("*")) == sorted(p.name for p in two.rglob("*"))
        weights = "adapter_model.safetensors" if case == "lora" else "model.safetensors"
        a, b = (load_file(Run(x, Config(), writes=False).latest() / weights) for x in (one, two))
        assert all(torch.allclose(a[k], b[k], atol=1e-3) for k in a)


def test_a_run_on_two_processes_resumes_to_the_same_bits(both: tuple[Path, Path]) -> None:
    whole, cut = (Run(both[1] / name, Config(), writes=False) for name in ("fgrpo", "cut/fgrpo"))
    assert curve(whole) == curve(cut)
    a, b = (load_file(run.latest() / "model.safetensors") for run in (whole, cut))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_command_line_trains_on_several_processes(both: tuple[Path, Path]) -> None:
    rows = read_metrics(both[1] / "cli")
    assert [row["step"] for row in rows] == [1, 2]


@pytest.mark.parametrize("case", SAMPLED)
def test_rollouts_are_the_same_on_two_processes_in_parts_and_in_any_order(both: tuple[Path, Path], case: str) -> None:
    model = both[1] / "model"
    whole = written(sampled(case, ALONE, model))
    assert len(whole) == 4 and len({str(row) for rows in whole.values() for row in rows}) > 8
    assert (case == "free") == any(row[3] for rows in whole.values() for row in rows)  # the grammar makes no error
    two = [json.loads((both[1] / f"rollouts-{rank}.json").read_text())[case] for rank in range(2)]
    assert [len(part) for part in two] == [2, 2] and two[0] | two[1] == whole
    for micro in (1, 2):
        assert written(sampled(case, ALONE, model, micro)) == whole
    assert written(sampled(case, ALONE, model, order=slice(None, None, -1))) == whole
    for n, name in enumerate(whole):  # each query without the others
        assert written(sampled(case, ALONE, model, order=slice(n, n + 1))) == {name: whole[name]}


def part_of(size: int, rank: int) -> Processes:
    """One of several processes that are not there."""
    return Processes(SimpleNamespace(num_processes=size, process_index=rank))  # type: ignore[arg-type]


def test_shares_are_whole_queries_and_cover_the_batch_once() -> None:
    for size, count in ((1, 3), (2, 8), (3, 12), (4, 20)):
        shares = [part_of(size, rank).share(queries()[:count]) for rank in range(size)]
        assert [e for share in shares for e in share] == queries()[:count]
        assert {len(share) for share in shares} == {count // size}


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "choose bf16"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fgrpo.scale.trl"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "fgrpo.scale.trl"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "fgrpo.scale.trl"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "--micro"),
    ],
)
def test_launcher_options_that_the_trainer_does_not_support_are_refused(
    environ: dict, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(KitError, match=reason):
        launched("cpu")


def test_one_process_is_alone_and_other_commands_stay_on_one(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert launched("cpu") is ALONE and not hasattr(distributed, "accelerate")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(["evaluate", "--checkpoint", "x"]) == 2
    assert "only train" in capsys.readouterr().err


@pytest.mark.parametrize("sft", [False, True])
def test_uneven_shares_are_refused_before_anything_is_written(tmp_path: Path, sft: bool) -> None:
    config = config_with(**SMALL)
    run = Run(tmp_path / "a", config)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KitError, match=f"{8 if sft else 4} queries a step cannot be shared evenly by 3 processes"):
        fit(
            SharedPolicy.tiny(["a"], config.model),
            queries(),
            config,
            run,
            sft_stage(config) if sft else None,
            quiet=True,
            team=part_of(3, 0),
        )
    assert sorted(tmp_path.rglob("*")) == before


def test_bfloat16_from_the_launcher_is_the_precision_of_the_model(both: tuple[Path, Path]) -> None:
    run = Run(both[1] / "bf16/fgrpo", Config(), writes=False)
    a, b = curve(Run(both[1] / "fgrpo", Config(), writes=False)), curve(run)
    assert a[0]["grad_norm"] == pytest.approx(b[0]["grad_norm"], rel=0.1)
    assert abs(a[0]["grad_norm"] - b[0]["grad_norm"]) > 1e-5 * a[0]["grad_norm"]
    assert {t.dtype for t in load_file(run.latest() / "model.safetensors").values()} == {torch.float32}


def worker(folder: Path, model: Path) -> None:
    """What each of two processes does."""
    torch.set_num_threads(1)
    team = launched("cpu")
    found = {case: written(sampled(case, team, model)) for case in SAMPLED}
    (folder / f"rollouts-{team.rank}.json").write_text(json.dumps(found))
    for case in CASES:
        train(case, folder, team, model)
    train("fgrpo", folder / "cut", team, model, stop=3)
    AcceleratorState._reset_state()  # as if the launcher had been asked for another precision
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    train("fgrpo", folder / "bf16", launched("cpu"), model)
    assert main([*CLI, "--task", str(model / "few.jsonl"), "--out", str(folder / "cli"), "--steps", "2"]) == 0


if __name__ == "__main__":
    from accelerate.state import AcceleratorState

    worker(Path(sys.argv[1]), Path(sys.argv[2]))
