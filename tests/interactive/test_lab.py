"""The front door: own methods, rewards, data and models as functions and objects, in this process and in others."""

import math
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from torch import Tensor

import fgrpo
from fgrpo.config import KitError
from fgrpo.credit import CREDITS, advantage, assign_credit, by_phase, with_credit
from fgrpo.data import Example
from fgrpo.evaluate import evaluate
from fgrpo.interactive import html
from fgrpo.interactive.lab import Lab, lab
from fgrpo.rewards import RANK_REWARDS, SLATE_REWARDS, listed_gains, ndcg, recall
from fgrpo.runs.own import OF_THE_KIT, TABLES
from fgrpo.runs.run import read_config
from fgrpo.runs.warm_start import SHIPPED
from fgrpo.tasks.jsonl import write_jsonl

ROOT = Path(__file__).parents[2]
HOSTILE = '</td><script>alert("x")</script>'


def doubled(rewards, rollouts, config):
    return by_phase(advantage(rewards.slate, config), 2 * advantage(rewards.rank, config), rollouts)


def half_recall(items: Tensor, gains: Tensor) -> Tensor:
    return recall(items, gains) / 2


def first_hit(items: Tensor, gains: Tensor, k: int) -> Tensor:
    return (listed_gains(items, gains)[..., :1] > 0).double().sum(-1)


@pytest.fixture
def opened(tmp_path: Path) -> Lab:
    return lab(folder=tmp_path / "lab", full=True, queries=4)


@pytest.fixture(autouse=True)
def _forget():
    yield
    for kind, table in TABLES.items():
        for name in table.keys() - OF_THE_KIT[kind]:
            del table[name]


def toy(count: int = 30, pool: int = 6) -> list[Example]:
    return [
        Example(f"q{i}", "which?", (f"old {i % 3}",), tuple(f"item {(i + j) % 9}" for j in range(pool)), {i % pool})
        for i in range(count)
    ]  # fmt: skip


def test_names_of_the_package_are_imported_when_they_are_used() -> None:
    assert fgrpo.lab is lab and fgrpo.Example is Example and fgrpo.rewards.recall is recall
    assert (
        fgrpo.tasks.load("lab-rec", pool=30).test[0].id == "test-0"
        and len(fgrpo.tasks.load(pool=30).test[0].candidates) == 30
    )
    assert fgrpo.Policy.load(SHIPPED).labels.items == fgrpo.load_policy(SHIPPED).labels.items
    with pytest.raises(KitError, match="field 'pools' is not known"):
        fgrpo.tasks.load(pools=30)
    with pytest.raises(AttributeError, match="no attribute 'labs'; its names are lab"):
        fgrpo.labs  # noqa: B018


def test_a_group_has_the_rewards_and_advantages_of_the_core(opened: Lab) -> None:
    group = opened.group(query=3, rollouts=4)
    assert group.rewards.slate.shape == (1, 4) and len(group.group.rollouts) == 4
    for name in ("grpo", "fgrpo", "item"):
        wanted = assign_credit(group.rewards, group.rollouts, with_credit(opened.config.rl, name))
        found = group.credit(name).advantages[name]
        assert torch.allclose(found[:, : wanted.shape[1]], wanted, atol=1e-6)
    again = opened.group(query=opened.splits.validation[3].id, rollouts=4)
    assert again.rollouts.completions.equal(group.rollouts.completions)
    assert not opened.group(query=3, rollouts=4, seed=1).rollouts.completions.equal(group.rollouts.completions)


def test_an_own_credit_method_and_own_rewards_train_and_are_what_learns(opened: Lab) -> None:
    calls: list[str] = []

    def counted(rewards, rollouts, config):
        calls.append(config.slate_reward)
        assert rewards.slate.max() <= 0.5 and set(rewards.rank.unique().tolist()) <= {0.0, 1.0}
        return doubled(rewards, rollouts, config)

    run = opened.train(counted, 2, quiet=True, slate_reward=half_recall, rank_reward=first_hit)
    assert calls == ["half_recall"] * 2 and len(run.metrics) == 2
    kept = read_config(run.folder).rl
    assert (kept.credit, kept.slate_reward, kept.rank_reward) == ("counted", "half_recall", "first_hit")
    assert "counted, 2 steps" in repr(run) and "data:image/png" in run._repr_html_()
    before, after = opened.policy.parameters(), run.policy.parameters()
    assert any(not a.equal(b) for a, b in zip(before, after, strict=True))


