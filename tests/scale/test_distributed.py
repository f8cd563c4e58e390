"""Several processes train as one does: same rollouts, same loss curve, one of them writes."""

import json
import os
import random
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fgrpo.cli.main import main
from fgrpo.config import Config, KitError
from fgrpo.data import Example
from fgrpo.policy import Policy
from fgrpo.runs.run import Run, read_metrics
from fgrpo.runs.sft import sft_stage
from fgrpo.scale import processes as distributed
from fgrpo.scale.processes import launched
from fgrpo.tasks.jsonl import write_jsonl
from fgrpo.tasks.lab import lab_catalogue
from fgrpo.trainer import ALONE, Team, fit
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
    """One run of a case; with `stop`, resumed after so many steps."""
    options = {**SMALL, **CASES[case]}
    if team.size > 1:  # `micro` counts queries of each process
        options["micro"] = options.get("micro", 0) // team.size
    config = Config.from_flat(**options)
    for steps in [stop, config.rl.steps] if stop else [config.rl.steps]:
        some = replace(config, rl=replace(config.rl, steps=steps))
        run = Run(folder / case, some, resume=steps > stop > 0, save_every=2, writes=team.main)
        new = policy_of(model) if case == "lora" else Policy.tiny([f.title for f in lab_catalogue()], config.model)
        data = examples(8) if case == "lora" else queries()
        fit(new, data, some, run, sft_stage(config) if case == "sft" else None, quiet=True, team=team)
    return run


def curve(run: Run) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(run.folder)]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of every case on one process and on two."""
    one, two, model = (tmp_path_factory.mktemp(name) for name in ("one", "two", "model"))
    save_model("qwen3", model)
    write_jsonl(model / "few.jsonl", queries()[1:40:3])
    said = launch("tests.scale.test_distributed", two, model)
    assert json.loads(said[0])["queries"] == 1 and said[1] == ""
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


def test_shares_are_whole_queries_and_cover_the_batch_once() -> None:
    for size, queries, micro in ((2, 8, 0), (2, 8, 2), (2, 8, 1), (3, 12, 3), (4, 20, 2)):
        taken: list[int] = []
        for rank in range(size):
            team = Team()
            team.size, team.rank = size, rank
            parts = team.parts(queries, micro)
            assert all(p.stop - p.start <= (micro or queries) for p in parts)
            taken += [i for p in parts for i in range(queries)[p]]
        assert sorted(taken) == list(range(queries))


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "choose bf16"),
        ({"ACCELERATE_USE_FSDP": "true"}, "fgrpo.scale.trl"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "fgrpo.scale.trl"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "--micro"),
    ],
)
def test_what_the_trainer_does_not_do_is_refused(environ: dict, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_uneven_shares_are_refused(tmp_path: Path) -> None:
    team = Team()
    team.size = 3
    with pytest.raises(KitError, match="4 queries a step cannot be shared evenly by 3 processes"):
        config = Config.from_flat(**SMALL)
        fit(Policy.tiny(["a"], config.model), queries(), config, Run(tmp_path / "a", config), quiet=True, team=team)


def test_bfloat16_from_the_launcher_is_the_precision_of_the_model(both: tuple[Path, Path]) -> None:
    run = Run(both[1] / "bf16/fgrpo", Config(), writes=False)
    a, b = curve(Run(both[1] / "fgrpo", Config(), writes=False)), curve(run)
    assert a[0]["grad_norm"] == pytest.approx(b[0]["grad_norm"], rel=0.1)
    assert abs(a[0]["grad_norm"] - b[0]["grad_norm"]) > 1e-5 * a[0]["grad_norm"]
    assert {t.dtype for t in load_file(run.latest() / "model.safetensors").values()} == {torch.float32}


def worker(folder: Path, model: Path) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    team = launched("cpu")
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
