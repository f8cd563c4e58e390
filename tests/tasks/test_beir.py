"""BEIR folders: hand-written files in the official layout."""

import json
from pathlib import Path

import pytest

from fgrpo.cli.main import main
from fgrpo.config import Config, KitError
from fgrpo.tasks import load_task
from fgrpo.tasks.reading import Notes
from fgrpo.tasks.retrieval import load_retrieval

from .test_files import CAUSES

HEADER = "query-id\tcorpus-id\tscore\n"
TOPICS = 30


def beir(folder: Path, splits: dict[str, range] | None = None, run: str = "") -> Path:
    """30 queries with two relevant documents each (grades 2 and 1) and one that is judged irrelevant; 100 documents."""
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{n}", "title": f"T{n}" if n % 2 else "", "text": f"about {n}"} for n in range(100)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    queries = [{"_id": f"q{n}", "text": f"what is {n}?", "metadata": {}} for n in range(TOPICS)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    for name, part in (splits or {"test": range(TOPICS)}).items():
        rows = "".join(f"q{n}\td{3 * n}\t2\nq{n}\td{3 * n + 1}\t1\nq{n}\td{3 * n + 2}\t0\n" for n in part)
        (folder / f"qrels/{name}.tsv").write_text(HEADER + rows)
    if run:
        (folder / run).parent.mkdir(exist_ok=True)
        (folder / run).write_text(run_of(range(TOPICS)))
    return folder


def run_of(queries: range) -> str:
    """A run whose best document is the relevant one of grade 1; that of grade 2 is at rank 30."""
    rows = []
    for n in queries:
        others = [d for d in range(100) if d not in (3 * n, 3 * n + 1)][:40]
        order = [3 * n + 1, *others[:28], 3 * n, *others[28:]]
        rows += [f"q{n} Q0 d{d} {rank} {100 - rank}.5 bm25\n" for rank, d in enumerate(order, start=1)]
    return "".join(rows)


def test_easy_pools_hold_documents_of_the_same_split(tmp_path) -> None:
    notes = Notes()
    splits = load_retrieval("beir", beir(tmp_path / "mini"), notes)
    assert [len(part) for part in splits] == [24, 3, 3]
    assert {e.id for part in splits for e in part} == {f"q{n}" for n in range(TOPICS)}
    for part in splits:
        own = {f"d{3 * int(e.id[1:]) + n}" for e in part for n in (0, 1)}
        for e in part:
            n = int(e.id[1:])
            assert e.query == f"what is {n}?" and e.history == () and set(e.candidate_ids) <= own
            assert len(e.candidates) == len(set(e.candidate_ids)) == min(20, len(own))
            assert {e.candidate_ids[i]: e.gains[i] for i in e.relevant} == {f"d{3 * n}": 2.0, f"d{3 * n + 1}": 1.0}
            assert all(gain == 0 for i, gain in enumerate(e.gains) if i not in e.relevant)
            for key, text in zip(e.candidate_ids, e.candidates, strict=True):
                number = int(key[1:])
                assert text == (f"T{number}: about {number}" if number % 2 else f"about {number}")
    places = [i for e in splits.train for i in e.relevant]
    assert min(places) < 5 and max(places) > 14
    assert notes.remarks == {
        "mini: validation pools of fewer than 20 documents, of 3": 3,
        "mini: test pools of fewer than 20 documents, of 3": 3,
        "mini: queries with easy pools (no run here: random documents beside the relevant ones)": 30,
    }
    assert notes.read == {"queries.jsonl": 30, "test.tsv": 90, "corpus.jsonl": 100}
    assert load_retrieval("beir", tmp_path / "mini") == splits != load_retrieval("beir", tmp_path / "mini", seed=1)


