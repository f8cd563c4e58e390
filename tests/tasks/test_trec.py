"""TREC runs and judgments as MS MARCO has them, read as a task; and greedy lists written as a run."""

from pathlib import Path

import pytest

from fgrpo.config import Config, KitError
from fgrpo.data import Example
from fgrpo.prompt import Output
from fgrpo.tasks import load_task
from fgrpo.tasks.reading import Notes
from fgrpo.tasks.retrieval import check_trec, load_retrieval, trec_files

RUN = "x.run"


def trec(folder: Path, queries: int = 10, documents: int = 8) -> Path:
    """Query n: eight documents, listed worst first, of which the second best (d{n}-1) has grade 3 and d{n}-5 grade 1."""
    folder.mkdir(exist_ok=True)
    (folder / "queries.tsv").write_text("".join(f"{n}\tquestion {n}\n" for n in range(queries)))
    every = [f"d{n}-{d}" for n in range(queries) for d in range(documents)]
    (folder / "collection.tsv").write_text("".join(f"{key}\ttext of {key}\twith a tab\n" for key in every))
    (folder / "qrels.txt").write_text(
        "".join(f"{n} 0 d{n}-1 3\n{n} 0 d{n}-5 1\n{n} 0 d{n}-0 0\n{n} 0 d{n}-2 -2\n" for n in range(queries))
    )
    rows = [f"{n} Q0 d{n}-{d} {d + 1} {-d / 2} mine\n" for d in reversed(range(documents)) for n in range(queries)]
    (folder / RUN).write_text("".join(rows))
    return folder


def test_pools_are_the_first_of_the_run_by_score(tmp_path) -> None:
    notes = Notes()
    splits = load_retrieval("trec", trec(tmp_path), notes, pool=5)
    assert [len(part) for part in splits] == [8, 1, 1]
    for e in (e for part in splits for e in part):
        assert e.candidate_ids == tuple(f"d{e.id}-{d}" for d in range(5))
        assert e.candidates[2] == f"text of d{e.id}-2\twith a tab" and e.query == f"question {e.id}"
        assert e.relevant == {1} and e.gains == (0, 3, 0, 0, 0)  # -2 is no gain
    assert notes.dropped == {RUN: {"below the first 5 of its query": 30}}
    assert notes.remarks == {"qrels.txt: relevant documents that no pool holds, of 20": 10}
    assert notes.read == {"queries.tsv": 10, "qrels.txt": 40, RUN: 80, "collection.tsv": 80}


def test_ties_go_by_rank_and_a_long_run_is_cut_on_the_way(tmp_path) -> None:
    folder = trec(tmp_path)
    rows = [f"{n}\tQ0\td{n}-{d % 8}{'x' * (d // 8)}\t{1000 - d}\t{0.5 if d > 100 else 0.25:g}\tt\n"
            for n in range(10) for d in range(120)]  # fmt: skip
    (folder / RUN).write_text("".join(rows))
    every = {row.split()[2] for row in rows}
    (folder / "collection.tsv").write_text("".join(f"{key}\tt {key}\n" for key in sorted(every)))
    judged = "".join(f"{n} 0 d{n}-7{'x' * 14} 1\n" for n in range(10))
    (folder / "qrels.txt").write_text(judged)
    splits = load_retrieval("trec", folder, pool=5)
    # score 0.5 from d = 101 on, and the best rank is that of d = 119
    assert splits.test[0].candidate_ids == tuple(
        f"d{splits.test[0].id}-{d % 8}{'x' * (d // 8)}" for d in range(119, 114, -1)
    )
    assert all(e.relevant == {0} and e.gains == () for part in splits for e in part)


