"""Retrieval with judgments: BEIR folders, TREC runs with qrels, and greedy lists written as a TREC run.

A query has no history, a candidate is a document (`title: text`, or its text alone), keyed by its id.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from ..config import KitError
from ..data import Example, Splits
from .files import lines_of, matching, only, open_text, unreadable
from .jsonl import is_blank
from .reading import Notes, field, json_lines, shuffled, split_by_position
from .tables import Cells, Column, table

if TYPE_CHECKING:  # torch comes with it, and reading needs none
    from ..prompt import Output

GRADE_LIMIT = 1_000_000
RUN = ("qid", "Q0", "docid", "rank", "score", "tag")
QRELS = ("qid", "iter", "docid", "rel")
BEIR_QRELS = (Column("query-id"), Column("corpus-id"), Column("score"))
TREC_SUFFIXES = ("", ".ranked", ".qrels")
"""of the files that `trec_files` makes"""
WHOLE = re.compile(r"[+-]?[0-9]{1,9}")
LAYOUTS = {
    "beir": {"queries": ("queries.jsonl",), "corpus": ("corpus.jsonl",), "qrels": ("qrels/*.tsv",),
             "run": ("run.trec", "runs/*.trec")},
    "trec": {"queries": ("queries*.tsv", "queries.jsonl"), "corpus": ("collection.tsv", "corpus.tsv", "corpus.jsonl"),
             "qrels": ("*qrels*",), "run": ("*.run", "run.*")},
}  # fmt: skip
"""Patterns of the files of each task"""
Judgments = dict[str, dict[str, int]]
"""Grade of each judged document (relevant above 0) of each query."""


def load_retrieval(task: str, folder: str | Path, notes: Notes | None = None, pool: int = 20, seed: int = 0) -> Splits:
    """A folder in the layout of BEIR (arXiv 2104.08663; task `beir`) or of TREC and MS MARCO (task `trec`).

    Pools. Where the folder has a run, the pool of a query is the first `pool` documents of it that have a text, in the
    run's order: by falling score, ties by rank. A `beir` folder without a run gives *easy pools*: at most `pool / 2` of
    the query's relevant documents and, up to `pool`, random ones that are relevant to other queries of the same split
    (as in HotpotQA here, so that a document met before says nothing), shuffled. Grades above 0 are relevant; where one
    is above 1 they are the `gains`. Queries without a relevant document in their pool are left out, since recall and
    NDCG over the pool are not defined for them; `notes` remark how many, and how many relevant documents no pool holds.

    Splits. A qrels file is training if its name holds `train`, validation if it holds `dev` or `valid`, else test. With
    two files, the first is cut 9:1 into training and validation, and the last is test; one file is cut 8:1:1; both in a
    seeded order. Rows of a query that a later split has too are left out.

    Texts are read in a stream, and only those of pools are kept. Raises KitError on a missing file, a broken line, a
    document listed or judged twice, and on a judged query without a text.
    """
    folder, notes, layout = Path(folder), notes or Notes(), LAYOUTS[task]

    def files(what: str) -> list[Path]:
        return matching(folder, layout[what], what)

    queries: dict[str, str] = {}
    for path in files("queries"):
        _add_texts(path, queries, None, notes)
    judged = {path: _judgments(path, task, queries, notes) for path in _by_split(files("qrels"))}
    seen: set[str] = set()
    for path, judgments in reversed(judged.items()):
        if rows := sum(len(judgments.pop(query)) for query in seen & judgments.keys()):
            notes.drop(path, "row of a query that a later split has too", rows)
        seen |= judgments.keys()
    runs: dict[str, list[str]] = {}
    has_run = task == "trec" or any(any(folder.glob(pattern)) for pattern in layout["run"])
    for path in files("run") if has_run else ():
        found = _first_documents(path, seen, pool, notes)
        if twice := found.keys() & runs.keys():
            raise KitError(f"{path}: another run has query {min(twice)!r:.40} too: keep one run of it in {folder}.")
        runs |= found
    wanted = {document for documents in runs.values() for document in documents}
    if not has_run:
        wanted = {d for part in judged.values() for grades in part.values() for d, grade in grades.items() if grade > 0}
    corpus, texts = only(files("corpus"), "file of documents"), dict[str, str]()
    _add_texts(corpus, texts, wanted, notes)
    if lost := len(wanted - texts.keys()):
        notes.remarks[f"{corpus.name}: documents without a text, which no pool holds, of {len(wanted):,}"] = lost
    kept = [_pools(path, part, runs if has_run else None, texts, pool, notes, seed) for path, part in judged.items()]
    parts = _cut(kept, folder, Random(f"{task} {seed}"))
    grades = {query: found for part in judged.values() for query, found in part.items()}
    splits: list[list[Example]] = []
    for name, part in zip(Splits._fields, parts, strict=True):
        if not has_run:
            part = _filled(part, grades, pool, seed)
        if not part or min(len(documents) for _, documents in part) < 2:
            raise KitError(f"{folder}: the {name} split has too few queries with a relevant document ({len(part)}) "
                           "to make pools of two or more: add judgments, or a run.")  # fmt: skip
        if short := sum(len(documents) < pool for _, documents in part):
            notes.remarks[f"{folder.name}: {name} pools of fewer than {pool} documents, of {len(part):,}"] = short
        splits.append([_example(query, queries[query], documents, texts, grades[query]) for query, documents in part])
    if not has_run:
        what = f"{folder.name}: queries with easy pools (no run here: random documents beside the relevant ones)"
        notes.remarks[what] = sum(map(len, splits))
    return Splits(*splits)


def _by_split(paths: Sequence[Path]) -> list[Path]:
    """Files of judgments in the order training, validation, test. Raises KitError on two files of one split."""
    parts: list[list[Path]] = [[], [], []]
    for path in paths:
        parts[0 if "train" in path.name else 1 if "dev" in path.name or "valid" in path.name else 2].append(path)
    return [only(part, "file of judgments for each split") for part in parts if part]


def _lines(path: Path, names: Sequence[str], notes: Notes, separator: str | None = None) -> Iterator[Cells]:
    """(where, cells) of each line of a file without a header: one cell for each name, at white space or a separator."""
    try:
        file, place = open_text(path, newline="\n")
        if place >= 0:
            notes.remarks[f"{path.name} is not UTF-8 and was read as Latin-1; first byte that is not UTF-8"] = place
        with file:
            for number, line in enumerate(lines_of(path, file), start=1):
                cells = line.rstrip("\r\n").split(separator, len(names) - 1) if separator else line.split()
                if not line.strip():
                    continue
                if len(cells) != len(names) or not cells[0]:
                    raise KitError(f"{path}, line {number}: expected the columns {', '.join(names)}, found {len(cells)}: "
                                   f"{line.strip()!r:.60}.")  # fmt: skip
                yield f"{path}, line {number}", cells
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from None


def _texts(path: Path, notes: Notes) -> Iterator[tuple[str, str, str]]:
    """(where, id, text) of each row: JSONL of BEIR, or `id<TAB>text`."""
    if path.suffix != ".jsonl":
        for where, (key, text) in _lines(path, ("id", "text"), notes, "\t"):
            yield where, key, text
        return
    for where, row in json_lines(path):
        if isinstance(row, KitError):
            raise row
        try:
            title = field(row, "title", str).strip() if row.get("title") else ""
            yield where, field(row, "_id", str), f"{title}: " * bool(title) + field(row, "text", str)
        except KitError as error:
            raise KitError(f"{where}: {error}.") from None


def _add_texts(path: Path, texts: dict[str, str], wanted: Collection[str] | None, notes: Notes) -> None:
    """Add the text of each wanted id (None: of all) that is not blank."""
    for where, key, text in _texts(path, notes):
        notes.read[path.name] += 1
        if wanted is None or key in wanted:
            if key in texts:
                raise KitError(f"{where}: id {key!r:.40} appears twice.")
            if not is_blank(text.rstrip(": ")):
                texts[key] = text.strip()


def _judgments(path: Path, task: str, queries: Mapping[str, str], notes: Notes) -> Judgments:
    judgments: Judgments = {}
    for where, (query, *_, document, grade) in (
        table(path, BEIR_QRELS, "\t", notes) if task == "beir" else _lines(path, QRELS, notes)
    ):
        notes.read[path.name] += 1
        if not WHOLE.fullmatch(grade.strip()) or int(grade) > GRADE_LIMIT:
            name = "score" if task == "beir" else "rel"
            raise KitError(
                f"{where}: field '{name}' must be a whole number up to {GRADE_LIMIT:,}, found {grade!r:.40}."
            )
        if query not in queries:
            raise KitError(f"{where}: query {query!r:.40} has no text in the file of queries.")
        known = judgments.setdefault(query, {})
        if known.setdefault(document, int(grade)) != int(grade):
            raise KitError(f"{where}: document {document!r:.40} has another relevance in an earlier line.")
    rows = notes.read[path.name]
    if not rows:
        raise KitError(f"{path}: holds no judgment.")
    if twice := rows - sum(map(len, judgments.values())):
        notes.drop(path, "row given twice", twice)
    return judgments


def _first_documents(path: Path, judged: Collection[str], size: int, notes: Notes) -> dict[str, list[str]]:
    """The first `size` documents of each judged query in a TREC run, by falling score, ties by rank."""
    best: dict[str, list[tuple[float, int, str]]] = {}
    used = 0
    for where, (query, _, document, rank, score, _) in _lines(path, RUN, notes):
        notes.read[path.name] += 1
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise KitError(f"{where}: field 'score' must be a finite number, found {score!r:.40}.")
        if not WHOLE.fullmatch(rank):
            raise KitError(f"{where}: field 'rank' must be a whole number, found {rank!r:.40}.")
        if query not in judged:
            notes.drop(path, "row of a query without judgments")
            continue
        rows = best.setdefault(query, [])
        rows.append((-value, int(rank), document))
        used += 1
        if len(rows) >= 4 * size:  # a run may have 1,000 documents for each of many queries
            rows[:] = sorted(rows)[:size]
    first = {query: [document for *_, document in sorted(rows)[:size]] for query, rows in best.items()}
    for query, documents in first.items():
        if len(set(documents)) < len(documents):
            double = next(d for d in documents if documents.count(d) > 1)
            raise KitError(f"{path}: query {query!r:.40} lists document {double!r:.40} twice.")
    if below := used - sum(map(len, first.values())):
        notes.drop(path, f"below the first {size} of its query", below)
    return first


Pools = list[tuple[str, list[str]]]
"""Query, and the documents of its pool in order."""


def _pools(
    path: Path, judgments: Judgments, runs: Mapping[str, list[str]] | None, texts: Mapping[str, str], size: int,
    notes: Notes, seed: int,
) -> Pools:  # fmt: skip
    """The queries with a relevant document in their pool; without runs, pools hold relevant documents alone."""
    pools: Pools = []
    total = held = 0
    for query, grades in judgments.items():
        relevant = {document for document, grade in grades.items() if grade > 0}
        if runs is None:
            pool = shuffled(sorted(relevant & texts.keys()), Random(f"relevant {seed} {query}"))[: size // 2]
        else:
            pool = [document for document in runs.get(query, ()) if document in texts]
        total, held = total + len(relevant), held + len(relevant.intersection(pool))
        if relevant.intersection(pool) and len(pool) > (runs is not None):  # one document leaves nothing to choose
            pools.append((query, pool))
    if lost := len(judgments) - len(pools):
        notes.remarks[
            f"{path.name}: queries left out, of {len(judgments):,}: no relevant document in the pool, or no other"
        ] = lost
    if total > held:
        notes.remarks[f"{path.name}: relevant documents that no pool holds, of {total:,}"] = total - held
    return pools


def _cut(parts: list[Pools], folder: Path, rng: Random) -> Sequence[Sequence[tuple[str, list[str]]]]:
    """Training, validation and test queries, from one to three files of judgments."""
    if len(parts) == 3:
        return parts
    first = shuffled(parts[0], rng)
    if len(parts) == 1:
        return split_by_position(first, folder)
    return first[: len(first) * 9 // 10], first[len(first) * 9 // 10 :], parts[1]


def _filled(part: Sequence[tuple[str, list[str]]], grades: Judgments, size: int, seed: int) -> Pools:
    """Pools with random documents of the other queries' pools, up to `size`, in a seeded order."""
    documents = sorted({d for _, pool in part for d in pool})
    known, filled = set(documents), []
    for query, relevant in part:
        rng, pool = Random(f"pool {seed} {query}"), list(relevant)
        taken = known & {d for d, grade in grades[query].items() if grade > 0}
        while len(pool) < size and len(taken) < len(documents):
            document = documents[int(rng.random() * len(documents))]
            if document not in taken:
                taken.add(document)
                pool.append(document)
        filled.append((query, shuffled(pool, rng)))
    return filled


