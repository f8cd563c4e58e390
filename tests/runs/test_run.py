"""A run's folder: it is not overwritten, and damage in a checkpoint is one clear line."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fgrpo.cli.main import main
from fgrpo.config import KitError
from fgrpo.runs import run as run_module
from fgrpo.runs.fields import check_pools
from fgrpo.runs.origin import digest_of, digest_of_policy
from fgrpo.runs.policies import checkpoints, policy_folder
from fgrpo.runs.run import Run, read_config, read_metrics
from fgrpo.runs.sft import sft_stage
from fgrpo.runs.warm_start import made_by
from fgrpo.trainer import fit
from tests.core.test_trainer import fresh, run_to_end

ROOT = Path(__file__).parents[2]


def test_a_run_folder_is_not_overwritten_and_resume_checks_the_options(config, lab, tmp_path) -> None:
    run_to_end(config, lab, tmp_path / "a")
    with pytest.raises(KitError, match="already holds a run"):
        run_to_end(config, lab, tmp_path / "a")
    with pytest.raises(KitError, match=r"rl.lam = 2.0, it began with 1.0"):
        Run(tmp_path / "a", replace(config, rl=replace(config.rl, lam=2.0)), resume=True)
    with pytest.raises(KitError, match=r"rl.steps = 6, it began with 4 \(its learning rates fall to zero over them\)"):
        Run(tmp_path / "a", replace(config, rl=replace(config.rl, steps=6)), resume=True)
    config = replace(config, rl=replace(config.rl, lr_decay="none"))
    run_to_end(config, lab, tmp_path / "b")
    longer = run_to_end(replace(config, rl=replace(config.rl, steps=6)), lab, tmp_path / "b", resume=True)
    assert len(read_metrics(longer.folder)) == 6
    assert json.loads((longer.latest() / "trainer.json").read_text()) == {"step": 6, "position": 24, "shared": True}


@pytest.mark.parametrize(
    "file", ["model.safetensors", "trainer.safetensors", "items.json", "tokenizer.json", "config.json"]
)
def test_a_truncated_checkpoint_gets_one_clear_line(config, lab, tmp_path, file) -> None:
    run = run_to_end(config, lab, tmp_path / "a")
    path = run.latest() / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(KitError, match="damaged") as error:
        run_to_end(config, lab, tmp_path / "a", resume=True)
    assert "\n" not in str(error.value)


def test_another_process_that_writes_is_refused_and_a_dead_one_is_not(config, lab, tmp_path, capsys) -> None:
    """The lock is the system's, so that it ends with its process, however that ends."""
    script = (
        "import sys, time; from pathlib import Path; from fgrpo.runs.lock import lock\n"
        "held = lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "a")], stdout=subprocess.PIPE, cwd=ROOT)
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    for _ in range(2):  # who was refused leaves no trace
        with pytest.raises(
            KitError, match=f"a: process {other.pid} is writing to it; wait for its end, or name another"
        ):
            Run(tmp_path / "a", config)
    assert [p.name for p in (tmp_path / "a").iterdir()] == [".lock"]
    (tmp_path / "a/metrics.jsonl").write_text("")
    assert main(["trace", "--checkpoint", "no matter", "--out", str(tmp_path / "a/trace.jsonl")]) == 2
    assert f"process {other.pid} is writing to it" in capsys.readouterr().err
    (tmp_path / "a/metrics.jsonl").unlink()
    other.kill()
    other.wait()
    run = run_to_end(config, lab, tmp_path / "a")
    assert Run(tmp_path / "a", config, resume=True).lock is run.lock  # one process may open a run twice
    Run(tmp_path / "a", config, writes=False)  # and whoever only reads needs no lock


def test_a_run_is_resumed_with_what_it_began_with(config, lab, tmp_path) -> None:
    origin = {"stage": "rl", "init": "1f", "train": digest_of(lab.train)}
    run = Run(tmp_path / "a", config, origin=origin)
    fit(fresh(config), lab.train, config, run, quiet=True)
    for change, said in (({"stage": "sft"}, "as sft, it began as rl"), ({"init": "2f"}, "from another initial policy"),
                         ({"train": digest_of(lab.train[64:128])}, "the task's data has changed")):  # fmt: skip
        with pytest.raises(KitError, match=f"cannot resume .*{said}"):
            Run(tmp_path / "a", config, resume=True, origin={**origin, **change})
    Run(tmp_path / "a", config, resume=True, origin=origin)
    Run(tmp_path / "a", config, resume=True, origin={"every": 0})  # a part that an older kit did not record
    constant = replace(config, rl=replace(config.rl, lr_decay="none"))
    run = Run(tmp_path / "b", constant, origin=origin)
    fit(fresh(config), lab.train, constant, run, quiet=True)
    with pytest.raises(KitError, match="4 steps are done, more than --steps 2"):
        Run(tmp_path / "b", replace(constant, rl=replace(constant.rl, steps=2)), resume=True, origin=origin)


def test_a_warm_start_depends_on_two_options_of_rl_alone(config, lab, tmp_path) -> None:
    rl, origin = config.rl, {"stage": "sft"}
    fit(fresh(config), lab.train, config, Run(tmp_path / "a", config, origin=origin), sft_stage(config), quiet=True)
    other = replace(rl, credit="grpo", lam=2.0, group=16, lr=1e-3, steps=1)
    Run(tmp_path / "a", replace(config, rl=other), resume=True, origin=origin)
    for change in ({"temperature": 0.5}, {"decoding": "free"}):
        changed = replace(config, rl=replace(rl, **change))
        assert made_by(changed) != made_by(config) == made_by(replace(config, rl=other))
        with pytest.raises(KitError, match=f"cannot resume with rl.{next(iter(change))}"):
            Run(tmp_path / "a", changed, resume=True, origin=origin)


@pytest.mark.parametrize(
    ("lost", "said"),
    [("checkpoints/step-000004/trainer.*", "the policy alone was kept"), ("checkpoints", "no checkpoint to go on from"),
     ("checkpoints/step-000000", "the reference of the KL penalty is missing")],
)  # fmt: skip
def test_a_run_that_lacks_what_resuming_needs_is_not_begun_anew(config, lab, tmp_path, lost, said) -> None:
    config = replace(config, rl=replace(config.rl, beta=0.1))
    run = run_to_end(config, lab, tmp_path / "a")
    (run.latest() / "SHA256SUMS").unlink()
    for path in run.folder.glob(lost):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(KitError, match=said):
        run_to_end(config, lab, tmp_path / "a", resume=True)
    assert len(read_metrics(run.folder)) == 4


def test_digests_go_by_content(lab, tmp_path) -> None:
    a, b = lab.train[:2]
    changes = [replace(a, query="x"), replace(a, relevant=frozenset({0})), replace(a, history=a.history[:-1])]
    assert len({digest_of([x, b]) for x in (a, *changes)}) == 4 and digest_of([a, b]) != digest_of([b, a])
    assert digest_of([a]) == digest_of([replace(a)]) and digest_of([replace(a, query="\ud800")])
    assert (digest_of_policy(None), digest_of_policy("base")) == ("", "base")
    for name, content in (("here", b"w"), ("moved", b"w"), ("other", b"v")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "items.json").write_text("[]")
        (tmp_path / name / "model.safetensors").write_bytes(content)
        (tmp_path / name / "trainer.safetensors").write_bytes(name.encode())  # the optimizer is no part of a policy
    here, moved, other = (digest_of_policy(tmp_path / name) for name in ("here", "moved", "other"))
    assert here == moved != other


def test_a_linked_checkpoint_is_neither_rotated_away_nor_emptied(config, lab, tmp_path) -> None:
    config = replace(config, rl=replace(config.rl, steps=6, lr_decay="none"))
    run = run_to_end(config, lab, tmp_path / "a", save_every=1)
    kept = tmp_path / "disk/step-000005"
    kept.parent.mkdir()
    (run.folder / "checkpoints/step-000005").rename(kept)
    (run.folder / "checkpoints/step-000005").symlink_to(kept)
    (run.folder / "checkpoints/step-000006-copy").mkdir()  # of the user: no checkpoint of ours
    del run
    longer = run_to_end(replace(config, rl=replace(config.rl, steps=9)), lab, tmp_path / "a", save_every=1, resume=True)
    names = sorted(p.name for p in (longer.folder / "checkpoints").iterdir())
    assert names == ["step-000000", "step-000005", "step-000006-copy", "step-000008", "step-000009"]
    assert longer.latest().name == "step-000009" and (kept / "model.safetensors").is_file()
    longer.strip()
    assert (kept / "trainer.json").is_file() and (longer.folder / "checkpoints/step-000005").is_symlink()


def test_checkpoints_are_ordered_by_number(tmp_path) -> None:
    for name in ("step-999999", "step-1000000", "step-final", "step-000025.bak", "other"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-999999", "step-1000000"]
    assert policy_folder(tmp_path).name == "step-1000000"


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "text",
    [DEEP, "", "{", "[]", "null", '{"step": "4"}', '{"step": true}', '{"step": -1}', '{"step": 3}', '{"steps": 4}',
     f'{{"step": 1{"0" * 5000}}}', '{"step": 1e999}', "\x00\x01"],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_an_odd_trainer_json_gets_one_line(config, lab, tmp_path, text) -> None:
    run = run_to_end(config, lab, tmp_path / "a")
    (run.latest() / "SHA256SUMS").unlink()
    (run.latest() / "trainer.json").write_text(text)
    with pytest.raises(KitError, match="step-000004: the checkpoint is damaged") as error:
        run_to_end(config, lab, tmp_path / "a", resume=True)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


CHANGES = [
    lambda t: {"x": t["0.step"]},
    lambda t: {**t, "99.exp_avg": t["0.exp_avg"].clone()},
    lambda t: {**t, "-1.step": t["0.step"].clone()},
    lambda t: {**t, "0.exp_avg": torch.zeros(3)},
    lambda t: {n: x for n, x in t.items() if n != "0.exp_avg_sq"},
]


@pytest.mark.parametrize("change", CHANGES)
def test_another_optimizers_state_is_refused(config, lab, tmp_path, change) -> None:
    run = run_to_end(config, lab, tmp_path / "a")
    (run.latest() / "SHA256SUMS").unlink()
    save_file(change(load_file(run.latest() / "trainer.safetensors")), run.latest() / "trainer.safetensors")
    with pytest.raises(KitError, match="the checkpoint is damaged"):
        run_to_end(config, lab, tmp_path / "a", resume=True)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("config.json", DEEP, "not JSON"), ("config.json", "[1]", "expected an object"),
        ("config.json", '{"rl": {"group": 1' + "0" * 4000 + "}}", "group 1000000000000000000000000000000000000000 must"),
        ("config.json", '{"task": ' + str(["x"] * 9999).replace("'", '"') + "}", "must be of type str"),
        ("metrics.jsonl", DEEP + "\n", "line 1: not a JSON object"), ("metrics.jsonl", '{"step": null}\n', "line 1"),
        ("metrics.jsonl", '{"step": 1, "loss": [1]}\n', "line 1: field 'loss' must be a number"),
        ("metrics.jsonl", '{"step": 1}\n', "step 1 has no field 'tokens'"),
    ],
    ids=lambda x: x[:20],
)  # fmt: skip
def test_odd_files_of_a_run_get_one_line(config, tmp_path, file, text, said) -> None:
    run = Run(tmp_path / "a", config)
    (tmp_path / "a" / file).write_text(text)
    with pytest.raises(KitError) as error:
        read_config(tmp_path / "a") if file == "config.json" else run.total("tokens")
    assert said in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_file_of_a_terabyte_is_not_read(tmp_path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)  # a hole, which takes no disk
    with pytest.raises(KitError, match="more than 10,000,000 bytes"):
        read_config(tmp_path)


