"""Amazon Games in LLMRank's layout: whose items are taken out of a pool, and what is put in."""

import json
from pathlib import Path

import pytest

from fgrpo.baselines.rankers import retriever
from fgrpo.cli.main import main
from fgrpo.config import Config, KitError
from fgrpo.tasks import load_task, resolved
from fgrpo.tasks.games import load_games
from fgrpo.tasks.reading import Notes, catalogue

REAL = Path(__file__).parents[3] / "shared/data/games/Games-6k"
ITEMS = [str(n) for n in range(200)]
TITLES = {i: f"  Rock &amp; Roll {int(i) % 150}" for i in ITEMS}  # titles repeat, and hold entities
SEQUENCES = {str(u): [str((7 * u + 3 * k) % 200) for k in range(5 + u % 4)] for u in range(1000, 1040)}
HELD = [str(u) for u in range(1000, 1040, 2)]


def write(folder: Path) -> Path:
    """Retriever `good` lists the user's own items, then the next item, then others; `bad` never has the next item."""
    folder.mkdir(exist_ok=True)
    (folder / "G.item").write_text(
        "item_id:token\ttitle:token_seq\n" + "".join(f"{i}\t{t}\n" for i, t in TITLES.items())
    )
    rows = [f"{u}\t{' '.join(s[:-1])}\t{s[-1]}\n" for u, s in SEQUENCES.items()]
    (folder / "G.test.inter").write_text("user_id:token\titem_id_list:token_seq\titem_id:token\n" + "".join(rows))
    for name in ("good", "bad"):
        lines = []
        for user in HELD:
            *own, target = SEQUENCES[user]
            others = [i for i in ITEMS if i not in SEQUENCES[user]]
            found = [*own, target, *others] if name == "good" else [*own, *others]
            lines.append(f"{user}\t{' '.join(found[:60])}\n")
        (folder / f"G.{name}").write_text("".join(lines))
    (folder / "README.md").write_text("no retriever")
    return folder


@pytest.mark.parametrize(("name", "has_gt"), [("good", True), ("good", False), ("bad", True), ("bad", False)])
def test_pools_are_the_first_that_the_user_has_not(tmp_path, name, has_gt) -> None:
    notes = Notes()
    splits = load_games(write(tmp_path), notes, task=f"games-{name}", pool=30, has_gt=has_gt)
    assert len(splits.validation) == len(splits.test) == 10
    assert {e.group for part in splits[1:] for e in part} == {*HELD}
    assert {*splits.train.sequences} == {*SEQUENCES} - {*HELD}  # whose next item is a position as well
    assert all(splits.train.sequences[u] == SEQUENCES[u] for u in splits.train.sequences)
    listed = dict(line.split("\t") for line in (tmp_path / f"G.{name}").read_text().splitlines())
    for e in (*splits.validation, *splits.test):
        *own, target = SEQUENCES[e.group]
        pool = [i for i in listed[e.group].split() if i not in own][:30]
        if name == "bad" and has_gt:
            pool[-1] = target
        assert sorted(e.candidate_ids) == sorted(pool) and list(e.candidate_ids) != pool
        assert {e.candidate_ids[i] for i in e.relevant} == {target} & {*pool} and len(pool) == 30
        assert list(e.history_ids) == own[-10:] and e.candidates[0] == f"Rock & Roll {int(e.candidate_ids[0]) % 150}"
    # at whatever place of the list the retriever has it
    what = "is put in" if has_gt else "is not in the pool"
    assert notes.remarks == {
        f"{split}: next items that the retriever has in its first 30 (any other {what}), of 10": 10 * (name == "good")
        for split in ("validation", "test")
    }
    assert notes.read == {"G.test.inter": 40, "G.good": 20, "G.bad": 20} and not notes.dropped
    assert len(catalogue(splits)) == 200 and {len(e.candidates) for e in splits.train.take(0, 20)} == {30}


def test_a_union_takes_the_lists_of_all_retrievers_in_turn(tmp_path) -> None:
    write(tmp_path)
    (tmp_path / "G.other").write_text("".join(f"{user}\t199 198 197 {SEQUENCES[user][0]}\n" for user in HELD[:-1]))
    splits = load_games(tmp_path, task="games-union", pool=40)
    listed = {
        name: dict(line.split("\t") for line in (tmp_path / f"G.{name}").read_text().splitlines())
        for name in ("bad", "good", "other")
    }
    orders = retriever(splits, Config(task="games-union", data=str(tmp_path)))
    ranked_by = {e.id: order for e, order in zip(splits.test, orders, strict=True)}
    for e in (*splits.validation, *splits.test):
        *own, target = SEQUENCES[e.group]
        lists, ranked = [of[e.group].split() for of in listed.values() if e.group in of], list[str]()
        for n in range(60):
            ranked += [found[n] for found in lists if n < len(found) and found[n] not in (*own, *ranked)]
        pool = ranked[:40] if target in ranked[:40] else [*ranked[:39], target]
        assert sorted(e.candidate_ids) == sorted(pool) and e.id == f"union-{e.group}"
        if e.id in ranked_by:
            assert [e.candidate_ids[i] for i in ranked_by[e.id]] == pool
    assert {len(e.candidates) for e in splits.train.take(0, 20)} == {40}


