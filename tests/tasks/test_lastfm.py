"""LastFM in its three layouts: what is held out, and that neither order nor ids give it away."""

import json
from pathlib import Path
from random import Random

import pytest

from fgrpo.baselines.rankers import popularity
from fgrpo.cli.main import main
from fgrpo.config import Config, KitError
from fgrpo.tasks import load_task, resolved
from fgrpo.tasks.lastfm import lastfm_task, load_lastfm, sessions_of
from fgrpo.tasks.reading import Notes, catalogue

REAL = Path(__file__).parents[3] / "shared/data/lastfm"
ARTISTS = [f"{n}" for n in range(70_001, 70_061)]  # ids that are part of no name
NAMES = {a: f"Band{'::' if n == 3 else ' '}{chr(65 + n % 26)}{chr(65 + n // 26 % 2)}" for n, a in enumerate(ARTISTS)}
PLAYED = {str(user): Random(user).sample(ARTISTS, 12) for user in range(501, 531)} | {"599": ARTISTS[:1]}


def hetrec(folder: Path) -> Path:
    lines = ["id\tname\turl\tpictureURL", *(f"{a}\t{n} é\thttp://x/{a}\t" for a, n in NAMES.items())]
    (folder / "artists.dat").write_bytes("\r\n".join(lines).encode())
    lines = ["userID\tartistID\tweight"]
    lines += [f"{u}\t{a}\t{900 - n}" for u, artists in PLAYED.items() for n, a in enumerate(artists)]
    (folder / "user_artists.dat").write_bytes("\r\n".join(lines).encode())  # CRLF, and none at the end
    (folder / "tags.dat").write_bytes(b"tagID\ttagValue\r\n1\t\xff\xfe")  # not UTF-8, and not read
    return folder