def test_a_function_equal_to_a_method_of_the_kit_trains_the_same_policy(opened: Lab) -> None:
    def mine(rewards, rollouts, config):
        return by_phase(advantage(rewards.slate, config), advantage(rewards.rank, config), rollouts)

    own, kits = (opened.train(credit, 3, quiet=True).policy.parameters() for credit in (mine, "fgrpo"))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(own, kits, strict=True))


@pytest.mark.slow
def test_functions_work_in_other_processes(opened: Lab) -> None:
    factor = 3.0

    def closure(rewards, rollouts, config):  # not importable, and it refers to a variable outside of it
        return by_phase(advantage(rewards.slate, config), factor * advantage(rewards.rank, config), rollouts)

    def compared(jobs: int) -> list[dict]:
        table = opened.compare(
            ["grpo", closure], 3, 2, limit=20, jobs=jobs, quiet=True, slate_reward=half_recall, baselines=["random"]
        )
        assert "Does RL learn here?" in table._repr_html_() and len(table.checks) == 2
        return [{k: v for k, v in row.items() if k != "seconds"} for row in table.rows]

    assert compared(2) == compared(1)


def test_compared_methods_may_have_fields_of_their_own(opened: Lab) -> None:
    named = {"plain": {"credit": "grpo"}, "scaled": {"credit": "grpo", "scale": "std"}}
    table = opened.compare(named, 1, 1, limit=5, jobs=1, quiet=True, baselines=["random"])
    assert [row["method"] for row in table.table()] == ["random", "sft_full", "sft", "plain", "scaled"]
    assert read_config(table.folder / "scaled-seed0").rl.scale == "std"


def test_a_table_is_measured_on_validation_unless_test_is_asked_for(opened: Lab) -> None:
    table = opened.compare(["grpo"], 1, 1, limit=5, jobs=1, quiet=True, baselines=["random"])
    mean = next(r["mean"] for r in table.rows if (r["method"], r["metric"]) == ("sft_full", "ndcg@5"))
    wanted = evaluate(opened.policy, opened.splits.validation[:5], opened.config)["ndcg@5"].mean()
    assert mean == pytest.approx(float(wanted)) and "5 queries of split validation" in table.reading


def test_scores_are_means_and_values_per_query(opened: Lab) -> None:
    scores = opened.evaluate(split="test", limit=7)
    assert scores["ndcg@5"].shape == (7,) and scores.means["ndcg@5"] == pytest.approx(float(scores["ndcg@5"].mean()))
    assert "7 queries" in repr(scores) and f"{scores.means['ndcg@5']:.3f}" in scores._repr_html_()


def test_the_oracle_knows_own_methods(opened: Lab) -> None:
    rows = {row["method"]: row for row in opened.oracle("reward_to_go", doubled, group=2, pools=1).rows}
    assert rows["doubled"]["angle_error"] == 0.0  # all groups of two were listed
    assert rows["reward_to_go"]["angle"] < 1 < rows["doubled"]["angle"]  # the first is unbiased, up to rounding


def test_own_data_as_list_dictionaries_frame_or_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgrpo.interactive.lab.DATA", tmp_path / "data")
    (tmp_path / "data").mkdir()
    examples = toy()
    rows = [
        {"id": int(e.id[1:]), "query": e.query, "history": e.history, "candidates": list(e.candidates),
         "relevant": set(e.relevant), "group": math.nan} for e in examples
    ]  # fmt: skip

    class Frame:  # what a pandas data frame gives
        columns = tuple(rows[0])

        def to_dict(self, how: str) -> list[dict]:
            assert how == "records"
            return rows

    write_jsonl(tmp_path / "mine.jsonl", examples)
    sizes = {"slate_size": 3, "rank_size": 2, "sft_steps": 2, "steps": 2, "queries": 2}
    for task in (examples, rows, Frame(), str(tmp_path / "mine.jsonl")):
        own = lab(task, **sizes)
        assert [len(x) for x in own.splits] == [24, 3, 3]
        assert own.splits.train[0].candidates == examples[0].candidates
    trained = own.train("fgrpo", quiet=True)
    assert len(trained.metrics) == 2 and own.folder.is_relative_to(tmp_path / "runs")
    assert read_config(trained.folder).task == str(tmp_path / "mine.jsonl")
    table = own.baselines("random", "popularity").rows
    assert [row["baseline"] for row in table] == ["random", "popularity"] and 0 <= table[0]["ndcg@5"] <= 1
    assert own.reads(limit=3).caption