def test_queries_and_documents_that_are_lost_are_counted(tmp_path) -> None:
    folder, notes = trec(tmp_path, queries=14), Notes()
    lines = (folder / "collection.tsv").read_text().splitlines(keepends=True)
    gone = ("d0-1\t", "d0-5\t", "d1-3\t")
    (folder / "collection.tsv").write_text("".join(line for line in lines if not line.startswith(gone)))
    judged = (folder / "qrels.txt").read_text().splitlines(keepends=True)
    (folder / "qrels.txt").write_text("".join(line for line in judged if not line.startswith("13 ")))
    run = (folder / RUN).read_text().splitlines(keepends=True)
    (folder / RUN).write_text("".join(line for line in run if not line.startswith("12 ")))
    splits = load_retrieval("trec", folder, notes)
    found = {e.id: e for part in splits for e in part}
    assert found.keys() == {str(n) for n in range(1, 12)} and len(found["1"].candidates) == 7
    assert notes.dropped == {RUN: {"row of a query without judgments": 8}}
    assert notes.remarks["collection.tsv: documents without a text, which no pool holds, of 96"] == 3
    assert notes.remarks["qrels.txt: queries left out, of 13: no relevant document in the pool, or no other"] == 2
    assert notes.remarks["qrels.txt: relevant documents that no pool holds, of 26"] == 4


def test_latin_text_is_read_and_remarked(tmp_path) -> None:
    folder, notes = trec(tmp_path), Notes()
    (folder / "queries.tsv").write_bytes("".join(f"{n}\tcafé {n}\r\n" for n in range(10)).encode("iso-8859-1"))
    assert load_retrieval("trec", folder, notes).test[0].query.startswith("café ")
    assert notes.remarks["queries.tsv is not UTF-8 and was read as Latin-1; first byte that is not UTF-8"] == 5


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (RUN, "0 Q0 d0-1 1 0.5\n", r"x\.run, line 1: expected the columns qid, Q0, docid, rank, score, tag, found 5: '0 Q0"),
        (RUN, "0 Q0 d0-1 1 0.5 my tag\n", r"x\.run, line 1: expected the columns .* found 7"),
        (RUN, "\n0 Q0 d0-1 1 nan t\n", r"x\.run, line 2: field 'score' must be a finite number, found 'nan'"),
        (RUN, "0 Q0 d0-1 1 inf t\n", "line 1: field 'score' must be a finite number"),
        (RUN, "0 Q0 d0-1 1 high t\n", "line 1: field 'score' must be a finite number, found 'high'"),
        (RUN, "0 Q0 d0-1 first 1 t\n", "line 1: field 'rank' must be a whole number, found 'first'"),
        (RUN, "0 Q0 d0-1 1 1 t\n0 Q0 d0-1 2 0 t\n", r"x\.run: query '0' lists document 'd0-1' twice"),
        (RUN, "99 Q0 d0-1 1 1 t\n", "0 examples are too few"),
        (RUN, None, r"no run here \(it holds collection\.tsv, .*\); --data must be a folder with \*\.run or run\.\*"),
        ("qrels.txt", "0 0 d0-1\n", r"qrels\.txt, line 1: expected the columns qid, iter, docid, rel, found 3"),
        ("qrels.txt", "0 0 d0-1 0.5\n", r"qrels\.txt, line 1: field 'rel' must be a whole number"),
        ("qrels.txt", "99 0 d0-1 1\n", r"qrels\.txt, line 1: query '99' has no text"),
        ("qrels2.txt", "0 0 d0-1 1\n", r"qrels\.txt, qrels2\.txt: keep one file of judgments"),
        ("queries.tsv", "0 question\n", r"queries\.tsv, line 1: expected the columns id, text, found 1"),
        ("queries.tsv", "\tquestion\n", r"queries\.tsv, line 1: expected the columns id, text"),
        ("queries.tsv", "0\tq\n0\tq\n", r"queries\.tsv, line 2: id '0' appears twice"),
        ("queries.tsv", "".join(f"{n}\t{' ' if n == 3 else 'q'}\n" for n in range(10)), "query '3' has no text"),
        ("collection.tsv", "d0-0\ta\nd0-0\tb\n", r"collection\.tsv, line 2: id 'd0-0' appears twice"),
        ("corpus.tsv", "d0-0\ta\n", r"collection\.tsv, corpus\.tsv: keep one file of documents"),
        ("collection.tsv", None, r"no corpus here"),
    ],
)  # fmt: skip
def test_broken_files(tmp_path, file, text, message) -> None:
    path = trec(tmp_path) / file
    path.write_text(text) if text is not None else path.unlink()
    with pytest.raises(KitError, match=message):
        load_task(Config(task="trec", data=str(tmp_path)))