def test_a_run_gives_the_pools_in_its_order(tmp_path) -> None:
    notes, folder = Notes(), beir(tmp_path, run="runs/test.trec")
    splits = load_retrieval("beir", folder, notes, pool=25)
    for e in (e for part in splits for e in part):
        n = int(e.id[1:])
        assert e.candidate_ids[0] == f"d{3 * n + 1}" and e.relevant == {0} and e.gains == ()  # all grades are 1
        assert list(e.candidate_ids[1:]) == [f"d{d}" for d in range(100) if d not in (3 * n, 3 * n + 1)][:24]
    assert notes.remarks == {"test.tsv: relevant documents that no pool holds, of 60": 30}
    assert notes.dropped["test.trec"] == {"below the first 25 of its query": 30 * (42 - 25)}
    (folder / "run.trec").write_text(run_of(range(5)))
    with pytest.raises(KitError, match=r"test\.trec: another run has query 'q0' too"):
        load_retrieval("beir", folder)


def test_files_of_judgments_are_splits(tmp_path, capsys) -> None:
    """Three files as they are, two cut the first, one is cut 8:1:1; a query of two splits stays in the later one."""
    whole = load_retrieval(
        "beir", beir(tmp_path / "a", {"train": range(12), "dev": range(12, 20), "test": range(20, 30)})
    )
    assert [[e.id for e in part] for part in whole] == [
        [f"q{n}" for n in part] for part in (range(12), range(12, 20), range(20, 30))
    ]
    two = beir(tmp_path / "b", {"train": range(22), "test": range(20, 30)})
    splits, items = load_task(Config(task="beir", data=str(two)))
    assert [len(part) for part in splits] == [18, 2, 10] and [e.id for e in splits.test] == [
        f"q{n}" for n in range(20, 30)
    ]
    assert {e.id for part in splits[:2] for e in part} == {f"q{n}" for n in range(20)} and len(items) == 60
    err = capsys.readouterr().err
    assert "train.tsv: 66 rows read, 6 left out (row of a query that a later split has too: 6)" in err
    (two / "qrels/valid.tsv").write_text(HEADER)
    (two / "qrels/dev.tsv").write_text(HEADER)
    with pytest.raises(KitError, match=r"dev\.tsv, valid\.tsv: keep one file of judgments for each split"):
        load_retrieval("beir", two)


