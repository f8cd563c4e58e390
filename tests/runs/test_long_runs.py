"""Long runs: memory stays flat, files stay small.

Three hundred steps by default. In full: `FGRPO_STEPS=2000 python -m pytest tests/runs/test_long_runs.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fgrpo.config import Config, KitError
from fgrpo.data import Example
from fgrpo.prompt import Output
from fgrpo.runs.run import FIRST, LAST, read_metrics
from fgrpo.runs.trace import Group, Trace, from_lists, read_trace, write_trace

ROOT = Path(__file__).parents[2]
STEPS = int(os.environ.get("FGRPO_STEPS", "300"))
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from fgrpo.runs.run import Run
from fgrpo.runs.warm_start import tracer
from fgrpo.runs.fields import config_with
from fgrpo.tasks.lab import lab_catalogue, lab_task
from fgrpo.lm.prefix import SharedPolicy
from fgrpo.trainer import fit

torch.set_num_threads(1)
folder, steps, every = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
config = config_with(queries=2, group=2, steps=steps, hidden_size=8, layers=1, heads=2)
lab = lab_task()  # a stream: no query is seen twice
items = [film.title for film in lab_catalogue()]
run = Run(folder, config, save_every=every)
sizes = []

def resident(policy, step):
    sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)

fit(SharedPolicy.tiny(items, config.model), lab.train, config, run, quiet=True, after_step=resident,
    after_save=tracer(run, lab.validation))
print(json.dumps(sizes))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_and_files_of_a_long_run(tmp_path: Path) -> None:
    """Memory after the first third against the rest; a checkpoint and a look often enough that the looks are thinned."""
    run, every = tmp_path / "run", min(25, STEPS // 60)
    out = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(run), str(STEPS), str(every)], capture_output=True, text=True, cwd=ROOT
    )
    assert out.returncode == 0, out.stderr
    sizes = json.loads(out.stdout)
    assert len(sizes) == STEPS
    warm, rest = sizes[STEPS // 3 - 20 : STEPS // 3], sizes[STEPS // 3 :]
    growth = max(rest) / max(warm) - 1
    rows, trace = read_metrics(run), read_trace(run / "trace.jsonl")
    looks = sorted({g.step for g in trace.groups})
    facts = {
        "growth": round(growth, 5), "megabytes": round(max(rest) / 1e6), "looks": len(looks),
        "metrics bytes a step": (run / "metrics.jsonl").stat().st_size // STEPS,
        "trace bytes": (run / "trace.jsonl").stat().st_size, "files": sum(p.is_file() for p in run.rglob("*")),
    }  # fmt: skip
    print(json.dumps(facts))
    assert growth < 0.02, facts
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)) and facts["metrics bytes a step"] < 600
    due = sorted({*range(every, STEPS + 1, every), STEPS})
    assert looks == [*due[:FIRST], *due[-LAST:]] and len(due) > FIRST + LAST
    assert len(list(run.glob("checkpoints/*"))) == 3


def test_looks_are_thinned_but_never_the_new_one_and_resuming_makes_the_same_file(tmp_path: Path) -> None:
    example = Example("u", "a line\u2028 that is one, \x85 and no more", ("h",), tuple("abc"), frozenset({1}))

    def look(path: Path, step: int) -> None:
        groups = [Group(example, from_lists(Output((0, 1), (1,)), 3), step=step)] * 2
        write_trace(path, Trace("a", Config(), groups, {}), more=True)

    last = FIRST + LAST + 9
    for step in range(1, last + 1):
        look(tmp_path / "a", step)
        if step != 45:  # killed after the checkpoint of step 45, before the look at it
            look(tmp_path / "b", step)
        else:
            look(tmp_path / "b", 44)
            look(tmp_path / "b", 45)
        steps = [g.step for g in read_trace(tmp_path / "a").groups]
        assert steps[-2:] == [step, step] and len(steps) == 2 * min(step, FIRST + LAST)
    kept = sorted(set(steps))
    assert kept == [*range(1, FIRST + 1), *range(last - LAST + 1, last + 1)]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_trace(tmp_path / "a").groups[0].example == example


def test_a_carriage_return_ends_no_line_of_metrics(tmp_path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"st\r{"step": 12}\n')
    with pytest.raises(KitError, match=r"metrics.jsonl, line 1: not a JSON object"):
        read_metrics(tmp_path)
