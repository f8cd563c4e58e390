"""The benchmark of the lab: rows of both stages, a floor that counts the products of a step. No test depends on a time."""

import csv
import io
import json

import pytest

from fgrpo.cli.main import main
from fgrpo.config import Config, GrammarConfig
from fgrpo.policy import Sampling
from fgrpo.rollout import drawn_tokens, rollout
from fgrpo.runs.sft import sft_step
from fgrpo.scale.bench_lab import bench_lab, products
from fgrpo.trainer import step


@pytest.mark.parametrize("full", [[], ["--full"]])
def test_command_writes_csv_and_json(full, capsys, tmp_path) -> None:
    out = tmp_path / "lab.csv"
    assert main(["bench", "--lab", *full, "--queries=2", "--group=4", "--repeats=1", "--json", f"--out={out}"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    made, table = out.read_text().split("\n", 1)
    assert json.loads(made[2:])["hardware"] and len(list(csv.DictReader(io.StringIO(table)))) == len(rows) == 2
    assert [(r["stage"], r["queries"], r["group"], r["full"]) for r in rows] == [
        ("sft", 64, 1, 0),
        ("rl", 2, 4, len(full)),
    ]
    for r in rows:
        assert r["min"] <= r["cpu_seconds"] <= r["max"] and r["tokens_per_second"] > 0 < r["times_floor"]
    if full:  # two queries, four rollouts, ten items of a slate and five of a ranking
        assert rows[1]["tokens"] == 2 * 4 * 15


@pytest.mark.parametrize(
    "options",
    ["--prompt=80", "--completion=20", "--peers=trl", "--scaling", "--layers=2", "--hidden-size=64",
     "--dtype=float32", "--device=cpu", "--threads=1", "--no-memory", "--group=2,4"],
)  # fmt: skip
def test_options_without_effect_are_refused(options, capsys) -> None:
    assert main(["bench", "--lab", options]) == 2
    assert options.split("=")[0] in capsys.readouterr().err


def test_full_belongs_to_the_lab(capsys) -> None:
    assert main(["bench", "--full"]) == 2
    assert "--lab" in capsys.readouterr().err


def test_examples_are_used_in_turn_and_nothing_stays_behind(policy, queries, config: Config, monkeypatch) -> None:
    seen: list[str] = []
    for name, do in (("step", step), ("sft_step", sft_step)):
        monkeypatch.setattr(
            f"fgrpo.scale.bench_lab.{name}", lambda p, o, q, *a, do=do: seen.extend(e.id for e in q) or do(p, o, q, *a)
        )
    rows = bench_lab(policy, queries, config, repeats=2)
    assert [r["runs"] for r in rows] == [2, 2] and set(seen) == {q.id for q in queries}
    assert "completion_logits" not in vars(policy)


def test_the_floor_counts_every_token_once(policy, queries) -> None:
    """By hand, from the rollouts: linear layers of the tiny policy, its head over the choices."""
    r = rollout(policy, queries, Sampling(GrammarConfig()), 4, 0)
    drawn = drawn_tokens(r)
    found = products(policy, r.prompts, drawn, sampled=False)
    fed = sum(int(row.nonzero().max()) for row in drawn)  # tokens with another one to choose after them
    prompts = sum(int(m.sum()) for m in r.prompts.mask)
    shapes = [tuple(p.shape) for n, p in policy.model.named_parameters() if p.dim() == 2 and "embed" not in n]
    expected = sum(3 * (prompts + fed) * a * b for a, b in shapes)
    choices, hidden = r.prompts.choices.tokens.shape[1], policy.model.config.hidden_size
    expected += 3 * int(drawn.sum()) * choices * hidden
    assert sum(m * k * n * count for (m, k, n), count in found.items()) == expected
    sampling = products(policy, r.prompts, drawn, sampled=True)
    more = sum(m * k * n * count for (m, k, n), count in sampling.items()) - expected
    alone = sum(fed * a * b for a, b in shapes) + int(drawn.sum()) * choices * hidden
    assert alone <= more < 1.2 * alone  # whole tokens a step