def test_what_cannot_be_used_is_counted(tmp_path) -> None:
    folder, notes = beir(tmp_path, {"test": range(20)}), Notes()
    with (folder / "qrels/test.tsv").open("a") as file:
        file.write("q0\tgone\t1\nq1\td3\t2\nq20\td5\t-1\nq21\tgone\t1\n")
        file.write("".join(f"q22\td{n}\t1\n" for n in range(80, 95)))
    texts = (
        (folder / "corpus.jsonl").read_text().replace('"title": "T7", "text": "about 7"', '"title": null, "text": " "')
    )
    (folder / "corpus.jsonl").write_text(texts)  # d7 is relevant to q2
    splits = load_retrieval("beir", folder, notes)
    found = {e.id: e for part in splits for e in part}
    assert len(found) == 21 and not {"q20", "q21"} & found.keys()
    assert len(found["q2"].relevant) == 1 and len(found["q22"].relevant) == 10  # half of the pool
    assert all(e.candidate_ids.count("d7") == 0 for e in found.values())
    assert notes.dropped == {"test.tsv": {"row given twice": 1}}
    assert notes.remarks["corpus.jsonl: documents without a text, which no pool holds, of 56"] == 2
    assert notes.remarks["test.tsv: relevant documents that no pool holds, of 57"] == 8
    what = "test.tsv: queries left out, of 23: no relevant document in the pool, or no other"
    assert notes.remarks[what] == 2


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("qrels/test.tsv", HEADER + "q0\td0\thigh\n", r"test\.tsv, line 2: field 'score' must be a whole number"),
        (
            "qrels/test.tsv",
            HEADER + "q0\td0\t99999999\n",
            r"line 2: field 'score' must be a whole number up to 1,000,000",
        ),
        ("qrels/test.tsv", HEADER + "q0\td0\n", r"test\.tsv, line 2: expected 3 columns, found 2"),
        (
            "qrels/test.tsv",
            "q0\td0\t1\n",
            r"test\.tsv, line 1: the header must name each of the columns query-id, corpus",
        ),
        ("qrels/test.tsv", HEADER + "q99\td0\t1\n", r"test\.tsv, line 2: query 'q99' has no text"),
        (
            "qrels/test.tsv",
            HEADER + "q0\td0\t1\nq0\td0\t2\n",
            r"line 3: document 'd0' has another relevance in an earlier",
        ),
        ("qrels/test.tsv", HEADER, r"test\.tsv: holds no judgment"),
        ("qrels/test.tsv", HEADER + "q0\td0\t1\n", "1 examples are too few to split 8:1:1"),
        ("queries.jsonl", '{"_id": 7, "text": "a"}\n', r"queries\.jsonl, line 1: field '_id' must be a string"),
        ("queries.jsonl", '{"_id": "q0"}\n', r"queries\.jsonl, line 1: field 'text' must be a string; it is missing"),
        ("queries.jsonl", '{"_id": "q0", "text": "a"}\n' * 2, r"queries\.jsonl, line 2: id 'q0' appears twice"),
        ("queries.jsonl", "{\n", r"queries\.jsonl, line 1: not a JSON object"),
        (
            "corpus.jsonl",
            '{"_id": "d0", "title": 3, "text": "a"}\n',
            r"corpus\.jsonl, line 1: field 'title' must be a str",
        ),
        ("corpus.jsonl", '{"_id": "d0", "text": "a"}\n' * 2, r"corpus\.jsonl, line 2: id 'd0' appears twice"),
        ("corpus.tsv", "", ""),
    ],
)
def test_broken_files(tmp_path, file, text, message) -> None:
    (beir(tmp_path) / file).write_text(text)
    if not message:  # a file of another layout does not matter
        load_retrieval("beir", tmp_path)
        return
    with pytest.raises(KitError, match=message):
        load_retrieval("beir", tmp_path)


def test_every_file_names_what_it_is_instead(tmp_path) -> None:
    folder = beir(tmp_path, run="run.trec")
    for name in ("queries.jsonl", "corpus.jsonl", "qrels/test.tsv", "run.trec"):
        whole = (folder / name).read_bytes()
        for what, blob in CAUSES.items():
            (folder / name).write_bytes(blob)
            with pytest.raises(KitError) as error:
                load_retrieval("beir", folder)
            assert str(error.value).startswith(f"{folder / name}: {what}") and "\n" not in str(error.value)
        (folder / name).unlink()
        if name != "run.trec":
            with pytest.raises(KitError, match=r"no (queries|corpus|qrels) here \(it holds .*\); --data must be"):
                load_retrieval("beir", folder)
        (folder / name).write_bytes(whole)
    with pytest.raises(KitError, match=r"no queries here \(there is no such folder\)"):
        load_retrieval("beir", tmp_path / "nowhere")


def test_pool_is_an_option_of_the_command_line(tmp_path, capsys) -> None:
    data = ["--data", str(beir(tmp_path / "mini"))]
    argv = ["train", "--task", "beir", *data, "--pool", "6", "--out", str(tmp_path / "run"), "--init", "base", "--json"]
    argv += ["--hidden-size", "16", "--layers", "1", "--heads", "2", "--steps", "1", "--queries", "2", "--group", "2"]
    argv += ["--slate-size", "4", "--rank-size", "2"]
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out)["queries"] == 3
    assert main(["data", "stats", "--task", "beir", *data, "--skip-bad"]) == 2
    assert "--skip-bad is for JSONL files" in capsys.readouterr().err
    with pytest.raises(KitError, match="of beir every row is needed"):
        load_task(Config(task="beir", data=data[1]), bad=[])
    with pytest.raises(KitError, match="--taste is for lab-rec"):
        load_task(Config(task="beir", data=data[1], taste=0.5))
