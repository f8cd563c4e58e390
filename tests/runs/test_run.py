"""A run's folder: it is not overwritten, and damage in a checkpoint is one clear line."""

import json
from dataclasses import replace

import pytest

from fgrpo.config import KitError
from fgrpo.runs.run import Run, read_metrics
from tests.core.test_trainer import run_to_end


def test_a_run_folder_is_not_overwritten_and_resume_checks_the_options(config, lab, tmp_path) -> None:
    run_to_end(config, lab, tmp_path / "a")
    with pytest.raises(KitError, match="already holds a run"):
        run_to_end(config, lab, tmp_path / "a")
    with pytest.raises(KitError, match=r"rl.lam = 2.0, it began with 1.0"):
        Run(tmp_path / "a", replace(config, rl=replace(config.rl, lam=2.0)), resume=True)
    longer = run_to_end(replace(config, rl=replace(config.rl, steps=6)), lab, tmp_path / "a", resume=True)
    assert len(read_metrics(longer.folder)) == 6
    assert json.loads((longer.latest() / "trainer.json").read_text()) == {"step": 6, "position": 24}


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
