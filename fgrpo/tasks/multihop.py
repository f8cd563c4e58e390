"""Multi-hop questions over a pool of passages: HotpotQA and MuSiQue in their official files.

The query is the question, the history is empty, a candidate is `title: passage`. The key of a passage is its question
and its place there (`{question id}/{index}`), never its title: titles repeat.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple, TypeVar

from ..config import KitError
from ..data import Example, Splits
from .reading import Notes, as_object, field, json_rows, shuffled, split_by_position

POOL = 20
T = TypeVar("T")


class Passage(NamedTuple):
    """One candidate: its key, its title (used only to choose passages for padding) and the text that is shown."""

    key: str
    title: str
    text: str


class Question(NamedTuple):
    """A question, its own passages, and the indices of those that support the answer."""

    id: str
    text: str
    passages: tuple[Passage, ...]
    relevant: frozenset[int]


Parse = Callable[[dict[str, object]], Question | str]
"""A row -> its question, or the reason to leave it out."""


def load_hotpotqa(path: str | Path, notes: Notes | None = None, bad: list[str] | None = None, seed: int = 0) -> Splits:
    """HotpotQA (arXiv 1809.09600), distractor or fullwiki, in the official schema or the Hub's, a JSON array or JSONL.

    `path` is one file (split 8:1:1 by position) or a folder with the train file (nine tenths train, one tenth
    validation) and a dev file (test; distractor if both variants are present). A passage is relevant if its title is a
    supporting title. Questions without all of their supporting passages are left out and counted. Pools of fewer than
    20 are padded with random passages of other questions, from the same split or from training, so that training never
    shows a passage that only test questions have; a title in the pool is not added again. The pool is shuffled. All
    random choices depend on `seed`.

    Broken rows are appended to `bad` as messages; without `bad` the first one raises KitError, as does a data set with
    too few passages for padding.
    """
    trains = ("hotpot_train*.json*", "*train*.json*")
    devs = ("hotpot_dev_distractor*.json*", "hotpot_dev*.json*", "*dev*.json*", "*valid*.json*")
    train, validation, test = _read(Path(path), (trains, devs), _hotpotqa, notes or Notes(), bad)
    rng = Random(f"hotpotqa {seed}")
    return Splits(*(_padded(p, [*train, *p] if p is not train else p, path, rng) for p in (train, validation, test)))


def load_musique(path: str | Path, notes: Notes | None = None, bad: list[str] | None = None) -> Splits:
    """MuSiQue (arXiv 2108.00573), `ans` or `full`, official JSONL; files and splits as for HotpotQA.

    If a folder holds both variants, `ans` is read. The supporting paragraphs are relevant. Unanswerable questions have
    no complete set of them: they are left out and counted. Pools are as published, in the published order.
    """
    names = ("musique_ans*train*.jsonl", "*train*.jsonl"), ("musique_ans*dev*.jsonl", "*dev*.jsonl")
    parts = _read(Path(path), names, _musique, notes or Notes(), bad)
    return Splits(*([_example(q, q.passages) for q in part] for part in parts))


def _read(
    path: Path, names: Sequence[Sequence[str]], parse: Parse, notes: Notes, bad: list[str] | None
) -> tuple[Sequence[Question], ...]:
    """Questions of training, validation and test."""
    seen: set[str] = set()
    if not path.is_dir():
        return split_by_position(_questions(path, parse, notes, bad, seen))
    train, dev = (_questions(_file(path, patterns), parse, notes, bad, seen) for patterns in names)
    if len(train) < 2:
        raise KitError(f"{path}: {len(train)} training questions are too few to keep some for validation.")
    return train[: len(train) * 9 // 10], train[len(train) * 9 // 10 :], dev


def _file(folder: Path, patterns: Sequence[str]) -> Path:
    for pattern in patterns:
        if found := sorted(folder.glob(pattern)):
            if len(found) > 1:
                raise KitError(f"{folder}: {', '.join(p.name for p in found)}: keep one, or name one file with --data.")
            return found[0]
    raise KitError(f"{folder}: no file {' or '.join(patterns)} here; name one file with --data to split it 8:1:1.")


def _questions(path: Path, parse: Parse, notes: Notes, bad: list[str] | None, seen: set[str]) -> list[Question]:
    """The questions of a file, without those for which `parse` returns a reason to leave them out."""
    questions, texts = [], dict[str, str]()
    for where, row in json_rows(path):
        notes.read[path.name] += 1
        try:
            if isinstance(row, KitError):
                raise row
            question = _located(where, parse, row, seen)
        except KitError as error:
            if bad is None:
                raise KitError(f"{error} Fix the row, or pass --skip-bad.") from None
            bad.append(str(error))
            notes.drop(path, "broken row")
            continue
        if isinstance(question, str):
            notes.drop(path, question)
            continue
        seen.add(question.id)
        # the same article belongs to many questions: one string for all of them keeps the train file under 1 GB
        passages = tuple(p._replace(text=texts.setdefault(p.text, p.text)) for p in question.passages)
        questions.append(question._replace(passages=passages))
    if not questions:
        raise KitError(f"{path}: no usable question in the file.")
    return questions


def _located(where: str, parse: Parse, row: object, seen: set[str]) -> Question | str:
    try:
        question = parse(as_object(row))
    except KitError as error:
        raise KitError(f"{where}: {error}") from None
    if not isinstance(question, str) and question.id in seen:
        raise KitError(f"{where}: the id {question.id!r} is in an earlier row too.")
    return question


def _hotpotqa(row: dict[str, object]) -> Question | str:
    name = field(row, "_id" if "_id" in row else "id", str)
    question = field(row, "question", str)
    support = {title for title, _ in _pairs(row, "supporting_facts", "sent_id", int)}
    passages = []
    for n, (title, sentences) in enumerate(_pairs(row, "context", "sentences", list)):
        if not all(isinstance(s, str) for s in sentences):
            raise KitError("field 'context' must hold lists of sentences, and sentences be strings.")
        text = " ".join(filter(None, (s.strip() for s in sentences)))
        passages.append(Passage(f"{name}/{n}", title, f"{title}: {text}"))
    if not support:
        return "no supporting fact"
    if not support <= {p.title for p in passages}:
        return "a supporting passage is absent"
    relevant = frozenset(n for n, p in enumerate(passages) if p.title in support)
    return Question(name, question, tuple(passages), relevant)


def _pairs(row: dict[str, object], name: str, second: str, kind: type[T]) -> list[tuple[str, T]]:
    """A list of [title, x], or the Hub's two lists `title` and x."""
    value = row.get(name)
    if isinstance(value, dict):
        titles, others = value.get("title"), value.get(second)
        value = None
        if isinstance(titles, list) and isinstance(others, list) and len(titles) == len(others):
            value = list(zip(titles, others, strict=True))
    pairs: list = value if isinstance(value, list) else [None]
    whole = all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs)
    if not whole or not all(isinstance(title, str) and isinstance(x, kind) for title, x in pairs):
        raise KitError(f"field '{name}' must be a list of [title, {second}], or an object with title and {second}.")
    return [(title, x) for title, x in pairs]


