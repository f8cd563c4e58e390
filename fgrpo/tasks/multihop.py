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
from .files import contents
from .reading import Notes, as_object, counted, field, json_rows, shuffled, split_by_position

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
    20 are padded with random passages of other questions of the same split: a test pool padded with training passages
    would give them away as the ones met before (a held-out split of few passages keeps smaller pools, as `notes`
    remark). A title in the pool is not added again. The pool is shuffled. The
    random choices for a question depend on `seed`, its id and the passages of its split.

    Broken rows are appended to `bad` as messages; without `bad` the first one raises KitError, as does a data set with
    too few passages for padding.
    """
    trains = ("hotpot_train*.json*", "*train*.json*")
    devs = ("hotpot_dev_distractor*.json*", "hotpot_dev*.json*", "*dev*.json*", "*valid*.json*")
    notes = notes or Notes()
    parts = _read(Path(path), (trains, devs), _hotpotqa, notes, bad)
    return Splits(
        *(_padded(part, Path(path), name, notes, seed) for name, part in zip(Splits._fields, parts, strict=True))
    )


def load_musique(path: str | Path, notes: Notes | None = None, bad: list[str] | None = None, seed: int = 0) -> Splits:
    """MuSiQue (arXiv 2108.00573), `ans` or `full`, JSONL or a JSON array; files and splits as for HotpotQA.

    If a folder holds both variants, `ans` is read. The supporting paragraphs are relevant. Unanswerable questions have
    no complete set of them: they are left out and counted. Pools are those published; each is put in a random order,
    which depends on `seed` and the question's id alone.
    """
    trains = ("musique_ans*train*.jsonl", "*train*.jsonl", "musique_ans*train*.json*", "*train*.json*")
    devs = ("musique_ans*dev*.jsonl", "*dev*.jsonl", "musique_ans*dev*.json*", "musique*dev*.json*", "*dev*.json*")
    parts = _read(Path(path), (trains, devs), _musique, notes or Notes(), bad)
    return Splits(*([_example(q, shuffled(q.passages, _rng("musique", seed, q))) for q in part] for part in parts))


def _rng(task: str, seed: int, question: Question) -> Random:
    return Random(f"{task} {seed} {question.id}")


def _read(
    path: Path, names: Sequence[Sequence[str]], parse: Parse, notes: Notes, bad: list[str] | None
) -> tuple[Sequence[Question], ...]:
    """Questions of training, validation and test."""
    seen: set[str] = set()
    if not path.is_dir():
        return split_by_position(_questions(path, parse, notes, bad, seen), path, notes.lost(path.name))
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
    wanted, there = " or ".join(patterns), contents(folder)
    raise KitError(f"{folder}: no file {wanted} here ({there}); name one file with --data to split it 8:1:1.")


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
                raise KitError(f"{str(error).rstrip('.')}. Fix the row, or pass --skip-bad.") from None
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
        first = f"; by reason, {counted(bad)}; the first broken row is {bad[0]}" if bad else ""
        raise KitError(f"{path}: no usable question in the file ({notes.read[path.name]:,} rows read, "
                       f"{notes.lost(path.name)}){first.rstrip('.')}.")  # fmt: skip
    return questions


def _located(where: str, parse: Parse, row: object, seen: set[str]) -> Question | str:
    try:
        question = parse(as_object(row))
    except KitError as error:
        raise KitError(f"{where}: {error}") from None
    if isinstance(question, str):
        return question
    if question.id in seen:
        raise KitError(f"{where}: the id {question.id!r:.60} is in an earlier row too.")
    blank = [n for n, p in enumerate(question.passages) if not p.text.strip(": \n")]
    if blank or not question.text.strip():
        raise KitError(f"{where}: " + (f"passage {blank[0]} is blank." if blank else "field 'question' is blank."))
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
    if len(passages) < 2:
        raise KitError("field 'paragraphs' must hold two or more, to choose from.")
    return Question(name, question, tuple(passages), frozenset(relevant)) if relevant else "no supporting paragraph"


def _padded(questions: Sequence[Question], path: Path, split: str, notes: Notes, seed: int) -> list[Example]:
    """Examples with pools of at least 20 in a seeded order, padded with passages of the other questions.

    A held-out split of few questions may not have 20 different passages: its pools then hold all it has, as the notes
    remark.
    """
    titles = {p.title for q in questions for p in q.passages}
    if len(titles) < POOL and split == "train":
        raise KitError(f"{path}: {len(titles)} different passages are too few to pad pools to {POOL}.")
    examples = []
    for question in questions:
        rng, pool = _rng("hotpotqa", seed, question), list(question.passages)
        taken = {p.title for p in pool}
        while len(pool) < POOL and len(taken) < len(titles):
            passages = questions[int(rng.random() * len(questions))].passages
            passage = passages[int(rng.random() * len(passages))]
            if passage.title not in taken:
                taken.add(passage.title)
                pool.append(passage)
        examples.append(_example(question, shuffled(pool, rng)))
    if short := sum(len(e.candidates) < POOL for e in examples):
        what = f"{path.name}: {split} pools of fewer than {POOL} passages, as the split has only {len(titles)} titles"
        notes.remarks[what] = short
    return examples


def _example(question: Question, pool: Sequence[Passage]) -> Example:
    relevant = {question.passages[i].key for i in question.relevant}
    return Example(
        question.id, question.text, (), tuple(p.text for p in pool),
        frozenset(i for i, p in enumerate(pool) if p.key in relevant), (), tuple(p.key for p in pool),
    )  # fmt: skip