def _example(query: str, text: str, pool: list[str], texts: Mapping[str, str], judged: Mapping[str, int]) -> Example:
    gains = tuple(max(0.0, float(judged.get(d, 0))) for d in pool)
    relevant = frozenset(i for i, gain in enumerate(gains) if gain)
    shown = tuple(texts[d] for d in pool)
    return Example(query, text, (), shown, relevant, (), tuple(pool), gains if max(gains) > 1 else ())


def trec_files(outputs: "Sequence[Output]", examples: Sequence[Example], tag: str) -> dict[str, str]:
    """Greedy outputs as text in TREC's formats, by the suffix of the file.

    "" is the run, `qid Q0 docid rank score tag`: the ranked list, then the rest of the slate in its order; its recall is
    the kit's slate_recall. ".ranked" is the same run with the ranked lists alone: its nDCG@k, recall@k and P@k are the
    kit's, whatever a list's length. ".qrels", `qid 0 docid rel`, judges every candidate of each pool. A document is
    named by its id, and without ids by its place in the pool (c00, c01, ...). A query with an ill-formed output may have
    no row, and counts as 0 (`trec_eval -c`).
    """
    tag, files = re.sub(r"\s+", "-", tag.strip()), {suffix: list[str]() for suffix in TREC_SUFFIXES}
    for e, output in zip(examples, outputs, strict=True):
        ids, rest = _docids(e), [i for i in output.slate if i not in output.rank]
        for suffix, listed in (("", [*output.rank, *rest]), (".ranked", output.rank)):
            files[suffix] += [f"{e.id} Q0 {ids[i]} {n + 1} {len(listed) - n} {tag}\n" for n, i in enumerate(listed)]
        gains = e.gains or [i in e.relevant for i in range(len(ids))]
        files[".qrels"] += [f"{e.id} 0 {key} {int(gain)}\n" for key, gain in zip(ids, gains, strict=True)]
    return {suffix: "".join(lines) for suffix, lines in files.items()}


def check_trec(examples: Sequence[Example]) -> None:
    """Raise KitError on what TREC's formats cannot hold: ids with white space, one id twice, gains not whole numbers."""
    seen: set[str] = set()
    for e in examples:
        if odd := [key for key in (e.id, *_docids(e)) if key.split() != [key]]:
            raise KitError(f"--trec: id {odd[0]!r:.60} of query {e.id!r:.60} has white space, which separates the columns "
                           "of a TREC file: write ids without it.")  # fmt: skip
        if e.id in seen:
            raise KitError(f"--trec: two queries have the id {e.id!r:.60}: give each its own.")
        if any(gain != int(gain) for gain in e.gains):
            raise KitError(f"--trec: field 'gains' of query {e.id!r:.60} must hold whole numbers, as qrels do.")
        seen.add(e.id)


def _docids(example: Example) -> Sequence[str]:
    return example.candidate_ids or [f"c{n:02}" for n in range(len(example.candidates))]