def test_the_configuration_of_a_model_is_not_overwritten(config, tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(KitError, match="is not the configuration of a run and would be overwritten"):
        Run(tmp_path, config)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_a_pool_smaller_than_the_slate_is_refused(lab, config) -> None:
    small = [replace(lab.train[0], candidates=lab.train[0].candidates[:6], relevant=frozenset({0}))]
    check_pools(lab.train, config)
    with pytest.raises(KitError, match="pool of 6 candidates is smaller than slate_size 10"):
        check_pools([*lab.train[:3], *small], config)


def test_results_name_the_commit_of_a_clone_and_no_other_repository(tmp_path, monkeypatch) -> None:
    def git(*arguments: str) -> str:
        names = ("-c", "user.name=a", "-c", "user.email=a@b")
        call = ["git", "-C", str(tmp_path), *names, *arguments]
        return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()

    def found(package: Path) -> dict[str, str]:
        monkeypatch.setattr(run_module, "__file__", str(package / "runs" / "run.py"))
        return run_module.commit.__wrapped__()

    package = tmp_path / "fgrpo"
    (package / "runs").mkdir(parents=True)
    (package / "a.py").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    assert found(package) == {"commit": git("rev-parse", "--short=12", "HEAD")}
    (package / "a.py").write_text("2")
    assert found(package)["commit"].endswith("+")
    (tmp_path / "environment" / "fgrpo").mkdir(parents=True)
    assert found(tmp_path / "environment" / "fgrpo") == {}  # installed somewhere in another project's clone