def test_rows_that_are_skipped_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "mine.jsonl", toy())
    with (tmp_path / "mine.jsonl").open("a") as file:
        file.write('{"id": "broken"}\n')
    own = lab(str(tmp_path / "mine.jsonl"), folder=tmp_path / "lab", skip_bad=True, slate_size=3, rank_size=2)
    assert any(note.startswith("skipped 1 broken lines: ") for note in own.notes) and "skipped 1" in own._repr_html_()
    fgrpo.tasks.load(str(tmp_path / "mine.jsonl"), skip_bad=True)
    assert "skipped 1 broken lines: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: x.group(5000), "query 5000 is not in split 'validation', which has 1024"),
        (lambda x: x.group("nobody"), "query 'nobody' is not in split"),
        (lambda x: x.group(split="tests"), "split 'tests' is not known; choose from train, validation, test"),
        (lambda x: x.group(rollouts=1), "group 1 must be at least 2"),
        (lambda x: x.train("groups"), "credit 'groups' is not known; choose from grpo"),
        (lambda x: x.train(lambda a, b, c: a), "needs a name: write def my_credit(rewards, rollouts, config)"),
        (lambda x: x.train(half_recall), "must take (rewards, rollouts, config)"),
        (lambda x: x.train(3), "credit must be a name or a function, not int"),
        (lambda x: x.train(slate_reward="f2"), "slate_reward 'f2' is not known; choose from recall"),
        (lambda x: x.train("item", rank_reward=first_hit), "divides NDCG among the ranks"),
        (lambda x: x.train(slate_size=5), "slate_size changes the warm start: give it to fgrpo.lab(...)"),
        (lambda x: x.train(lamb=5), "field 'lamb' is not known"),
        (lambda x: x.evaluate(limit=0), "limit 0 must be at least 1"),
        (lambda x: x.compare("grpo"), "credits must be a list of methods"),
        (lambda x: x.compare(["grpo", "grpo"]), "two methods have the same name"),
        (lambda x: x.compare([]), "name at least one method"),
        (lambda x: x.credits_of, ""),
        (lambda x: lab(slate_size=30), "smaller than slate_size 30: lower slate_size."),
        (lambda x: lab(hard=0.5, taste=-1), "taste -1"),
        (lambda x: lab(3), "expected a name, a file, a data frame or a list of examples, not int"),
        (lambda x: lab([{"id": "a"}]), "task, row 0: field 'query' must be a string"),
        (lambda x: lab([7]), "task, row 0: expected an Example or a dictionary, not int"),
        (lambda x: lab("movielens"), "name the folder or file with data"),
        (lambda x: lab(recipe="fast"), "recipe 'fast' is not known"),
        (lambda x: lab(start="runs/none"), "start 'runs/none': no such folder"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence_about_arguments(opened: Lab, call: Callable, says: str) -> None:
    if not says:
        with pytest.raises(AttributeError):
            call(opened)
        return
    with pytest.raises(KitError) as caught:
        call(opened)
    assert says in str(caught.value) and "--" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (lambda r, o: r.slate, "must return advantages of shape (B, T)"),
        (lambda r, o: None, "not NoneType"),
        (lambda r, o: o.phase / 0, "not finite"),
    ],
)
def test_a_method_with_a_wrong_result_is_named(opened: Lab, value: Callable, says: str) -> None:
    def wrong(rewards, rollouts, config):
        return value(rewards, rollouts)

    with pytest.raises(KitError, match="credit 'wrong'") as caught:
        opened.train(wrong, 1, quiet=True)
    assert says in str(caught.value)


