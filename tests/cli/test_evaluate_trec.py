"""`evaluate --trec`: the files give the kit's own numbers, by plain Python and by trec_eval."""

import json
from collections import defaultdict
from math import log2
from pathlib import Path

import ir_measures
import pytest
from ir_measures import P, R, nDCG

from fgrpo.cli.main import main
from fgrpo.tasks.jsonl import to_row
from fgrpo.tasks.lab import lab_task

LAB = str(Path(__file__).parents[2] / "data/checkpoints/lab-rec")


def evaluate(capsys, file: Path, *argv: str) -> dict[str, float]:
    assert main(["evaluate", "--checkpoint", LAB, "--trec", str(file), "--json", *argv]) == 0
    out, err = capsys.readouterr()
    assert not err
    return json.loads(out)["metrics"]


def columns(path: str) -> dict[str, dict[str, float]]:
    """Last number of each document of each query: relevance in qrels, score in a run."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for line in Path(path).read_text().splitlines():
        query, _, document, *rest = line.split()
        found[query][document] = float(rest[-1] if len(rest) == 1 else rest[1])
    return found


def by_hand(file: Path) -> dict[str, float]:
    """nDCG@5 and recall@5 of FILE.ranked, and recall of all of FILE; mean over the judged queries."""
    run, ranked, qrels = (columns(f"{file}{suffix}") for suffix in ("", ".ranked", ".qrels"))
    totals = dict.fromkeys(("ndcg@5", "recall@5", "slate_recall"), 0.0)
    for query, grades in qrels.items():
        top = sorted(ranked[query], key=lambda d: -ranked[query][d])[:5]
        relevant = {d for d, grade in grades.items() if grade > 0}
        best = sorted(grades.values(), reverse=True)[:5]
        gain = sum(grades[d] / log2(i + 2) for i, d in enumerate(top))
        totals["ndcg@5"] += gain / sum(g / log2(i + 2) for i, g in enumerate(best)) / len(qrels)
        totals["recall@5"] += len(relevant & set(top)) / len(relevant) / len(qrels)
        totals["slate_recall"] += len(relevant & run[query].keys()) / len(relevant) / len(qrels)
    return totals


def test_the_files_give_the_metrics(tmp_path, capsys) -> None:
    file = tmp_path / "lab.run"
    metrics = evaluate(capsys, file, "--limit", "60")
    assert by_hand(file) == pytest.approx({name: metrics[name] for name in ("ndcg@5", "recall@5", "slate_recall")})
    lines = file.read_text().splitlines()
    assert lines[0].split()[:2] == ["test-0", "Q0"] and lines[0].split()[5] == "lab-rec"
    qrels = list(ir_measures.read_trec_qrels(f"{file}.qrels"))
    assert len(qrels) == 60 * 20
    run = list(ir_measures.read_trec_run(f"{file}.ranked"))
    names = {nDCG @ 3: "ndcg@3", nDCG @ 5: "ndcg@5", R @ 1: "recall@1", R @ 10: "recall@10", P @ 5: "precision@5"}
    found = ir_measures.calc_aggregate(list(names), qrels, run)
    assert {names[measure]: value for measure, value in found.items()} == pytest.approx(
        {name: metrics[name] for name in names.values()}
    )
    evaluate(capsys, file, "--limit", "3")  # a run may replace a run
    assert len({line.split()[0] for line in file.read_text().splitlines()}) == 3


def test_graded_judgments_and_ids_of_the_data(tmp_path, capsys) -> None:
    def write(unit: float) -> None:
        rows = []
        for number, e in enumerate(lab_task().test[:40]):
            gains = [unit * (1 + (i + number) % 3) if i in e.relevant else 0 for i in range(len(e.candidates))]
            rows.append(json.dumps(to_row(e) | {"gains": gains}) + "\n")
        (tmp_path / "mine.jsonl").write_text("".join(rows))

    write(1)
    task, file = ("--task", str(tmp_path / "mine.jsonl"), "--split", "all"), tmp_path / "x/a.run"
    metrics = evaluate(capsys, file, *task)
    assert by_hand(file) == pytest.approx({name: metrics[name] for name in ("ndcg@5", "recall@5", "slate_recall")})
    assert {line.split()[3] for line in Path(f"{file}.qrels").read_text().splitlines()} == {"0", "1", "2", "3"}
    write(0.5)
    other = tmp_path / "b.run"
    assert main(["evaluate", "--checkpoint", LAB, "--trec", str(other), *task]) == 2
    out, err = capsys.readouterr()
    assert "field 'gains' of query 'test-0' must hold whole numbers" in err
    assert not out and err.count("\n") == 1 and not other.exists()
