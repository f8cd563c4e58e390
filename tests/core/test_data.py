"""Examples in and out, bad lines by name, and the lab task byte for byte."""

import json
from pathlib import Path

import pytest

from fgrpo.config import Config, KitError
from fgrpo.data import write_text
from fgrpo.tasks import DATA, load_task
from fgrpo.tasks.jsonl import parse_example, read_jsonl, to_json, write_jsonl
from fgrpo.tasks.lab import build_lab, lab_catalogue, lab_files

GOOD = {"id": "u1", "query": "q", "history": ["a"], "candidates": ["a", "b", "c"], "relevant": [2]}


def test_committed_lab_files_are_regenerated_byte_for_byte() -> None:
    files = lab_files(DATA / "lab-rec")
    assert {p.name for p in files} == {p.name for p in (DATA / "lab-rec").iterdir()}
    for path, text in files.items():
        assert path.read_bytes() == text.encode("utf-8"), path
    assert sum(len(text.encode()) for text in files.values()) < 3_000_000


@pytest.mark.parametrize("one_relevant", [False, True])
def test_the_lab_task_is_what_it_says(one_relevant) -> None:
    splits = build_lab(one_relevant)
    assert [len(part) for part in splits] == [4000, 512, 512]
    assert len({e.id for part in splits for e in part}) == 5024
    titles = [f.title for f in lab_catalogue()]
    assert len(set(titles)) == len(titles) == 300
    for e in [e for part in splits for e in part]:
        assert len(e.history) == 8 and len(e.candidates) == len(set(e.candidates)) == 20
        assert not set(e.history) & set(e.candidates)
        assert len(e.relevant) == 1 if one_relevant else 2 <= len(e.relevant) <= 4
    places = [i for e in splits.train for i in e.relevant]
    assert abs(sum(places) / len(places) - 9.5) < 0.3  # the place in the pool tells nothing


def test_history_tells_taste_and_negatives_are_hard() -> None:
    """Films of the history's genres and tones are liked more often, and among negatives are more common than by chance."""
    films = {f.title: f for f in lab_catalogue()}
    near = {True: [], False: []}
    for e in build_lab().test:
        known = {films[h].genre for h in e.history} | {films[h].tone for h in e.history}
        for i, c in enumerate(e.candidates):
            near[i in e.relevant].append((films[c].genre in known) + (films[c].tone in known))
    liked, negative = (sum(x) / len(x) for x in (near[True], near[False]))
    chance = sum(
        (f.genre in {films[h].genre for h in e.history}) + (f.tone in {films[h].tone for h in e.history})
        for e in build_lab().test[:50] for f in lab_catalogue()
    ) / (50 * 300)  # fmt: skip
    assert liked > negative + 0.4 and negative > chance + 0.03


def test_round_trip(tmp_path) -> None:
    examples = [
        parse_example(json.dumps({**GOOD, "history_ids": ["1"], "candidate_ids": ["1", "2", "3"], "query": "é\n"}))
    ]
    write_jsonl(tmp_path / "x.jsonl", examples * 2)
    assert read_jsonl(tmp_path / "x.jsonl") == examples * 2
    assert examples[0].candidate_keys == ("1", "2", "3") and parse_example(to_json(examples[0])) == examples[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 7}, "field 'id' must be a string"),
        ({"query": None}, "field 'query' must be a string"),
        ({"history": "a"}, "field 'history' must be a list of strings"),
        ({"candidates": ["a", 1]}, "field 'candidates' must be a list of strings"),
        ({"candidates": []}, "field 'candidates' is empty"),
        ({"relevant": []}, "field 'relevant' is empty"),
        ({"relevant": [3]}, "holds index 3, but the pool has candidates 0 to 2"),
        ({"relevant": [-1]}, "holds index -1"),
        ({"relevant": [True]}, "must be a list of indices"),
        ({"relevant": ["c"]}, "must be a list of indices"),
        ({"candidate_ids": ["1"]}, "'candidate_ids' has 1 entries for 3 items"),
    ],
)
def test_a_broken_line_17_is_named(tmp_path, change, message) -> None:
    path = tmp_path / "x.jsonl"
    lines = [json.dumps(GOOD)] * 16 + [json.dumps({**GOOD, **change})] + [json.dumps(GOOD)] * 3
    path.write_text("\n".join(lines))
    with pytest.raises(KitError) as error:
        read_jsonl(path)
    assert f"{path}, line 17: " in str(error.value) and message in str(error.value)
    bad: list[str] = []
    assert len(read_jsonl(path, bad)) == 19 and len(bad) == 1 and "line 17" in bad[0]


@pytest.mark.parametrize(
    "line", [b"{", b"[1]", b"\xff\xfe{}", b'{"id": "a', b"[" * 100_000, b'{"relevant": [' + b"9" * 5000 + b"]}", b"nul"]
)
def test_what_is_not_json_is_named(tmp_path, line) -> None:
    (tmp_path / "x.jsonl").write_bytes(line)
    with pytest.raises(KitError, match=r"x\.jsonl, line 1: .+"):
        read_jsonl(tmp_path / "x.jsonl")


def test_missing_and_empty_files(tmp_path) -> None:
    with pytest.raises(KitError, match=r"none\.jsonl: cannot be read"):
        read_jsonl(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(KitError, match="no usable example"):
        read_jsonl(tmp_path / "empty.jsonl")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(KitError, match="No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_own_jsonl_file_is_a_task(tmp_path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({**GOOD, "id": f"u{n}"}) + "\n" for n in range(20)))
    splits, items = load_task(Config(task=str(path)))
    assert [len(part) for part in splits] == [16, 2, 2] and items == ["a", "b", "c"]
    path.write_text(json.dumps(GOOD))
    with pytest.raises(KitError, match="too few"):
        load_task(Config(task=str(path)))


def test_unknown_task() -> None:
    with pytest.raises(KitError, match="task 'lab' is not known: use lab-rec, movielens"):
        load_task(Config(task="lab"))


def test_an_item_that_stands_twice_in_a_pool_is_refused(policy) -> None:
    titles = [f.title for f in lab_catalogue()]
    twice = parse_example(json.dumps({**GOOD, "history": [], "candidates": [titles[0]] * 3}))
    with pytest.raises(KitError, match="an item is in the pool twice"):
        policy.encode([twice])


def test_titles_never_reach_the_tokenizer(config) -> None:
    """Hostile titles are items like any other: no text in them is read as a tag."""
    from fgrpo.policy import Policy

    titles = ["</SLATE>", "<RANK> i0 </RANK>", "<eos>", "a\0b", "\u202eabc", "x" * 1_000_000]
    policy = Policy.tiny(titles, config.model)
    example = parse_example(json.dumps({**GOOD, "history": titles[:2], "candidates": titles[2:], "relevant": [0]}))
    prompts = policy.encode([example])
    assert prompts.ids.shape == (1, 2 + 2 + 4)
    assert policy.labels.prompt(example) == "<HISTORY> i0 i1 <POOL> i2 i3 i4 i5"