def llara(folder: Path, **val: object) -> Path:
    (folder / "id2name.txt").write_text("".join(f"{a}::{n}\n" for a, n in NAMES.items()))
    sessions = [sorted(int(a) for a in artists) for artists in PLAYED.values()]
    rows = [{"session": n, "items": items} for n, items in enumerate(sessions)]
    (folder / "train_sessions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    rows = []
    for n in range(6):
        ids = [int(a) for a in ARTISTS[n : n + 30]]
        pool = ids[10:]
        rows.append({"id": n, "history": ids[:10], "next": pool[0], "candidates": pool[::-1], "relevant": [19], **val})
    (folder / "val.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_hetrec_holds_out_one_artist_of_each_user(tmp_path) -> None:
    notes = Notes()
    splits = load_lastfm(hetrec(tmp_path), notes)
    users = [{e.id.split("-")[0] for e in part} for part in splits]
    assert [len(u) for u in users] == [24, 3, 3] and len(set.union(*users)) == 30
    assert notes.to_dict() == {"user_artists.dat": {"read": 361, "dropped": {"the user's only artist": 1}}}
    for e in (e for part in splits for e in part):
        played, (positive,) = set(PLAYED[e.id.split("-")[0]]), e.relevant
        assert len(e.candidates) == len(set(e.candidate_ids)) == 20 and 1 <= len(e.history) <= 10
        # no negative is an artist that the user played: it would be a wrong label
        assert set(e.candidate_ids) & played == {e.candidate_ids[positive]} and set(e.history_ids) < played
        assert e.candidate_ids[positive] not in e.history_ids
    assert all(len(e.history) == 10 for part in splits[1:] for e in part)
    assert "Band::DA é" in {c for e in splits.train for c in e.candidates}


def test_llara_keeps_the_published_pools(tmp_path) -> None:
    splits = load_lastfm(llara(tmp_path))
    assert [e.id for e in splits.validation] == ["val-0", "val-1", "val-2"] and len(splits.test) == 3
    for n, e in enumerate([*splits.validation, *splits.test]):
        ids = ARTISTS[n : n + 30]
        assert e.candidate_ids == tuple(ids[10:][::-1]) and e.relevant == {19}
        assert set(e.history_ids) == set(ids[:10]) and e.history_ids != tuple(ids[:10])
    assert len({e.group for e in splits.train}) == 30  # the session of one artist gives none
    assert "Band::DA" in {c for e in splits.train for c in e.candidates}


@pytest.mark.parametrize("layout", [hetrec, llara])
def test_the_order_of_ids_tells_nothing(tmp_path, layout) -> None:
    """Sessions stand in ascending id. A loader that kept that order would make every positive larger than its history."""
    splits = load_lastfm(layout(tmp_path))
    larger = [max(e.history_ids) < e.candidate_ids[next(iter(e.relevant))] for e in splits.train]
    ascending = [list(e.history_ids) == sorted(e.history_ids) for e in splits.train if len(e.history) > 7]
    assert sum(larger) / len(larger) < 0.4 and not any(ascending)


@pytest.mark.parametrize("layout", [hetrec, llara])
def test_no_text_holds_an_id(tmp_path, layout) -> None:
    for part in load_lastfm(layout(tmp_path)):
        for e in part:
            assert set(e.candidate_ids) <= set(ARTISTS) and [NAMES[i] for i in e.history_ids] == [
                h.removesuffix(" é") for h in e.history
            ]
            text = "\n".join((e.query, *e.history, *e.candidates))
            assert not [a for a in ARTISTS if a in text]


def test_the_two_layouts_are_two_tasks(tmp_path, capsys, monkeypatch) -> None:
    """Scores on one cannot be compared with scores on the other, so what is recorded says which it was."""
    for name, layout in (("lastfm-hetrec", hetrec), ("lastfm-llara", llara)):
        folder = tmp_path / name
        folder.mkdir()
        layout(folder)
        config = Config(task="lastfm", data=str(folder))
        assert resolved(config).task == name and resolved(Config(task=name, data=str(folder))).task == name
        assert load_task(config) == load_task(resolved(config))
        assert main(["data", "stats", "--task", "lastfm", "--data", str(folder), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["task"] == name
        other = {"lastfm-hetrec": "lastfm-llara", "lastfm-llara": "lastfm-hetrec"}[name]
        with pytest.raises(KitError, match=rf"no {other} here \(it holds .*\); --data must be the folder of"):
            load_task(Config(task=other, data=str(folder)))
    tiny = ["--sft", "--sft-steps", "1", "--sft-batch", "2", "--hidden-size", "16", "--layers", "1", "--heads", "2"]
    argv = ["train", "--task", "lastfm", "--data", str(tmp_path / "lastfm-llara"), "--out", str(tmp_path / "run")]
    assert main([*argv, *tiny, "--json"]) == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["task"] == "lastfm-llara"
    assert json.loads(capsys.readouterr().out)["task"] == "lastfm-llara"


@pytest.mark.parametrize("layout", [hetrec, llara])
def test_examples_of_one_listener_are_one_group(tmp_path, layout) -> None:
    splits = load_lastfm(layout(tmp_path))
    for part in splits:
        for e in part:
            assert e.group and (part is splits.train or e.id.startswith(e.group))
    assert len({e.group for e in splits.train}) < len(splits.train)


def test_artists_of_one_name_stay_two_items(tmp_path, config) -> None:
    from fgrpo.policy import Policy

    splits = load_lastfm(hetrec(tmp_path))
    assert len(set(NAMES.values())) < len(catalogue(splits)) == len(ARTISTS)
    assert any(len(set(e.candidates)) < 20 for e in splits.train)
    Policy.tiny(catalogue(splits), config.model).encode(splits.train)


@pytest.mark.parametrize("layout", [hetrec, llara])
def test_candidates_are_fixed_by_seed(tmp_path, layout) -> None:
    layout(tmp_path)
    assert load_lastfm(tmp_path) == load_lastfm(tmp_path) != load_lastfm(tmp_path, seed=1)


@pytest.mark.parametrize(
    ("layout", "file", "text", "message"),
    [
        (
            hetrec,
            "user_artists.dat",
            "userID\tartistID\tweight\n2\t70001\n",
            r"user_artists\.dat, line 2: expected 3 columns, found 2",
        ),
        (
            hetrec,
            "user_artists.dat",
            "userID\tartistID\tweight\n2\t70001\tmany\n",
            r"line 2: field 'weight' must be a whole number",
        ),
        (
            hetrec,
            "user_artists.dat",
            "userID\tartistID\tweight\n2\t5\t1\n",
            r"line 2: field 'artistID': artist '5' is not in artists\.dat",
        ),
        (
            hetrec,
            "user_artists.dat",
            "userID\tartistID\tweight\n2\t70001\t1\n",
            r"0 users with .* too few .*1 left out \(the user's only artist: 1",
        ),
        (hetrec, "artists.dat", b"id\tname\n70001\ta\n70001\tb\n", r"artists\.dat, line 3: id '70001' appears twice"),
        (hetrec, "artists.dat", b"\xff\xfei\x00d\x00", r"artists\.dat: is UTF-16 or UTF-32 text: save it as UTF-8"),
        (llara, "id2name.txt", "70001:A\n", r"id2name\.txt, line 1: the header must name each of the columns id, name"),
        (llara, "id2name.txt", "70001::A\n70001::B\n", r"line 2: id '70001' appears twice"),
        (llara, "train_sessions.jsonl", '{"items": [1]}\n', r"line 1: field 'items': artist '1' is not in id2name"),
        (llara, "train_sessions.jsonl", '{"items": 1}\n', r"line 1: field 'items' must be a list"),
        (llara, "train_sessions.jsonl", "[]\n", r"train_sessions\.jsonl: no session of two artists or more"),
        (llara, "train_sessions.jsonl", "{\n", r"train_sessions\.jsonl, line 1: not a JSON object"),
        (llara, "val.jsonl", "7\n", r"val\.jsonl, line 1: expected a JSON object, found int"),
    ],
)
def test_bad_files_are_named(tmp_path, layout, file, text, message) -> None:
    layout(tmp_path)
    (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(KitError, match=message):
        load_lastfm(tmp_path)


@pytest.mark.parametrize(
    ("val", "message"),
    [
        ({"relevant": [20]}, r"val\.jsonl, line 1: field 'relevant' must hold one index"),
        ({"relevant": [1, 2]}, r"field 'relevant' must hold one index"),
        ({"relevant": []}, r"field 'relevant' must hold one index"),
        ({"relevant": [True]}, r"field 'relevant' must hold one index"),
        ({"next": 70_060}, r"field 'next' must be the artist that 'relevant' points at"),
        (
            {"candidates": [70_001, 70_001], "next": 70_001, "relevant": [0]},
            r"field 'candidates' holds an artist twice",
        ),
    ],
)
def test_bad_rows_of_held_out_users_are_named(tmp_path, val, message) -> None:
    with pytest.raises(KitError, match=message):
        load_lastfm(llara(tmp_path, **val))


def test_a_folder_without_lastfm(tmp_path) -> None:
    with pytest.raises(KitError, match=r"no LastFM here \(it is empty\); --data must be"):
        load_lastfm(tmp_path)
    with pytest.raises(KitError, match=r"task lastfm needs its data"):
        load_task(Config(task="lastfm"))


def sdpo_session(n: int) -> list[str]:
    return Random(n).sample([NAMES[a].replace("::", " ") for a in ARTISTS[:20]], 13)


def sdpo(folder: Path, sessions: int = 4, name: str = "lastfm-val.json", **change: object) -> Path:
    """Every prefix (3 to 10, then the last 10) of sessions of 13 artists; one name is in no session."""
    rows = []
    for n in range(sessions):
        artists = sdpo_session(n)
        artists[5] = "Plus 44" if n == 1 else artists[5]
        for end in range(3, 13):
            others = [NAMES[a].replace("::", " ") for a in ARTISTS[20 + n : 39 + n]]
            row = {"historyList": "::".join(artists[max(0, end - 10) : end]), "itemList": [artists[end], *others]}
            rows.append(row | {"trueSelection": artists[end]} | change)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(rows, indent=4))
    return folder


def sessions_beside(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    llara(folder)
    names = "".join(f"{a}::{n.replace('::', ' ')}\n" for a, n in NAMES.items())
    (folder / "id2name.txt").write_text(names)
    return folder


def test_sdpo_splits_sessions_and_keeps_unknown_names(tmp_path) -> None:
    sdpo(tmp_path / "sdpo"), sessions_beside(tmp_path / "llara")
    notes = Notes()
    splits = load_lastfm(tmp_path, notes)
    assert [len(splits.validation), len(splits.test)] == [20, 20]
    assert [sorted({e.group for e in part}) for part in splits[1:]] == [["val-0", "val-1"], ["val-2", "val-3"]]
    rows = json.loads((tmp_path / "sdpo/lastfm-val.json").read_text())
    for row, e in zip(rows, [*splits.validation, *splits.test], strict=True):
        (positive,) = e.relevant
        assert e.candidates[positive] == row["trueSelection"] and sorted(e.candidates) == sorted(row["itemList"])
        assert sorted(e.history) == sorted(row["historyList"].split("::")) and e.candidate_keys == e.candidates
    # neither the order of a history nor the place in the pool gives the answer away
    held = [*splits.validation, *splits.test]
    assert not any(list(e.history) == row["historyList"].split("::") for row, e in zip(rows, held, strict=True)
                   if len(e.history) > 8)  # fmt: skip
    assert len({next(iter(e.relevant)) for e in held}) > 10
    assert "Plus 44" in catalogue(splits) and "Plus 44" not in splits.train.items
    assert notes.remarks == {
        "id2name.txt: ids that share a name, and are one artist here": 60 - len(splits.train.items),
        "lastfm-val.json: rows that hold an artist who is not in the training data": 8,
        "lastfm-val.json: sessions, split in halves for validation and test as lastfm-test.json is missing": 4,
    }
    assert notes.read == {"train_sessions.jsonl": 31, "lastfm-val.json": 40}
    assert notes.dropped == {"train_sessions.jsonl": {"session of fewer than two artists": 1}}
    assert load_lastfm(tmp_path / "sdpo") == splits  # sessions are found beside the folder as well
    assert load_lastfm(tmp_path, seed=1).test != splits.test


def test_sdpo_with_test_rows_and_sessions_of_its_own(tmp_path) -> None:
    tmp_path = tmp_path / "a/b"
    sdpo(tmp_path), sdpo(tmp_path, 2, "lastfm-test.json"), sdpo(tmp_path, 3, "lastfm-train.json")
    splits = load_lastfm(tmp_path)
    assert [len({e.group for e in part}) for part in splits] == [3, 4, 2] and len(splits.test) == 20
    assert splits.train.sequences["session-0"] == sdpo_session(0)
    (tmp_path / "lastfm-train.json").unlink()
    with pytest.raises(KitError, match=r"no training sessions: put train_sessions\.jsonl and id2name\.txt"):
        load_lastfm(tmp_path)
    sdpo(tmp_path, 1), (tmp_path / "lastfm-test.json").unlink(), sessions_beside(tmp_path / "a")
    with pytest.raises(KitError, match=r"1 session is too few for validation and test"):
        load_lastfm(tmp_path)
    sessions_beside(tmp_path / "b")
    with pytest.raises(KitError, match=r"train_sessions\.jsonl is in several folders \(.*a, .*b\): keep one"):
        load_lastfm(tmp_path)


def test_sessions_are_found_in_any_order() -> None:
    sessions = [[f"{s}{n}" for n in range(size)] for s, size in zip("abc", (4, 15, 6), strict=True)]
    rows = [(tuple(s[max(0, end - 10) : end]), s[end], n) for n, s in enumerate(sessions) for end in range(3, len(s))]
    rows.append((("a0", "a1", "a2"), "z", 3))  # begins as another session does
    for seed in range(5):
        mixed = Random(seed).sample(rows, len(rows))
        found = sessions_of([row[:2] for row in mixed])
        assert len({*zip(found, (row[2] for row in mixed), strict=True)}) == 4 == len({*found})
    assert sessions_of([(("a", "b"), "c"), (("b", "c"), "a"), (("c", "a"), "b")]) == [0, 0, 0]  # a circle ends


def test_a_folder_of_several_lastfm_layouts_must_be_named(tmp_path) -> None:
    sessions_beside(sdpo(tmp_path / "x"))
    with pytest.raises(KitError, match="several data sets: name one with --task lastfm-llara or lastfm-sdpo"):
        lastfm_task(tmp_path / "x")
    assert lastfm_task(tmp_path / "x", "lastfm-llara") == "lastfm-llara"
    (tmp_path / "x/val.jsonl").unlink()  # LLaRA's sessions alone are what S-DPO's rows are trained with
    assert lastfm_task(tmp_path / "x") == lastfm_task(tmp_path) == "lastfm-sdpo"
    with pytest.raises(KitError, match="no lastfm-hetrec here"):
        lastfm_task(tmp_path, "lastfm-hetrec")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"historyList": ["A"]}, r"lastfm-val\.json, row 1: field 'historyList' must be a string"),
        ({"historyList": "A::A"}, r"field 'historyList' must be names of different artists"),
        ({"historyList": ""}, r"field 'historyList' must be names of different artists"),
        ({"itemList": ["A", 7]}, r"field 'itemList' must be a list of names"),
        ({"itemList": ["A", "A"]}, r"field 'itemList' must hold two or more names, and none twice"),
        ({"trueSelection": "Nobody"}, r"field 'trueSelection' is not in 'itemList'"),
        ({"trueSelection": "B", "historyList": "A::B", "itemList": ["B", "C"]}, r"'trueSelection' is in 'historyList'"),
        ({"trueSelection": None}, r"row 1: field 'trueSelection' must be a string, found null\."),
    ],
)
def test_bad_rows_of_sdpo_are_named(tmp_path, change, message) -> None:
    sessions_beside(tmp_path / "llara")
    with pytest.raises(KitError, match=message):
        load_lastfm(sdpo(tmp_path, **change))


@pytest.mark.skipif(not REAL.is_dir(), reason="LastFM is not beside the project (../shared/data)")
def test_the_real_rows_of_sdpo() -> None:
    """2,767 rows are prefixes of 122 sessions; 82 rows hold two names in another spelling than LLaRA's."""
    notes = Notes()
    splits, items = load_task(Config(task="lastfm", data=str(REAL)), notes=notes)
    assert [len(splits.validation), len(splits.test)] == [1576, 1191] and len(items) == 4608
    assert [len({e.group for e in part}) for part in splits] == [976, 61, 61]
    assert set(notes.remarks.values()) == {82, 122} and set(catalogue(splits)) == {*items}
    hits = sum(order[0] in e.relevant for order, e in zip(popularity(splits), splits.test, strict=True))
    assert 0.05 < hits / len(splits.test) < 0.3


@pytest.mark.skipif(not REAL.is_dir(), reason="LastFM is not beside the project (../shared/data)")
def test_popularity_on_the_real_validation_rows() -> None:
    """122 rows, so that standard errors are 0.02 and 0.04. The leak "next larger id" alone would give HR@1 0.2 to 0.3."""
    splits = load_lastfm(REAL / "llara")
    both = splits._replace(test=splits.validation + splits.test)
    ranks = [order.index(*e.relevant) for order, e in zip(popularity(both), both.test, strict=True)]
    assert len(ranks) == 122
    assert abs(sum(r < 1 for r in ranks) / 122 - 0.04) < 0.05 and abs(sum(r < 5 for r in ranks) / 122 - 0.30) < 0.1


@pytest.mark.skipif(not REAL.is_dir(), reason="LastFM is not beside the project (../shared/data)")
def test_the_real_hetrec2011(capsys) -> None:
    splits, items = load_task(Config(task="lastfm", data=str(REAL / "hetrec2011-lastfm-2k")))
    assert [len({e.id.split("-")[0] for e in part}) for part in splits] == [1507, 188, 189] and len(items) == 17_632
    assert {len(e.relevant) for part in splits for e in part} == {1}
    assert capsys.readouterr().err == ("user_artists.dat: 92,834 rows read, 8 left out (the user's only artist: 8)\n")
