"""HotpotQA and MuSiQue: hand-written files in the official schemas here, the real samples where they are at hand."""

import json
from pathlib import Path

import pytest

from fgrpo.baselines.rankers import popularity
from fgrpo.config import Config, KitError
from fgrpo.tasks import load_task
from fgrpo.tasks.multihop import load_hotpotqa, load_musique
from fgrpo.tasks.reading import CHUNK, Faults, Notes

REAL = Path(__file__).parents[3] / "shared/data"


def hotpot(number: int, passages: int = 10, **fields: object) -> dict:
    """A question with supports at places 1 and 4; Cairo stands with every question, so that padding must avoid it."""
    titles = ["Cairo", *(f"T{number}-{n}" for n in range(1, passages))]
    return {
        "_id": f"q{number}", "question": f"Question {number}?", "answer": "yes", "type": "bridge", "level": "easy",
        "supporting_facts": [[titles[1], 0], [titles[-1], 1], [titles[-1], 0]],
        "context": [[t, [f"{t} is a place.", " It is\u2009far."]] for t in titles], **fields,
    }  # fmt: skip


def hub(row: dict) -> dict:
    facts, context = row["supporting_facts"], row["context"]
    return {
        "id": row["_id"], "question": row["question"],
        "supporting_facts": {"title": [t for t, _ in facts], "sent_id": [n for _, n in facts]},
        "context": {"title": [t for t, _ in context], "sentences": [s for _, s in context]},
    }  # fmt: skip


def musique(number: int, **fields: object) -> dict:
    """Twenty paragraphs under only two titles."""
    paragraphs = [
        {
            "idx": n,
            "title": "Ohio" if n % 2 else "Iowa",
            "paragraph_text": f"Fact {n}.",
            "is_supporting": n in (3, 8, 9),
        }
        for n in range(20)
    ]
    return {"id": f"3hop__{number}", "question": f"Q{number}?", "paragraphs": paragraphs, "answerable": True, **fields}


