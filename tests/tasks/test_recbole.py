"""RecBole's atomic files: hand-written ones here, those of LLMRank where they are at hand."""

from pathlib import Path

import pytest

from fgrpo.config import Config, KitError
from fgrpo.tasks import load_task
from fgrpo.tasks.reading import Notes
from fgrpo.tasks.recbole import load_recbole

from .test_files import CAUSES

REAL = Path(__file__).parents[3] / "shared/data/games/Games-6k"
INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
SEQUENCES = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
ITEM = "item_id:token\tbrand_name:token\tmovie_title:token_seq\tgenre:token_seq\n"


def items_of(user: int) -> list[str]:
    return [str((user * 7 + n * 11) % 60) for n in range(8)]


def recbole(folder: Path, sequences: bool = False) -> Path:
    """20 users with eight items each; user 19 came first, and the file lists the latest item first."""
    titles = "".join(f"{n}\tX\tFilm {n % 40}\tdrama war\n" for n in range(60))
    (folder / "a.item").write_text(ITEM + titles)
    rows = [
        f"u{user}\t{item}\t4.5\t{1e9 - user * 1000 + n}\n"
        for user in range(20)
        for n, item in reversed(list(enumerate(items_of(user))))
    ]
    if sequences:
        rows = [f"u{u}\t{' '.join(items_of(u)[:-1])}\t{items_of(u)[-1]}\n" for u in range(20)]
    (folder / "a.inter").write_text((SEQUENCES if sequences else INTER) + "".join(rows))
    return folder


@pytest.mark.parametrize("sequences", [False, True])
def test_the_next_item_in_order_of_time(tmp_path, sequences) -> None:
    notes = Notes()
    splits = load_recbole(recbole(tmp_path, sequences), notes)
    assert [len(part) for part in splits] == [16 * 7, 2, 2]
    if not sequences:  # by first interaction
        order = [list(dict.fromkeys(e.group for e in part)) for part in splits]
        assert order == [[f"u{n}" for n in part] for part in (range(19, 3, -1), (3, 2), (1, 0))]
    for e in (e for part in splits for e in part):
        own, (place,) = items_of(int(e.group[1:])), e.relevant
        end = len(e.history)
        assert list(e.history_ids) == own[:end] and e.candidate_ids[place] == own[end]
        assert len(set(e.candidate_ids)) == 20 and set(e.candidate_ids) & set(own) == {own[end]}
        assert e.candidates == tuple(f"Film {int(i) % 40}" for i in e.candidate_ids)
    assert all(len(e.history) == 7 for part in splits[1:] for e in part)
    assert notes.read == {"a.item": 60, "a.inter": 20 if sequences else 160} and not notes.dropped and not notes.remarks
    assert load_recbole(tmp_path) == splits != load_recbole(tmp_path, seed=1)


def test_what_is_left_out_is_counted(tmp_path, capsys) -> None:
    folder = recbole(tmp_path)
    with (folder / "a.inter").open("a") as file:
        file.write("u1\tunknown\t1\t5\nu2\t0\t1\t6\nu0\t0\t1\t2e9\nu99\t5\t1\t7\n")
    text = (folder / "a.item").read_text().replace("\n0\tX\tFilm 0\t", "\n0\tX\t \t")
    (folder / "a.item").write_text(text)
    for name in ("a.user", "a.link"):
        (folder / name).write_text("x:token\n")
    splits, items = load_task(Config(task="recbole", data=str(folder)))
    assert "0" not in items and "unknown" not in items and len(splits.test) == 2
    of_zero = sum(items_of(user).count("0") for user in range(20)) + 2
    assert capsys.readouterr().err.splitlines() == [
        "a.item: 60 rows read, 1 left out (movie_title is empty: 1)",
        "a.inter: 164 rows read, 1 left out (the user's only item: 1)",
        "files that are not used (a.link, a.user): 2",
        f"a.inter: interactions left out, of an item without a title in a.item: {of_zero + 1}",
    ]
    with (folder / "a.inter").open("a") as file:
        file.write(f"u7\t{items_of(7)[2]}\t1\t2e9\n")
    notes = Notes()
    load_recbole(folder, notes)
    assert notes.remarks["a.inter: interactions left out, of a user and item again"] == 1