def test_a_line_without_an_end_is_not_read_to_its_end(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("fgrpo.tasks.files.LINE_LIMIT", 1000)
    with (trec(tmp_path) / "collection.tsv").open("a") as file:
        file.write("x" * 2000)
    with pytest.raises(KitError, match=r"collection\.tsv, line 81: longer than 1,000 characters"):
        load_retrieval("trec", tmp_path)


EXAMPLES = [
    Example("q1", "?", (), ("a", "b", "c d"), frozenset([0, 2]), gains=(2.0, 0.0, 1.0)),
    Example("q2", "?", (), ("a", "b", "c"), frozenset([1]), (), ("x", "y", "z")),
    Example("q3", "?", (), ("a", "b"), frozenset([1])),
]


def test_lists_are_written_with_the_ranking_first() -> None:
    files = trec_files(
        [Output((2, 1, 0), (0, 2)), Output((2,), (), "duplicate"), Output((), (), "malformed")], EXAMPLES, "a  b"
    )
    assert files[""] == "q1 Q0 c00 1 3 a-b\nq1 Q0 c02 2 2 a-b\nq1 Q0 c01 3 1 a-b\nq2 Q0 z 1 1 a-b\n"
    assert files[".ranked"] == "q1 Q0 c00 1 2 a-b\nq1 Q0 c02 2 1 a-b\n"
    assert files[".qrels"].splitlines() == [
        "q1 0 c00 2", "q1 0 c01 0", "q1 0 c02 1", "q2 0 x 0", "q2 0 y 1", "q2 0 z 0", "q3 0 c00 0", "q3 0 c01 1"
    ]  # fmt: skip


def test_what_the_formats_cannot_hold_is_refused() -> None:
    check_trec(EXAMPLES)
    for fields, message in (
        ({"candidate_ids": ("x", "y z", "w")}, "id 'y z' of query 'q' has white space"),
        ({"candidate_ids": ("x", "y\u2003z", "w")}, "has white space"),
        ({"id": "q 1"}, "id 'q 1' of query 'q 1' has white space"),
        ({"gains": (0.5, 0.0, 0.0)}, "field 'gains' of query 'q' must hold whole numbers"),
    ):
        values = {"id": "q", "query": "?", "history": (), "candidates": ("a", "b", "c"), "relevant": frozenset([0])}
        with pytest.raises(KitError, match=message):
            check_trec([Example(**values | fields)])
    with pytest.raises(KitError, match="two queries have the id 'q2'"):
        check_trec([EXAMPLES[1], EXAMPLES[1]])


def test_what_is_written_is_read_as_a_task(tmp_path) -> None:
    """A run and its judgments, with the texts beside them, are a task again."""
    some = [
        Example(f"q{n}", f"text {n}", (), ("a", "b", "c"), frozenset([n % 3]), (), ("x", "y", "z")) for n in range(10)
    ]
    for suffix, text in trec_files([Output((2, 1, 0), (0,))] * 10, some, "t").items():
        (tmp_path / f"a.run{suffix}").write_text(text)
    (tmp_path / "queries.tsv").write_text("".join(f"{e.id}\t{e.query}\n" for e in some))
    (tmp_path / "corpus.tsv").write_text("x\ta\ny\tb\nz\tc\n")
    again = {e.id: e for part in load_retrieval("trec", tmp_path) for e in part}
    for e in some:
        (relevant,) = again[e.id].relevant
        assert again[e.id].candidate_ids == ("x", "z", "y") and again[e.id].query == e.query
        assert {e.candidate_ids[i] for i in e.relevant} == {again[e.id].candidate_ids[relevant]}