def lines(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def array(path: Path, rows: list, **how: object) -> Path:
    path.write_text(json.dumps(rows, **how), encoding="utf-8")
    return path


def test_all_schemas_and_forms_give_the_same_examples(tmp_path) -> None:
    rows = [hotpot(n) for n in range(20)]
    first = load_hotpotqa(array(tmp_path / "a.json", rows))
    assert [len(part) for part in first] == [16, 2, 2]
    assert first == load_hotpotqa(lines(tmp_path / "b.jsonl", rows))
    assert first == load_hotpotqa(array(tmp_path / "c.json", rows, indent=1, ensure_ascii=False))
    assert first == load_hotpotqa(lines(tmp_path / "d.jsonl", [hub(r) for r in rows]))
    assert first == load_hotpotqa(array(tmp_path / "e.json", [hub(r) for r in rows]))
    assert first != load_hotpotqa(tmp_path / "a.json", seed=1)


def test_short_pools_are_padded_with_passages_of_other_titles(tmp_path) -> None:
    rows = [hotpot(n, passages=(10, 4, 2)[n % 3]) for n in range(60)]
    splits = load_hotpotqa(array(tmp_path / "a.json", rows))
    own_titles = [("Cairo", *(f"T{n}-" for n in some)) for some in (range(48), range(48, 54), range(54, 60))]
    for part, titles in zip(splits, own_titles, strict=True):
        for e in part:
            number = int(e.id[1:])
            own = [f"{t}: {t} is a place. It is\u2009far." for t, _ in rows[number]["context"]]
            assert len(e.candidates) == len(set(e.candidate_ids)) == len(set(e.candidates)) == 20 and e.history == ()
            assert set(own) <= set(e.candidates) and e.query == f"Question {number}?"
            # with 2 passages the second is both supports: still one relevant passage, whatever was padded
            assert {e.candidates[i] for i in e.relevant} == {own[1], own[-1]}
            # a pool padded from training would give its padding away: those passages were met before
            assert all(c.startswith(titles) for c in e.candidates)
    places = [i for e in splits.train for i in e.relevant]
    assert max(places) > 12 and min(places) < 4  # padding does not stand at the end, where it would give itself away


def test_questions_without_their_supports_are_counted(tmp_path, capsys) -> None:
    rows = [hotpot(n) for n in range(30)]
    for n in (0, 5, 7):
        rows[n]["supporting_facts"].append(["Elsewhere", 0])
    rows[8]["supporting_facts"], rows[9]["context"] = [], []
    splits, items = load_task(Config(task="hotpotqa", data=str(array(tmp_path / "wiki.json", rows))))
    assert sum(map(len, splits)) == 25 and len(items) == 250
    assert capsys.readouterr().err == (
        "wiki.json: 30 rows read, 5 left out (a supporting passage is absent: 4; no supporting fact: 1)\n"
        "wiki.json: validation pools of fewer than 20 passages, as the split has only 19 titles: 2\n"
    )


def test_a_folder_gives_training_and_test_from_their_own_files(tmp_path) -> None:
    array(tmp_path / "hotpot_train_v1.1.json", [hotpot(n) for n in range(20)])
    array(tmp_path / "hotpot_dev_distractor_v1.json", [hotpot(n) for n in range(20, 25)])
    array(tmp_path / "hotpot_dev_fullwiki_v1.json", [hotpot(n) for n in range(30, 33)])
    splits = load_hotpotqa(tmp_path)
    assert [[e.id for e in part] for part in splits[1:]] == [["q18", "q19"], [f"q{n}" for n in range(20, 25)]]
    (tmp_path / "hotpot_dev_distractor_v1.json").unlink()
    assert len(load_hotpotqa(tmp_path).test) == 3
    (tmp_path / "hotpot_dev_fullwiki_v1.json").unlink()
    with pytest.raises(KitError, match=r"no file hotpot_dev_distractor\*\.json\* or .* here"):
        load_hotpotqa(tmp_path)


def test_musique_is_keyed_by_index(tmp_path) -> None:
    for variant in ("ans", "full"):
        lines(tmp_path / f"musique_{variant}_v1.0_train.jsonl", [musique(n) for n in range(20)])
    lines(tmp_path / "musique_ans_v1.0_dev.jsonl", [musique(n) for n in range(20, 24)])
    array(tmp_path / "dev_test_singlehop_questions_v1.0.json", [])  # stands in the official archive
    notes = Notes()
    splits = load_musique(tmp_path, notes)
    assert [len(part) for part in splits] == [18, 2, 4]
    assert set(notes.read) == {"musique_ans_v1.0_train.jsonl", "musique_ans_v1.0_dev.jsonl"}
    e = splits.test[0]
    assert set(e.candidate_ids) == {f"3hop__20/{n}" for n in range(20)} and e.query == "Q20?" and e.history == ()
    assert {e.candidate_ids[i] for i in e.relevant} == {f"3hop__20/{n}" for n in (3, 8, 9)}
    assert e.candidates[e.candidate_ids.index("3hop__20/3")] == "Ohio: Fact 3."


def test_pools_are_shuffled_by_seed_and_question_alone(tmp_path) -> None:
    rows = [musique(n) for n in range(40)]
    splits = load_musique(lines(tmp_path / "a.jsonl", rows))
    examples = {e.id: e for part in splits for e in part}
    assert (
        len({e.candidate_ids.index(f"{e.id}/3") for e in examples.values()}) > 10
    )  # the published place gives nothing away
    again = load_musique(lines(tmp_path / "b.jsonl", rows[::-1][:20]))
    assert all(examples[e.id] == e for part in again for e in part)
    assert load_musique(tmp_path / "a.jsonl", seed=1) != splits
    hotpots = [hotpot(n, passages=20) for n in range(40)]
    found = {e.id: e for part in load_hotpotqa(array(tmp_path / "a.json", hotpots)) for e in part}
    assert all(found[e.id] == e for part in load_hotpotqa(array(tmp_path / "b.json", hotpots[::-1])) for e in part)


def test_popularity_knows_nothing_of_passages_that_were_never_met(tmp_path) -> None:
    splits = load_musique(lines(tmp_path / "a.jsonl", [musique(n) for n in range(300)]))
    splits = splits._replace(train=splits.train[:100], test=splits.train[100:])
    first = [min(order.index(i) for i in e.relevant) for order, e in zip(popularity(splits), splits.test, strict=True)]
    assert abs(sum(place == 0 for place in first) / len(first) - 3 / 20) < 0.09  # chance: 3 of 20, standard error 0.03
    assert [order for order in popularity(splits) if order == sorted(order)] == []


def test_a_folder_of_json_files_is_read(tmp_path) -> None:
    array(tmp_path / "musique_ans_v1.0_train.json", [musique(n) for n in range(20)])
    lines(tmp_path / "musique_ans_v1.0_dev.json", [musique(n) for n in range(20, 24)])
    assert [len(part) for part in load_musique(tmp_path)] == [18, 2, 4]
    array(tmp_path / "dev_test_singlehop_questions_v1.0.json", [])  # in the official archive
    assert [len(part) for part in load_musique(tmp_path)] == [18, 2, 4]


def test_reasons_are_kept_where_no_question_is_left(tmp_path) -> None:
    rows = [musique(n, answerable=False) for n in range(12)]
    with pytest.raises(
        KitError, match=r"no usable question in the file \(12 rows read, 12 left out \(not answerable: 12\)\)"
    ):
        load_musique(lines(tmp_path / "a.jsonl", rows))
    broken: list[str] = []
    with pytest.raises(
        KitError,
        match=r"\(broken row: 12\)\); by reason, field 'id' must be a string; it is missing, the row has 'question': 12; "
        r"the first broken row is .*line 1: field 'id' must be a string; it is missing, the row has 'question'\.$",
    ):
        load_musique(lines(tmp_path / "b.jsonl", [{"question": "?"}] * 12), None, broken)
    few = [hotpot(n, supporting_facts=[["Elsewhere", 0]] if n % 2 else [["Cairo", 0]]) for n in range(14)]
    with pytest.raises(
        KitError, match=r"7 examples are too few .* \(7 left out \(a supporting passage is absent: 7\)\)"
    ):
        load_hotpotqa(array(tmp_path / "c.json", few))


def test_questions_without_an_answer_are_counted(tmp_path) -> None:
    rows = [musique(n, answerable=n % 4 > 0) for n in range(20)]
    rows[0]["id"] = "3hop__1"  # in the full variant an unanswerable question has the id of its answerable twin
    for p in rows[1]["paragraphs"]:
        p["is_supporting"] = False
    notes = Notes()
    splits = load_musique(lines(tmp_path / "full.jsonl", rows), notes)
    assert sum(map(len, splits)) == 14
    lost = {"not answerable": 5, "no supporting paragraph": 1}
    assert notes.to_dict() == {"full.jsonl": {"read": 20, "dropped": lost}}


@pytest.mark.parametrize(
    ("load", "row", "message"),
    [
        (load_hotpotqa, [], r"row 3: expected a JSON object, found list\."),
        (load_hotpotqa, hotpot(2, _id=7), r"row 3: field '_id' must be a string"),
        (load_hotpotqa, hotpot(2, question=None), r"row 3: field 'question' must be a string"),
        (load_hotpotqa, hotpot(2, supporting_facts=[["T"]]), r"row 3: field 'supporting_facts' must be a list of"),
        (load_hotpotqa, hotpot(2, context={"title": ["T"], "sentences": []}), r"row 3: field 'context' must be a list of"),
        (load_hotpotqa, hotpot(2, context=[["T", [1]]]), r"row 3: field 'context' must hold lists of sentences"),
        (load_hotpotqa, hotpot(1), r"row 3: the id 'q1' is in an earlier row too"),
        (load_musique, {"id": "x", "question": "q"}, r"row 3: field 'paragraphs' must be a list"),
        (load_musique, musique(2, paragraphs=[{"title": "T"}]), r"row 3: field 'paragraphs', paragraph 0: field 'para"),
        (load_musique, musique(2, answerable="no"), r"row 3: field 'answerable' must be true or false"),
        (load_musique, musique(2, paragraphs=[musique(2)["paragraphs"][0]] * 2), r"row 3: field 'paragraphs' holds"),
        (load_musique, musique(2, paragraphs=musique(2)["paragraphs"][3:4]), r"row 3: field 'paragraphs' must hold two"),
        (load_musique, musique(2, paragraphs={"idx": [0]}), r"row 3: field 'paragraphs' must be a list, found an object"),
        (load_musique, musique(2, question=" "), r"row 3: field 'question' is blank"),
        (load_hotpotqa, hotpot(2, context=[*hotpot(2)["context"], ["", [" "]]]), r"row 3: passage 10 is blank"),
        (load_hotpotqa, {"row_idx": 0, "row": hotpot(2)}, r"row 3: field 'id' must be a string; it is missing, .*'row'"),
        (load_hotpotqa, hotpot(1, _id="q1", question="x" * 9), r"row 3: the id 'q1' is in an earlier row too"),
    ],
)  # fmt: skip
def test_bad_rows_are_named_or_skipped(tmp_path, load, row, message) -> None:
    make = hotpot if load is load_hotpotqa else musique
    rows = [make(0), make(1), row, *(make(n) for n in range(3, 14))]
    path = array(tmp_path / "a.json", rows)
    with pytest.raises(KitError, match=rf"a\.json, {message}.* Fix the row, or pass --skip-bad\."):
        load(path)
    bad: list[str] = []
    assert sum(map(len, load(path, None, bad))) == 13 and len(bad) == 1 and "a.json, row 3" in bad[0]


def test_a_line_of_another_encoding_can_be_skipped(tmp_path) -> None:
    rows = [json.dumps(musique(n, question=f"Où {n}?"), ensure_ascii=False) for n in range(12)]
    (tmp_path / "a.jsonl").write_bytes("\n".join(rows).encode() + b"\n" + rows[0].encode("iso-8859-1"))
    bad, notes = Faults(), Notes()
    assert sum(map(len, load_musique(tmp_path / "a.jsonl", notes, bad))) == 12
    assert bad == [f"{tmp_path / 'a.jsonl'}, line 13: not a JSON object (not UTF-8 text)"]
    with pytest.raises(KitError, match=r"line 13: not a JSON object \(not UTF-8 text\)\. Fix the row"):
        load_musique(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(hotpot(0, question="\ud83d")) + "\n", r"a\.json, line 1: not a JSON object \(not UTF-8 text\)"),
        ('{"_id": "a", "_id": "b"}\n', r"a\.json, line 1: not a JSON object \(a field appears twice\)"),
        ('{\n"data": []}', r"a\.json, line 1: not a JSON object \(it goes on in the next line\)"),
        ('[{"_id": "a"', r"a\.json, row 1: not a whole JSON object \(the file ends inside it\)"),
        ('[{"_id": "a', r"row 1: not a whole JSON object \(the file ends inside it\)"),
        ("[{}, {'a': 1}]" + " " * 99, r"row 1: field 'id' must be a string"),
        ("[{'a': 1}]" + " " * 99, r"row 1: not a whole JSON object \(.*(invalid char|symbol)[^\n]*$"),
        ("[" * 100_000, r"row 1: not a whole JSON object \(nested more than 100 deep\)"),
        ("[[1], " + "[" * 100_000, r"row 1: expected a JSON object, found list"),
        ('{"_id": "a"\n', r"a\.json, line 1: not a JSON object \(Expecting ',' delimiter\)"),
        ("", r"a\.json: is empty"),
        ("[]", r"a\.json: no usable question"),
        (b"[\xff]", r"a\.json: cannot be read"),
        (json.dumps([hotpot(0)] * 1), r"1 examples are too few to split"),
        (
            json.dumps([hotpot(n, passages=2) for n in range(10)]),
            r"9 different passages are too few to pad pools to 20",
        ),
    ],
)
def test_broken_files_are_named(tmp_path, text, message) -> None:
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(KitError, match=message):
        load_hotpotqa(tmp_path / "a.json")
    with pytest.raises(KitError, match=r"nowhere\.json: cannot be read"):
        load_hotpotqa(tmp_path / "nowhere.json")