def _musique(row: dict[str, object]) -> Question | str:
    name, question = field(row, "id", str), field(row, "question", str)
    if not (field(row, "answerable", bool) if "answerable" in row else True):
        return "not answerable"
    passages, relevant = [], set()
    for n, p in enumerate(field(row, "paragraphs", list)):
        try:
            title, text = field(p, "title", str), field(p, "paragraph_text", str)
            passages.append(Passage(f"{name}/{field(p, 'idx', int)}", title, f"{title}: {text.strip()}"))
            if field(p, "is_supporting", bool):
                relevant.add(n)
        except KitError as error:
            raise KitError(f"field 'paragraphs', paragraph {n}: {error}") from None
    if len({p.key for p in passages}) < len(passages):
        raise KitError("field 'paragraphs' holds the same idx twice.")
    return Question(name, question, tuple(passages), frozenset(relevant)) if relevant else "no supporting paragraph"


def _padded(questions: Sequence[Question], donors: Sequence[Question], path: str | Path, rng: Random) -> list[Example]:
    """Examples with pools of at least 20, in a seeded order."""
    titles = {p.title for q in donors for p in q.passages}
    examples = []
    for question in questions:
        pool, taken = list(question.passages), {p.title for p in question.passages}
        if len(titles) - len(taken) < POOL - len(pool):
            raise KitError(f"{path}: {len(titles)} different passages are too few to pad pools to {POOL}.")
        while len(pool) < POOL:
            passages = donors[int(rng.random() * len(donors))].passages
            passage = passages[int(rng.random() * len(passages))]
            if passage.title not in taken:
                taken.add(passage.title)
                pool.append(passage)
        examples.append(_example(question, shuffled(pool, rng)))
    return examples


def _example(question: Question, pool: Sequence[Passage]) -> Example:
    relevant = {question.passages[i].key for i in question.relevant}
    return Example(
        question.id, question.text, (), tuple(p.text for p in pool),
        frozenset(i for i, p in enumerate(pool) if p.key in relevant), (), tuple(p.key for p in pool),
    )  # fmt: skip