def test_a_reward_with_a_wrong_result_is_named(opened: Lab) -> None:
    def flat(items: Tensor, gains: Tensor) -> Tensor:
        return recall(items, gains).mean()

    with pytest.raises(KitError, match=r"reward 'flat': must return one number per list, shape \(4, 8\)"):
        opened.train("fgrpo", 1, quiet=True, slate_reward=flat)


def test_a_function_may_not_take_the_name_of_a_method_of_the_kit_but_its_own_again(opened: Lab) -> None:
    def fgrpo(rewards, rollouts, config):
        return doubled(rewards, rollouts, config)

    def recall(items: Tensor, gains: Tensor) -> Tensor:
        return half_recall(items, gains)

    group = opened.group(0, 2)
    with pytest.raises(KitError, match="'fgrpo' is the kit's own"):
        group.credit(fgrpo)
    with pytest.raises(KitError, match="'recall' is the kit's own"):
        opened.group(0, 2, slate_reward=recall)
    assert group.credit(CREDITS["fgrpo"]).advantages.keys() == {"fgrpo"}  # the kit's function itself
    assert opened.group(0, 2, rank_reward=ndcg).rewards.rank.shape == (1, 2)
    first, second = (lambda r, o, c, k=k: k * doubled(r, o, c) for k in (1, 2))
    first.__name__ = second.__name__ = "mine"
    one, two = (group.credit(f).advantages["mine"] for f in (first, second))  # a cell that is run again
    assert torch.allclose(2 * one, two) and "mine" in CREDITS
    assert set(SLATE_REWARDS) == {"recall", "precision", "f1"} and set(RANK_REWARDS) == {"ndcg"}


def test_titles_are_shown_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fgrpo.interactive.lab.DATA", tmp_path / "nothing")
    monkeypatch.chdir(tmp_path)
    examples = [
        Example(f"{HOSTILE}{i}", HOSTILE, (HOSTILE,), (*(f"{HOSTILE}{j}" for j in range(5)),), frozenset({1}))
        for i in range(20)
    ]
    own = lab(examples, slate_size=3, rank_size=2, sft_steps=1, steps=1, queries=2)
    group = own.group(0, 3)
    pages = [own._repr_html_(), group._repr_html_(), group.credit("grpo", "fgrpo")._repr_html_()]
    pages += [html.example_html(examples[0]), html.rollouts_html(group.rollouts), html.rewards_html(group.rewards)]
    assert all("<script" not in page for page in pages) and "&lt;script" in pages[1]
    assert group.credit("grpo", "fgrpo").plot()._repr_png_().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_bare_kernel_shows_everything_without_noise(tmp_path: Path) -> None:
    cells = {
        "import sys\nsys.path.insert(0, "
        + repr(str(ROOT))
        + ")\nimport fgrpo\nlab = fgrpo.lab(folder='lab')\nlab": "text/html",
        "group = lab.group(query=3)\ngroup": "text/html",
        "group.credit('grpo', 'fgrpo').plot()": "image/png",
        "group.example": "text/html",
        "group.rollouts": "text/html",
        "group.rewards": "text/html",
        "lab.splits": "text/html",
        "def mine(rewards, rollouts, config):\n    return fgrpo.credit.fgrpo(rewards, rollouts, config)\n"
        "run = lab.train(mine, steps=2)\nrun": "text/html",
        "run.plot()": "image/png",
        "lab.compare(['grpo', mine], seeds=1, steps=1, limit=10, jobs=2)": "text/html",
        "lab.group(9999)": "error",
    }
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", allow_errors=True, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    for cell, wanted in zip(notebook.cells, cells.values(), strict=True):
        *before, last = cell.outputs
        assert all(o.output_type == "display_data" and "widget" in str(o.data.keys()) for o in before), cell.source
        if wanted == "error":
            assert last.traceback == [
                "KitError: query 9999 is not in split 'validation', which has 1024: count from 0."
            ]
        else:
            assert wanted in last.data and len(last.data["text/plain"]) < 1200