@pytest.mark.parametrize("name", ["good", "bad", "mixed"])
def test_the_retrievers_own_order_is_a_baseline(tmp_path, name) -> None:
    splits = load_games(write(tmp_path), task=f"games-{name}", pool=30)
    orders = retriever(splits, Config(task=f"games-{name}", data=str(tmp_path)))
    for e, order in zip(splits.test, orders, strict=True):
        own, *_ = e.id.split("-")
        ranked = [e.candidate_ids[i] for i in order]
        lines = dict(line.split("\t") for line in (tmp_path / f"G.{own}").read_text().splitlines())
        listed = [i for i in lines[e.group].split() if i in ranked]
        assert ranked[: len(listed)] == listed and len(listed) == (30 if own == "good" else 29)
        assert (order[-1] in e.relevant) == (own == "bad")  # what was put in comes last
    with pytest.raises(KitError, match="'retriever' is for games"):
        retriever(splits, Config())


def test_users_are_held_out_alike_under_every_name(tmp_path) -> None:
    write(tmp_path)
    lines = (tmp_path / "G.bad").read_text().splitlines(keepends=True)
    (tmp_path / "G.bad").write_text("".join([*lines[1:], "7\t1 2 3\n"]))  # lacks a user, and has one that is unknown
    notes = Notes()
    bad = load_games(tmp_path, notes, task="games-bad")
    good, mixed = (load_games(tmp_path, task=f"games-{name}") for name in ("good", "mixed"))
    assert notes.dropped == {
        "G.bad": {"no sequence of this user": 1},
        "G.test.inter": {"a user that other retrievers have a pool for, and bad has not": 1},
    }
    assert good.train == bad.train == mixed.train
    for a, b, c in zip(good[1:], bad[1:], mixed[1:], strict=True):
        users = [e.group for e in a]
        assert [e.group for e in c] == users and [e.group for e in b] == [u for u in users if u != HELD[0]]
    names = [e.id.split("-")[0] for part in mixed[1:] for e in part]
    assert 3 < names.count("good") < 17 and {*names} == {"good", "bad"}
    assert load_games(tmp_path, seed=1)[1:] != mixed[1:]


def test_lists_that_are_too_short_are_counted(tmp_path) -> None:
    notes = Notes()
    splits = load_games(write(tmp_path), notes, task="games-bad", pool=100)
    assert all(len(e.candidates) == 60 - len(SEQUENCES[e.group]) + 2 for part in splits[1:] for e in part)
    short = "pools of fewer than 100 items, as the rest of the list is the user's own"
    assert notes.remarks[f"validation: {short}"] == notes.remarks[f"test: {short}"] == 10