def test_rows_may_stand_across_the_pieces_in_which_a_file_is_read(tmp_path) -> None:
    filler = "x" * (CHUNK // 7)
    rows = [hotpot(n, answer=filler) for n in range(30)]
    assert load_hotpotqa(array(tmp_path / "a.json", rows)) == load_hotpotqa(lines(tmp_path / "a.jsonl", rows))


def test_passages_that_stand_with_many_questions_are_kept_once(tmp_path) -> None:
    splits = load_hotpotqa(array(tmp_path / "a.json", [hotpot(n) for n in range(20)]))
    cairo = {id(c) for e in splits.train for c in e.candidates if c.startswith("Cairo")}
    assert len(cairo) == 1


real = pytest.mark.skipif(not REAL.is_dir(), reason="HotpotQA and MuSiQue are not beside the project (../shared/data)")


@real
def test_the_real_hotpotqa() -> None:
    splits = load_hotpotqa(REAL / "hotpotqa")
    assert [len(part) for part in splits] == [90, 10, 120]
    assert {len(e.candidates) for part in splits for e in part} == {20} == {len(set(e.candidates)) for e in splits.test}
    assert {len(e.relevant) for part in splits for e in part} == {2}
    notes = Notes()
    splits = load_hotpotqa(REAL / "hotpotqa/hotpot_dev_fullwiki_v1.sample.json", notes)
    assert sum(map(len, splits)) == 22 and notes.dropped["hotpot_dev_fullwiki_v1.sample.json"].total() == 38


@real
def test_the_real_musique() -> None:
    splits = load_musique(REAL / "musique")
    assert [len(part) for part in splits] == [90, 10, 120]
    titles = [[c.split(": ")[0] for c in e.candidates] for e in splits.test]
    assert sum(len(set(t)) < 20 for t in titles) > 60  # keyed by title, over half of the questions would lose passages
    assert {len(set(e.candidate_ids)) for part in splits for e in part} == {20}
    notes = Notes()
    load_musique(REAL / "musique/musique_full_v1.0_train.sample.jsonl", notes)
    assert notes.dropped["musique_full_v1.0_train.sample.jsonl"] == {"not answerable": 9}