def test_the_longest_sequence_of_a_user_counts(tmp_path) -> None:
    """RecBole's augmented files have a row for every prefix."""
    expected = load_recbole(recbole(tmp_path, sequences=True))
    prefixes = [f"u{u}\t{' '.join(items_of(u)[:end])}\t{items_of(u)[end]}\n" for u in range(20) for end in (1, 7, 3)]
    (tmp_path / "a.inter").write_text(SEQUENCES.replace("user_id", "session_id") + "".join(prefixes))
    notes = Notes()
    assert load_recbole(tmp_path, notes) == expected
    assert notes.dropped == {"a.inter": {"another sequence of the same user": 40}}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.inter", INTER + "u1\t1\t5\tnan\n", r"a\.inter, line 2: field 'timestamp' must be a number, found 'nan'"),
        ("a.inter", INTER + "u1\t1\t5\t\n", r"a\.inter, line 2: field 'timestamp' must be a number, found ''"),
        ("a.inter", INTER + "u1\t1\n", r"a\.inter, line 2: expected 4 columns, found 2"),
        ("a.inter", INTER + "\t1\t5\t5\n", r"a\.inter, line 2: field 'user_id' is empty"),
        ("a.inter", INTER + "u1\t \t5\t5\n", r"a\.inter, line 2: field 'item_id' is empty"),
        ("a.inter", SEQUENCES + "u1\t1 2\t\n", r"a\.inter, line 2: field 'item_id' is empty"),
        ("a.inter", "u1\t1\t5\t5\n", r"a\.inter, line 1: the header must name each column with its type"),
        ("a.inter", "user_id:token\titem_id:token\n", r"line 1: the header must name each of the columns .*timestamp"),
        ("a.inter", INTER, r"0 users with more than one item are too few"),
        ("a.item", "item_id:token\tgenre:token\n1\tx\n", r"a\.item, line 1: no column whose name ends in title or name"),
        ("a.item", "item:token\ttitle:token\n", r"a\.item, line 1: the header must name each of the columns item_id, title"),
        ("a.item", ITEM + "1\tX\ta\tb\n" * 2, r"a\.item, line 3: item '1' appears twice"),
        ("a.item", ITEM + "1\tX\ta\tb\n", r"0 users with more than one item are too few"),
        ("b.inter", INTER, r"a\.inter, b\.inter: keep one \.inter file"),
        ("a.item", None, r"no RecBole \.item file here \(it holds a\.inter\); --data must be a folder with \*\.item"),
    ],
)  # fmt: skip
def test_broken_files(tmp_path, file, text, message) -> None:
    path = recbole(tmp_path) / file
    path.write_text(text) if text is not None else path.unlink()
    with pytest.raises(KitError, match=message):
        load_recbole(tmp_path)


def test_every_file_names_what_it_is_instead(tmp_path) -> None:
    for name in ("a.inter", "a.item"):
        path = recbole(tmp_path) / name
        for what, blob in CAUSES.items():
            path.write_bytes(blob)
            with pytest.raises(KitError) as error:
                load_recbole(tmp_path)
            assert str(error.value).startswith(f"{path}: {what}") and "\n" not in str(error.value)
    with pytest.raises(KitError, match="of recbole every row is needed"):
        load_task(Config(task="recbole", data=str(tmp_path)), bad=[])


@pytest.mark.skipif(not REAL.is_dir(), reason="the Games sample of LLMRank is not here (../shared/data/games)")
def test_the_real_sequences(tmp_path) -> None:
    (tmp_path / "g.item").write_bytes((REAL / "Games-6k.item").read_bytes())
    lines = (REAL / "Games-6k.test.inter").read_text().splitlines(keepends=True)[:501]
    (tmp_path / "g.inter").write_text("".join(lines))
    notes = Notes()
    splits = load_recbole(tmp_path, notes)
    assert notes.read == {"g.item": 16_859, "g.inter": 500} and [len(part) for part in splits[1:]] == [50, 50]
    last = {line.split("\t")[0]: line.rstrip("\n").split("\t")[2] for line in lines[1:]}
    hits = [e.candidate_ids[next(iter(e.relevant))] == last[e.group] for part in splits[1:] for e in part]
    assert sum(hits) > 95  # all but targets that are in their history already