def test_games_is_one_of_a_family_of_names(tmp_path, capsys) -> None:
    folder = str(write(tmp_path / "g"))
    assert resolved(Config(task="games", data=folder)).task == "games-mixed"
    assert load_task(Config(task="games", data=folder)) == load_task(Config(task="games-mixed", data=folder))
    argv = ["train", "--task", "games", "--data", folder, "--pool", "25", "--sft", "--sft-steps", "1", "--sft-batch", "2",
            "--hidden-size", "16", "--layers", "1", "--heads", "2", "--out", str(tmp_path / "run")]  # fmt: skip
    assert main([*argv, "--json"]) == 0
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert [config[x] for x in ("task", "negatives", "has_gt", "pool")] == ["games-mixed", "mixed", True, 25]
    capsys.readouterr()
    # another retriever's pools are as large, and of the same folder
    argv = ["evaluate", "--checkpoint", str(tmp_path / "run"), "--task", "games-bad", "--json"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["task"] == "games-bad" and found["queries"] == 10
    argv = ["data", "stats", "--task", "games-bad", "--data", folder, "--no-has-gt", "--negatives", "popular", "--json"]
    assert main(argv) == 0
    stats = json.loads(capsys.readouterr().out)
    assert stats["splits"]["test"]["relevant"]["max"] == 0 and stats["splits"]["train"]["relevant"]["min"] == 1
    assert (
        stats["remarks"][
            "test: next items that the retriever has in its first 20 (any other is not in the pool), of 10"
        ]
        == 0
    )


def test_a_pool_without_its_next_item_scores_nothing(tmp_path, config) -> None:
    """Recall then has the retriever's ceiling, and no mean is nan."""
    from fgrpo.evaluate import evaluate
    from fgrpo.policy import Policy

    splits = load_games(write(tmp_path), task="games-mixed", has_gt=False)
    metrics = evaluate(Policy.tiny(catalogue(splits), config.model), splits.test, config)
    found = [bool(e.relevant) for e in splits.test]
    assert 0 < sum(found) < 10
    for name, values in metrics.items():
        assert values.isfinite().all(), name
        if name != "slate_length":
            assert not any(v for v, f in zip(values.tolist(), found, strict=True) if not f), name
    assert metrics["slate_recall"].mean() <= sum(found) / 10


ITEM_HEAD, USER_HEAD = "item_id:token\ttitle:token_seq\n", "user_id:token\titem_id_list:token_seq\titem_id:token\n"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("G.item", f"{ITEM_HEAD}1\tA\n1\tB\n", r"G\.item, line 3: id '1' appears twice"),
        ("G.item", f"{ITEM_HEAD}1\t\n", r"line 2: id '1' has no title"),
        ("G.item", "1\tA\n", r"line 1: the header must name each of the columns item_id:token, title:token_seq"),
        ("G.test.inter", f"{USER_HEAD}1\t5 6\t900\n", r"inter, line 2: item '900' is not in the list of items"),
        ("G.test.inter", f"{USER_HEAD}1\t5 6\t7\n1\t5 6\t7\n", r"inter, line 3: user '1' appears twice"),
        ("G.test.inter", f"{USER_HEAD}1\t5 6\n", r"inter, line 2: expected 3 columns, found 2"),
        ("G.test.inter", f"{USER_HEAD}1\t5 6\t7\n", r"0 users with a pool are too few"),
        ("G.good", "1000 1 2\n", r"G\.good, line 1: expected user, a tab, and item ids"),
        ("G.good", "1000\t1 1\n", r"G\.good, line 1: an item appears twice"),
        ("G.good", "1000\t1 2 999\n", r"G\.good, line 1: item '999' is not in the list of items"),
        ("G.good", "1000\t1 2\n1000\t1 2\n", r"G\.good, line 2: user '1000' appears twice"),
        ("G.good", "1000\t0 3 6\n", r"G\.good, line 1: fewer than two items are left without the user's own"),
        ("H.item", ITEM_HEAD, r"G\.item, H\.item: keep one; --data must be a folder with one \*\.item"),
    ],
)
def test_bad_files_are_named(tmp_path, file, text, message) -> None:
    (write(tmp_path) / file).write_text(text)
    with pytest.raises(KitError, match=message):
        load_games(tmp_path, task="games-good")


def test_rows_that_no_task_can_be_made_of_are_counted(tmp_path) -> None:
    with (write(tmp_path) / "G.test.inter").open("a") as file:
        file.write("1\t5 6\t5\n2\t\t5\n3\t5 6 5\t7\n")
    notes = Notes()
    splits = load_games(tmp_path, notes, task="games-good")
    assert notes.dropped == {"G.test.inter": {"the next item is in the sequence already": 1, "a user of one item": 1}}
    assert splits.train.sequences["3"] == ["5", "6", "7"]


def test_missing_files_say_what_is_there(tmp_path) -> None:
    with pytest.raises(
        KitError, match=r"no Games here \(it is empty\); --data must be a folder with one \*\.test\.inter"
    ):
        load_games(tmp_path)
    write(tmp_path)
    with pytest.raises(KitError, match=r"no file G\.best \(retrievers here: bad, good\)"):
        load_task(Config(task="games-best", data=str(tmp_path)))
    for name in ("good", "bad"):
        (tmp_path / f"G.{name}").unlink()
    with pytest.raises(KitError, match=r"no file G\.RETRIEVER \(retrievers here: none; it holds G\.item"):
        load_games(tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="Games is not beside the project (../shared/data)")
def test_the_real_games() -> None:
    notes = Notes()
    splits, items = load_task(Config(task="games-sasrec", data=str(REAL), negatives="mixed"), notes=notes)
    assert [len(splits.validation), len(splits.test)] == [2000, 2000] and len(items) == 16_859
    assert len(splits.train.sequences) == 44_546 and splits.train.windows == 339_539 and len(splits.train) == 44_546
    assert sum(notes.remarks.values()) == 616 and not notes.dropped  # 15.4 % of 4,000
    assert {len(e.candidates) for e in splits.test} == {20}
    assert not any("&amp;" in text for text in splits.train.items.values())
    assert len({e.group for e in splits.train.take(0, 100)}) > 90
