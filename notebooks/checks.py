"""The checks of the labs: each takes a student's function, names the mistake that it found, and shows a counterexample.

A check runs the function on cases with known answers. If an answer is wrong, it is compared with what known mistakes
give on the same cases: the first mistake that explains all answers is named. Otherwise the counterexample stands alone.
A check works without a notebook too: `print(checks.recall(my_recall))`.
"""

import contextlib
import copy
import inspect
import io
import itertools
import linecache
import math
import sys
import traceback
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fgrpo import credit, loss, rewards
from fgrpo.config import RLConfig
from fgrpo.evaluate import FATES
from fgrpo.prompt import PHASE_RANK, PHASE_SLATE

NOT_SOLVED = "Not solved yet: write the function above, run its cell, then run this cell again."
RIGHT = "Right."
UNKNOWN = "Not yet. This is none of the known mistakes. Compute the case below by hand, with the formula."
MOST_LINES = 300_000  # of the student's code in one call; what needs more is an endless loop

ADVICE = {
    "unsupported operand type(s) for &: 'list'": "A list knows no `&`; make it a set first: `set(slate) & relevant`.",
    "Boolean value of Tensor with more than one value is ambiguous": (
        "Python's `min`, `max`, `if`, `and` take one number; for all numbers of a tensor use `torch.minimum`, `torch.where`."
    ),
    "must match the size of tensor b": (
        "The shapes do not fit. To put one number per rollout on all tokens of its row, make it a column: `reshape(-1, 1)`."
    ),
    "list index out of range": "The list is shorter than your loop: a ranked list can have fewer than k candidates.",
    "is not in list": "`index` looks for something that the list does not hold: ask with `in` before.",
    "Can't call numpy() on Tensor that requires grad": "NumPy has no gradients: stay with operations on tensors.",
}
"""what to say about errors that students often meet, by a part of Python's message"""

Function = Callable[..., Any]
Symptom = Callable[[Mapping[Hashable, Any]], bool]
"""a sign of a mistake in what was returned, by the name of the case"""


class EndlessLoop(BaseException):
    """A call took too many lines. Not an Exception, so that `except Exception` in a student's loop does not catch it."""


class Unusable(Exception):
    """What a function returned has the wrong type."""

    def __init__(self, message: str, found: Any = None) -> None:
        super().__init__(message)
        self.found = found


def number(found: Any) -> float:
    """Any kind of real number: int, float, bool, Fraction, NumPy's, or a tensor with one element."""
    if found is None:
        raise Unusable("Your function returned None: is `return` missing?")
    try:
        if isinstance(found, str | bytes):
            raise TypeError
        return float(found.item() if hasattr(found, "item") else found)
    except (TypeError, ValueError, RuntimeError):
        raise Unusable(f"A number was expected; your function returned {named(found)}.", found) from None


def tensor(found: Any) -> Tensor:
    """A tensor of real numbers."""
    if found is None:
        raise Unusable("Your function returned None: is `return` missing?")
    if not isinstance(found, Tensor):
        raise Unusable(f"A tensor was expected; your function returned {named(found)}.", found)
    return found


def word(found: Any) -> str:
    """One of the three fates of a candidate."""
    if found is None:
        raise Unusable("Your function returned None: does every branch have a `return`?")
    if found not in FATES[:3]:
        raise Unusable(f"The answer must be one of {', '.join(map(repr, FATES[:3]))}, not {found!r}.", found)
    return str(found)


def named(found: Any) -> str:
    """The type of a value, with the shape of a tensor."""
    shape = f" of shape {tuple(found.shape)}" if hasattr(found, "shape") else ""
    return f"{'an' if type(found).__name__[0] in 'aeiou' else 'a'} {type(found).__name__}{shape}"


def equal(a: Any, b: Any) -> bool:
    """Whether two numbers, tensors (with their shapes) or words are the same, up to rounding."""
    if isinstance(a, str) or isinstance(b, str):
        return bool(a == b)
    a, b = (torch.as_tensor(x).detach().double() for x in (a, b))
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)


@dataclass
class Outcome:
    """What a function did with one case: a value, or an error."""

    value: Any = None
    error: BaseException | None = None
    printed: str = ""
    gradient: Tensor | None = None

    def same(self, other: "Outcome") -> bool:
        """Both returned the same, or both stopped with the same type of error."""
        if self.error is None and other.error is None:
            return equal(self.value, other.value)
        return type(self.error) is type(other.error) and not isinstance(self.error, Unusable)


@dataclass(frozen=True)
class Check:
    """The check of one exercise: `check(student)` returns what to print."""

    exercise: str
    right: Function
    agrees: str
    cases: Mapping[Hashable, tuple[Any, ...]]
    mistakes: Sequence[tuple[Function, str]]
    """functions that make a known mistake, without other faults, and what to say about it"""
    symptoms: Sequence[tuple[Symptom, str]] = ()
    read: Callable[[Any], Any] = number
    through: int | None = None
    """the argument that the result must have a gradient for"""
    known: list[dict[Hashable, Outcome]] = field(init=False, default_factory=list)
    """what the right function and each mistake give; filled in at the first use"""

    @property
    def expected(self) -> dict[Hashable, Outcome]:
        """What is right in each case."""
        return self.known[0]

    def __call__(self, student: Function) -> str:
        """RIGHT, NOT_SOLVED, or what is wrong with a counterexample."""
        if not self.known:
            self.known.extend(
                self.run(function) for function in (self.right, *(mistake for mistake, _ in self.mistakes))
            )
        found = self.run(student)
        if any(isinstance(o.error, NotImplementedError) for o in found.values()):
            return NOT_SOLVED
        wrong = [name for name in self.cases if not found[name].same(self.expected[name])]
        if not wrong:
            return self.slope(student, found) or f"{RIGHT} {self.agrees}"
        for given, (_, words) in zip(self.known[1:], self.mistakes, strict=True):
            if self.explains(given, found):
                return self.counterexample(student, words, wrong[0], found)
        values = {name: o.value for name, o in found.items()}
        for symptom, words in self.symptoms if all(o.error is None for o in found.values()) else ():
            if symptom(values):
                return self.counterexample(student, words, wrong[0], found)
        first, wanted = found[wrong[0]], self.expected[wrong[0]].value
        words = UNKNOWN.removeprefix("Not yet. ")
        if isinstance(first.error, Unusable):
            words = str(first.error)
        elif isinstance(first.error, EndlessLoop):
            words = f"Your function does not end: it was stopped after {MOST_LINES:,} lines."
        elif first.error is not None:
            advice = next((f" {text}" for part, text in ADVICE.items() if part in str(first.error)), "")
            words = (
                f"Your function stopped with {type(first.error).__name__}: {first.error}{'.' * bool(advice)}{advice}"
            )
        elif isinstance(wanted, Tensor) and first.value.shape != wanted.shape:
            words = f"The shape should be {tuple(wanted.shape)}, yours is {tuple(first.value.shape)}."
        return self.counterexample(student, words, wrong[0], found)

    def solved(self, student: Function) -> bool:
        """Whether the function is right."""
        return self(student).startswith(RIGHT)

    def use(self, student: Function) -> tuple[Function, str]:
        """The student's function if it is right, else one of the kit's; and words that say which."""
        if self.solved(student):
            return student, f"your `{self.exercise}`"
        return self.right, f"the kit's own, until your `{self.exercise}` is right"

    def run(self, function: Function) -> dict[Hashable, Outcome]:
        """What a function does with every case. After an endless loop no other case is tried."""
        found: dict[Hashable, Outcome] = {}
        made = Outcome()
        for name, case in self.cases.items():
            found[name] = made = made if isinstance(made.error, EndlessLoop) else self.call(function, case)
        return found

    def call(self, function: Function, case: tuple[Any, ...]) -> Outcome:
        """Call a function on a copy of a case, without its prints and warnings."""
        case, given = copy.deepcopy(case), None
        if self.through is not None:
            given = case[self.through].requires_grad_()
            case = (*case[: self.through], given * 1, *case[self.through + 1 :])  # no leaf: may be changed in place
        printed, made = io.StringIO(), Outcome()
        try:
            with contextlib.redirect_stdout(printed), warnings.catch_warnings(), counted(function):
                warnings.simplefilter("ignore")
                made.value = self.read(function(*case))
                if given is not None and made.value.requires_grad:
                    made.gradient = torch.autograd.grad(made.value.sum(), given, allow_unused=True)[0]
        except (Exception, SystemExit, EndlessLoop) as error:
            made.value, made.error = None, error
        made.printed = printed.getvalue()
        return made

    def explains(self, given: Mapping[Hashable, Outcome], found: Mapping[Hashable, Outcome]) -> bool:
        """Whether what a mistake gives is all that was found.

        Where the student's function stopped and the mistake alone does not, nothing is known: then it has to give the
        same wrong value in another case, not just stop as well.
        """
        values, errors, unknown = 0, 0, 0
        for name, outcome in found.items():
            own = given[name]
            if outcome.same(own):
                wrong = not own.same(self.expected[name])
                values += wrong and own.error is None
                errors += wrong and own.error is not None
            elif outcome.error is None or own.error is not None:
                return False
            else:
                unknown += 1
        return bool(values or (errors and not unknown))

    def slope(self, student: Function, found: Mapping[Hashable, Outcome]) -> str:
        """Empty if the gradient is right too, or if none is needed."""
        if self.through is None:
            return ""
        name = list(inspect.signature(self.right).parameters)[self.through]
        for which, outcome in found.items():
            wanted = self.expected[which].gradient
            if outcome.gradient is None:
                words = (
                    f"The numbers are right, but the result has no gradient for `{name}`, so nothing could be learned "
                    "from it: it was detached, or built again from Python numbers. Stay with operations on tensors."
                )
            elif not equal(outcome.gradient, wanted):
                words = (
                    f"The numbers are right, but the gradient for `{name}` is not: a part of the result was detached."
                )
            else:
                continue
            numbers = "none" if outcome.gradient is None else shown(outcome.gradient)
            return f"Not yet. {words}\n" + table(
                [("input", self.arguments(which)), ("gradient expected", shown(wanted)), ("got", numbers)]
            )
        return ""

    def counterexample(self, student: Function, words: str, name: Hashable, found: Mapping[Hashable, Outcome]) -> str:
        """The words, then input, expected and got of one case."""
        outcome = found[name]
        rows = [("input", self.arguments(name)), ("expected", shown(self.expected[name].value))]
        if outcome.error is None:
            rows.append(("got", shown(outcome.value)))
        elif not isinstance(outcome.error, Unusable):
            message = f": {outcome.error}" if str(outcome.error) else ""
            rows.append(("got", f"{type(outcome.error).__name__}{message}\n{line_of(outcome.error, student)}"))
        else:
            rows.append(("got", "None" if outcome.error.found is None else shown(outcome.error.found)))
        if outcome.printed.strip():
            rows.append(("printed", outcome.printed.strip()[:400]))
        return f"Not yet. {words}\n{table(rows)}"

    def arguments(self, name: Hashable) -> str:
        """A case as the student would write it."""
        parameters = inspect.signature(self.right).parameters
        separator = "\n" if any(isinstance(x, Tensor) for x in self.cases[name]) else ", "
        return separator.join(
            hanging(f"{parameter} = ", shown(x)) for parameter, x in zip(parameters, self.cases[name], strict=True)
        )


@contextlib.contextmanager
def counted(function: Function) -> Any:
    """Stop the student's code, wherever it is, after MOST_LINES lines. Lines of other files are not counted."""
    code = getattr(function, "__code__", None)
    left, before = MOST_LINES, sys.gettrace()

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal left
        if code is None or frame.f_code.co_filename != code.co_filename:
            return None
        left -= event == "line"
        if left < 0:
            raise EndlessLoop("stopped")
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def line_of(error: BaseException, student: Function) -> str:
    """The line of the student's own code that stopped, as `cell In[3], line 2:  return hits / len(slate)`."""
    code = getattr(student, "__code__", None)
    own = [f for f in traceback.extract_tb(error.__traceback__) if code and f.filename == code.co_filename]
    if not own:  # for example a wrong number of arguments
        return "when it was called"
    place = own[-1]
    where = f"{Path(place.filename).name}, "
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    if shell and (names := shell.compile.format_code_name(place.filename)):  # ("Cell", "In[3]")
        where = f"{names[0].lower()} {names[1]}, "
    text = (place.line or linecache.getline(place.filename, place.lineno or 0)).strip()
    return f"in {where}line {place.lineno}:  {text}"


def shown(x: Any) -> str:
    """A value in short form; a tensor with its rows below each other."""
    if isinstance(x, Tensor):
        if x.dim() > 2 or x.numel() > 200:
            return named(x)
        if x.dim() == 2:
            return hanging("[", ",\n".join(shown(row) for row in x) + "]")
        x = x.detach().int() if x.dtype == torch.bool else x.detach()
        values = [f"{round(v, 3) + 0.0:g}" for v in x.flatten().tolist()]  # no -0
        return values[0] if x.dim() == 0 else f"[{', '.join(values)}]"
    if isinstance(x, set):
        return "{" + ", ".join(map(str, sorted(x))) + "}"
    return f"{x:.4g}" if isinstance(x, float) else named(x) if hasattr(x, "shape") else repr(x)[:200]


def hanging(start: str, text: str) -> str:
    """The text after `start`, its other lines indented as far."""
    return start + text.replace("\n", "\n" + " " * len(start))


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Names on the left, values on the right."""
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(hanging(f"    {name:{width}}", text) for name, text in rows)


# --- two rewards ------------------------------------------------------------------------------------------------------


def _lists(seed: int) -> tuple[list[int], set[int]]:
    """A list of 6 indices into a pool of 12; 1 to 6 candidates are relevant."""
    generator = torch.Generator().manual_seed(seed)
    relevant = set(torch.randperm(12, generator=generator)[: 1 + seed % 6].tolist())
    return torch.randperm(12, generator=generator)[:6].tolist(), relevant


def _gains(items: list[int], relevant: set[int]) -> tuple[Tensor, Tensor]:
    """A list and the gains of the pool, as the kit's rewards want them."""
    gains = torch.zeros(1 + max([*items, *relevant]))
    gains[list(relevant)] = 1
    return torch.tensor(items, dtype=torch.long), gains


def _recall(slate: list[int], relevant: set[int]) -> float:
    return float(rewards.recall(*_gains(slate, relevant)))


def _hits(items: Sequence[int], relevant: set[int]) -> int:
    return len(set(items) & relevant)


recall = Check(
    "my_recall",
    _recall,
    "It agrees with fgrpo.rewards.recall.",
    {
        "1 of 2": ([4, 0, 7, 2], {0, 9}), "in another order": ([0, 4, 2, 7], {0, 9}), "all": ([7, 9, 2, 0], {0, 9}),
        "short": ([0], {0, 1, 2}), "none": ([5, 6], {1}), "empty": ([], {3}),
        **{n: _lists(n) for n in range(20)},
    },
    [
        (lambda s, r: _hits(s, r) / max(1, len(s)),
         "You divided by the length of the slate: that is precision. Recall divides by the number of relevant candidates."),
        (lambda s, r: _hits(s, r), "That is a count of the hits; divide it by how many candidates are relevant."),
        (lambda s, r: min(1, _hits(s, r)),
         "That says whether there was any hit, not which share of the relevant candidates was found."),
        (lambda s, r: _hits(s, r) / max(1, min(len(s), len(r))),
         "You divided by the shorter of the two. A slate that is too short for all relevant candidates has missed some: "
         "divide by the number of relevant candidates in any case."),
        (lambda s, r: _hits(s, r) / max(len(s), len(r)),
         "You divided by the longer of the two; divide by the number of relevant candidates in any case."),
        (lambda s, r: _hits(s, r) / len({*s, *r}),
         "You divided by the number of candidates in either of them (the Jaccard index): what else is in the slate must "
         "not matter."),
        (lambda s, r: 2 * _hits(s, r) / (len(s) + len(r)), "That is F1, which also punishes a long slate."),
        (lambda s, r: 1 - _hits(s, r) / len(r), "That is the share of the relevant candidates that was missed."),
        (lambda s, r: _hits(s, r) // len(r),
         "You divided without remainder (`//`), or cut the fraction off; recall is a fraction, use `/`."),
        (lambda s, r: 100 * _hits(s, r) / len(r), "That is in percent; recall is a number between 0 and 1."),
        (lambda s, r: len(set(range(len(s))) & r) / len(r),
         "You looked up positions of the slate (0, 1, 2, ...) in `relevant`, instead of the candidates at these positions."),
        (lambda s, r: _hits(s[:1], r) / len(r),
         "Only the first candidate of the slate was looked at: is `return` inside the loop?"),
        (lambda s, r: _hits(s[:-1], r) / len(r), "The last candidate of the slate was left out."),
    ],
    [
        (lambda v: not equal(v["1 of 2"], v["in another order"]),
         "The result depends on the order of the slate, which has no meaning."),
        (lambda v: max(v.values()) > 1 + 1e-6,
         "Recall cannot be larger than 1: it is a share of the relevant candidates."),
    ],
)  # fmt: skip


def _ndcg(ranked: list[int], relevant: set[int], k: int) -> float:
    return float(rewards.ndcg(*_gains(ranked, relevant), k))


def _dcg(
    items: Sequence[int], relevant: set[int], discount: Function = lambda i: 1 / math.log2(i + 1), first: int = 1
) -> float:
    return sum(discount(i) for i, item in enumerate(items, start=first) if item in relevant)


def _best(length: int, discount: Function = lambda i: 1 / math.log2(i + 1), first: int = 1) -> float:
    return sum(discount(i) for i in range(first, first + length))


def _with_discount(discount: Function, first: int = 1) -> Function:
    """NDCG with another discount, in list and best order."""
    return lambda x, r, k: _dcg(x[:k], r, discount, first) / _best(min(k, len(r)), discount, first)


def _of_hits(items: Sequence[int], relevant: set[int], k: int) -> float:
    """DCG over that of the list's own best order."""
    best = _best(min(k, _hits(items, relevant)))
    return _dcg(items[:k], relevant) / best if best else 0.0


FROM_ZERO = (
    "At the first rank you divided by log2(1) = 0, or used log2(0). The first rank has the discount 1 / log2(1 + 1) = 1: "
    "either you counted ranks from 0, or the + 1 is missing."
)
ndcg = Check(
    "my_ndcg",
    _ndcg,
    "It agrees with fgrpo.rewards.ndcg.",
    {
        "2 of 3": ([3, 0, 9], {0, 9, 8}, 5), "cut": ([0, 5], {0, 1, 2}, 1), "beyond": ([3, 1, 0], {0}, 2),
        "perfect": ([0, 1], {0, 1}, 5), "short": ([0], {0, 1, 2}, 5), "none": ([5, 4], {1}, 3), "empty": ([], {1}, 3),
        **{(n, k): (*_lists(n), k) for n in range(20) for k in (1, 3, 5, 8)},
    },
    [
        (lambda x, r, k: _dcg(x[:k], r),
         "That is DCG, which is not normalised: divide it by the DCG of the best order of the pool."),
        (lambda x, r, k: _of_hits(x[:k], r, k),
         "You divided by the list's own best order, so missed candidates cost nothing. Use that of the whole pool."),
        (_of_hits,
         "You divided by the best order of the list's own hits, so missed candidates cost nothing. Use the best order of "
         "the whole pool."),
        (lambda x, r, k: _dcg(x[:k], r) / max(1, _best(min(k, len(r), len(x)))),
         "You cut the best order to the length of this list. It is the best order of the whole pool, so that a list that "
         "ends too early loses something: it has min(k, relevant) ranks."),
        (lambda x, r, k: _dcg(x[:k], r) / _best(k),
         "Your best order has always k relevant candidates, but a pool can have fewer."),
        (lambda x, r, k: _dcg(x[:k], r) / _best(len(r)),
         "Your best order is longer than k; it must also end at rank k."),
        (lambda x, r, k: _dcg(x, r) / _best(min(k, len(r))), "A candidate beyond rank k was counted."),
        (lambda x, r, k: _dcg(x, r) / _best(len(r)), "`k` was not used: both sums end at rank k."),
        (lambda x, r, k: _dcg(x[: k - 1], r) / _best(min(k, len(r))), "Your list ends one rank too early, at k - 1."),
        (_with_discount(lambda i: 1 / math.log2(i)), FROM_ZERO),
        (_with_discount(lambda i: 1 / math.log2(i), 0), FROM_ZERO),
        (_with_discount(lambda i: 1 / i),
         "You divided the gain by the rank i itself; the discount is 1 / log2(i + 1), which gets smaller more slowly."),
        (_with_discount(lambda i: 1 / (math.log2(i) + 1)),
         "You used log2(i) + 1. The 1 belongs inside the logarithm: log2(i + 1)."),
        (_with_discount(lambda i: 1 / math.log2(i + 2)),
         "Your ranks are one too large: the first rank i = 1 has the discount 1 / log2(2) = 1. With `enumerate` from 0 it "
         "is log2(i + 2), from 1 it is log2(i + 1)."),
        (lambda x, r, k: _dcg(x[:k], r, lambda i: 1 / math.log2(i + 2)) / _best(min(k, len(r))),
         "The ranks of the list are one too large, those of the best order are right: both sums begin at i = 1."),
        (_with_discount(lambda i: math.log2(i + 1)), "You multiplied by log2(i + 1) where the gain is divided by it."),
        (lambda x, r, k: _hits(x[:k], r) / min(k, len(r)),
         "Every rank counted the same: the discount 1 / log2(i + 1) is missing."),
        (lambda x, r, k: _hits(x[:k], r) / len(r), "That is recall: the discount 1 / log2(i + 1) is missing."),
        (lambda x, r, k: _hits(x[:k], r) / k, "That is precision at k: the discount 1 / log2(i + 1) is missing."),
        (lambda x, r, k: next((1 / i for i, c in enumerate(x[:k], start=1) if c in r), 0.0),
         "That is the reciprocal rank of the first hit; all hits count."),
        (lambda x, r, k: next((1 / math.log2(i + 1) for i, c in enumerate(x[:k], 1) if c in r), 0) / _best(min(k, len(r))),
         "Only the first hit was counted: is there a `return` or `break` in the loop?"),
        (lambda x, r, k: _dcg(x[:k], r) / k, "You divided by k, not by the DCG of the best order."),
        (lambda x, r, k: _dcg(x[:k], r) / len(r),
         "You divided by the number of relevant candidates, not by the DCG of the best order."),
        (lambda x, r, k: _dcg(x[:k], r) / min(k, len(r)),
         "You divided by how many candidates the best order holds, not by its DCG: discount these too."),
        (lambda x, r, k: _dcg(x[:k], r) / max(1, len(x[:k])),
         "You divided by the length of the list, not by the DCG of the best order."),
        (lambda x, r, k: _dcg(range(len(x[:k])), r) / _best(min(k, len(r))),
         "You looked up ranks in `relevant`, instead of the candidates at these ranks."),
        (lambda x, r, k: _dcg(list(set(x[:k])), r) / _best(min(k, len(r))),
         "The order of the list was lost: a set has no order, so walk through the list."),
        (lambda x, r, k: _dcg(x[:k][::-1], r) / _best(min(k, len(r))),
         "You counted the ranks from the end: the list is best first."),
        *((lambda x, r, k, f=f: f * _dcg(x[:k], r) / _best(min(k, len(r))),
           "The two sums use different logarithms. Any base will do, but it must be the same above and below the line.")
          for f in (math.log(2), 1 / math.log(2), math.log10(2), 1 / math.log10(2))),
    ],
    [(lambda v: max(v.values()) > 1 + 1e-6,
      "NDCG cannot be larger than 1: no list is better than the best order that you divide by.")],
)  # fmt: skip


# --- advantages -------------------------------------------------------------------------------------------------------


def _centred(x: Tensor) -> Tensor:
    return credit.advantage(x, RLConfig())


def _spread(reward: Tensor, correction: int, added: float) -> Tensor:
    return reward.std(dim=1, keepdim=True, correction=correction) + added


SPREADS = list(itertools.product((0, 1), (0.0, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3)))
"""Bessel's correction or not, and what is added so that nothing is divided by 0"""
STD = (
    "You divided by the standard deviation of the group, as the original GRPO does; here, as in Dr. GRPO, the mean is only "
    "subtracted, so that a group with small differences has small advantages."
)
KEEPDIM = (
    "`reward.mean(dim=1)` has the shape (Q,), and PyTorch lines it up with the columns: rollout g gets the mean of query g, "
    "or nothing fits. With `keepdim=True` it has the shape (Q, 1), and every row gets its own mean."
)
advantage = Check(
    "my_advantage",
    lambda reward: _centred(reward),
    "It agrees with fgrpo.credit.advantage.",
    {
        "square": (torch.tensor([[1.0, 0.5, 0.0], [1.0, 1.0, 0.25], [0.5, 0.0, 0.0]]),),
        "wide": (torch.tensor([[1.0, 0.5, 0.5, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.5], [0.25, 0.5, 0.0, 0.0, 0.0]]),),
        "equal": (torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.0, 1.0, 0.0, 0.0]]),),
        "one query": (torch.tensor([[0.25, 0.0, 1.0]]),),
    },
    [
        (lambda x: x - x.mean(dim=1), KEEPDIM),
        (lambda x: x - x.mean(),
         "You took one mean over all queries, not one within each group: every query has its own mean. Otherwise all "
         "rollouts of an easy query would have a positive advantage."),
        (lambda x: x - x.mean(dim=0),
         "You took the mean over queries (dim 0); the rollouts of one query are along dim 1."),
        *((lambda x, c=c, e=e: _centred(x) / _spread(x, c, e), STD) for c, e in SPREADS),
        *((lambda x, c=c, e=e: (x - x.mean()) / (x.std(correction=c) + e),
           "You took mean and standard deviation over all queries; every query has its own mean, and nothing is divided.")
          for c, e in SPREADS),
        *((lambda x, c=c, e=e: x / _spread(x, c, e),
           "You divided by the standard deviation, but the mean was not subtracted.") for c, e in SPREADS),
        (lambda x: -_centred(x), "The sign is reversed: a rollout better than its group has a positive advantage."),
        (lambda x: _centred(x) * x.shape[1] / (x.shape[1] - 1),
         "You compared with the mean of the *other* rollouts (leave-one-out, RLOO). Here the mean is over the whole group."),
        (lambda x: x - x.amax(1, keepdim=True), "You subtracted the best reward of the group; the baseline is the mean."),
        (lambda x: x - x.amin(1, keepdim=True), "You subtracted the worst reward of the group; the baseline is the mean."),
        (lambda x: x - x.median(1, keepdim=True).values,
         "You subtracted the median of the group; the baseline is the mean. Only then do the advantages sum to 0."),
        (lambda x: x - x.sum(1, keepdim=True), "You subtracted the sum of the group; the baseline is the mean."),
        (lambda x: x.mean(1, keepdim=True), "That is the baseline alone; subtract it from the reward."),
        (lambda x: x.mean(1), "That is the baseline alone; subtract it from the reward."),
        (lambda x: x, "The reward came back unchanged: the mean of the group was not subtracted."),
        (lambda x: _centred(x).abs(), "The sign was lost: below the mean of its group a rollout has a negative advantage."),
        (lambda x: x / x.mean(1, keepdim=True), "You divided by the mean of the group; subtract it."),
        *((lambda x, e=e: _centred(x) / (x.amax(1, keepdim=True) - x.amin(1, keepdim=True) + e),
           "You divided by the range of the group; the mean is only subtracted.") for e in (0.0, 1e-8, 1e-6, 1e-4)),
    ],
    read=tensor,
)  # fmt: skip


def _masks(tokens: Tensor, close_slate: int, end: int) -> tuple[Tensor, Tensor]:
    """(in the slate phase, real), (B, T) each."""
    closes, ends = tokens == close_slate, tokens == end
    return closes.cumsum(1) - closes.long() == 0, ends.cumsum(1) - ends.long() == 0


def _paid(slate: Tensor, rank: Tensor, in_slate: Tensor, in_rank: Tensor) -> Tensor:
    """One number per phase, (Q, G) each, on its tokens: (B, T)."""
    return slate.reshape(-1, 1) * in_slate + rank.reshape(-1, 1) * in_rank


def _kit(method: str) -> Function:
    """A credit method of the kit, called with rewards, lam and the masks of the phases."""

    def of(slate: Tensor, rank: Tensor, lam: float, in_slate: Tensor, in_rank: Tensor) -> Tensor:
        paid = rewards.Rewards(slate, rank, *torch.zeros(2, *slate.shape), *torch.empty(3, 0))
        rollouts: Any = SimpleNamespace(phase=PHASE_SLATE * in_slate + PHASE_RANK * in_rank)  # all that it reads
        return credit.CREDITS[method](paid, rollouts, RLConfig(lam=lam))

    return of


def _changed(pay: Function) -> Function:
    """`my_credit` with mistakes: `pay` gets rewards, lam, and the masks in_slate and in_rank, all of them right."""

    def of(slate: Tensor, rank: Tensor, lam: float, tokens: Tensor, close_slate: int, end: int) -> Tensor:
        in_slate, real = _masks(tokens, close_slate, end)
        return pay(slate, rank, lam, in_slate & real, ~in_slate & real)

    return of


def _last(mask: Tensor) -> Tensor:
    return mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))


def _first(mask: Tensor) -> Tensor:
    return mask & (mask.cumsum(1) == 1)


def _unkept(x: Tensor) -> Tensor:
    return x - x.mean(dim=1)


LONG, SHORT = [2, 20, 21, 22, 3, 4, 21, 20, 5, 1, 0, 0], [2, 23, 3, 4, 23, 5, 1, 0, 0, 0, 0, 0]
UNCENTRED = "The rewards are not centred: an advantage is the reward minus the mean of its group."
ROWS = "The rows are in the wrong order: row q * G + g is rollout g of query q, as `reshape(-1, 1)` of (Q, G) has them."
TURNED = "The sign is reversed: a phase that was better than its group has a positive advantage."
WHOLE = "You took one mean over all queries; every query has its own mean (dim 1)."
DIM_0 = "You took the mean over queries (dim 0); the rollouts of one query are along dim 1."
PADDING = "Padding got credit: after the end token every advantage is 0."
LAM_SLATE = (
    "`lam` is in the wrong phase: it is the weight of the *rank* reward, and the slate tokens are paid without it."
)
LAM_MISSING = "`lam` is missing: the rank phase learns from lam times its advantage."
JOINT = "Every token got the advantage of the sum of both rewards: that is joint credit, GRPO's."
SWAPPED = "The phases are swapped: slate tokens got the rank advantage, rank tokens the slate advantage."
factorised = Check(
    "my_credit",
    _changed(_kit("fgrpo")),
    "It agrees with fgrpo.credit.fgrpo.",
    {
        "2 x 2": (torch.tensor([[1.0, 0.5], [0.25, 0.75]]), torch.tensor([[0.2, 0.6], [0.9, 0.1]]), 0.5,
                  torch.tensor([LONG, SHORT, LONG, SHORT]), 3, 1),
        "2 x 3": (torch.tensor([[1.0, 0.5, 0.0], [0.25, 0.75, 0.5]]), torch.tensor([[0.2, 0.6, 0.1], [0.9, 0.1, 0.3]]),
                  2.0, torch.tensor([LONG, SHORT, SHORT, LONG, LONG, SHORT]), 3, 1),
    },
    [
        (_changed(_kit("grpo")), JOINT),
        (_changed(lambda s, r, lam, a, b: _paid(_centred(s + r), _centred(s + r), a, b)),
         f"{JOINT} And `lam` is missing."),
        (_changed(_kit("reward_to_go")),
         "The slate tokens also got the rank reward. That is another method (reward to go); F-GRPO gives each phase its own "
         "reward only."),
        (_changed(lambda s, r, lam, a, b: _paid(_centred(s), lam * _centred(r), b, a)), SWAPPED),
        (_changed(lambda s, r, lam, a, b: _paid(_centred(r), lam * _centred(s), a, b)), SWAPPED),
        (_changed(lambda s, r, lam, a, b: _paid(_centred(r), _centred(s), a, b)), f"{SWAPPED} And `lam` is missing."),
        (_changed(lambda s, r, lam, a, b: _paid(_centred(s), _centred(r), a, b)), LAM_MISSING),
        (_changed(lambda s, r, lam, a, b: _paid(lam * _centred(s), _centred(r), a, b)), LAM_SLATE),
        (_changed(lambda s, r, lam, a, b: _paid(lam * _centred(s), lam * _centred(r), a, b)),
         "`lam` is on both phases: it is the weight of the rank reward only."),
        (_changed(lambda s, r, lam, a, b: _paid(_centred(s), _centred(r) / lam, a, b)), "You divided by `lam`; multiply."),
        (_changed(lambda s, r, lam, a, b: _paid(_centred(s), lam * _centred(r), a, b & ~_last(b))),
         "The end token has no credit: ending the list is a decision of the rank phase."),
        (lambda s, r, lam, t, c, e: _paid(_centred(s), lam * _centred(r), _masks(t, c, e)[0], ~_masks(t, c, e)[0]), PADDING),
        (_changed(lambda s, r, lam, a, b: _paid(_centred(s), lam * _centred(r), a & ~_last(a), b | _last(a))),
         "The token </SLATE> was paid as a rank token: closing the slate is the last decision of the slate phase."),
        (_changed(lambda s, r, lam, a, b: _paid(_centred(s), lam * _centred(r), a & ~_last(a), b)),
         "The token </SLATE> has no credit: closing the slate is the last decision of the slate phase."),
        (_changed(lambda s, r, lam, a, b: _paid(_centred(s), lam * _centred(r), a & ~_last(a), (b | _last(a)) & ~_last(b))),
         "Both tags are one token off: </SLATE> belongs to the slate phase and the end token to the rank phase."),
        (_changed(lambda s, r, lam, a, b: _paid(_centred(s), lam * _centred(r), a & ~_last(a), b & ~_last(b))),
         "Neither </SLATE> nor the end token has credit: each is the last decision of its phase."),
        (_changed(lambda s, r, lam, a, b: _paid(_centred(s), lam * _centred(r), a | _first(b), b & ~_first(b))),
         "The slate phase is one token too long: it ends with </SLATE>, and <RANK> belongs to the rank phase."),
        (_changed(lambda s, r, lam, a, b: _paid(_centred(s), lam * _centred(r), _last(a), _last(b))),
         "Only the last token of each phase got credit; all tokens of the phase get the same advantage."),
        (_changed(lambda s, r, lam, a, b: _paid(_centred(s), lam * _centred(r), a / a.sum(1, True), b / b.sum(1, True))),
         "You shared the advantage out among the tokens of the phase; each token gets all of it."),
        (_changed(lambda s, r, lam, a, b: _paid(s, lam * r, a, b)), UNCENTRED),
        (_changed(lambda s, r, lam, a, b: _paid(s, r, a, b)), f"{UNCENTRED} And `lam` is missing."),
        (_changed(lambda s, r, lam, a, b: _paid(_centred(s).T, lam * _centred(r).T, a, b)), ROWS),
        (_changed(lambda s, r, lam, a, b: _paid(_centred(s).roll(1, 0), lam * _centred(r).roll(1, 0), a, b)), ROWS),
        (_changed(lambda s, r, lam, a, b: -_paid(_centred(s), lam * _centred(r), a, b)), TURNED),
        (_changed(lambda s, r, lam, a, b: _paid(s - s.mean(), lam * (r - r.mean()), a, b)), WHOLE),
        (_changed(lambda s, r, lam, a, b: _paid(s - s.mean(0), lam * (r - r.mean(0)), a, b)), DIM_0),
        (_changed(lambda s, r, lam, a, b: _paid(_unkept(s), lam * _unkept(r), a, b)), KEEPDIM),
        *((_changed(lambda s, r, lam, a, b, c=c, e=e: _paid(
            _centred(s) / _spread(s, c, e), lam * _centred(r) / _spread(r, c, e), a, b)), STD) for c, e in SPREADS),
    ],
    [(lambda v: v["2 x 2"].shape == (4, 12) and bool((v["2 x 2"] * (torch.tensor([LONG, SHORT] * 2) == 0)).any()), PADDING)],
    read=tensor,
)  # fmt: skip


# --- the loss ---------------------------------------------------------------------------------------------------------


def _clipped(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    return torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


surrogate = Check(
    "my_surrogate",
    lambda ratio, advantages, low, high: loss.clipped_surrogate(ratio, advantages, low, high),
    "It agrees with fgrpo.loss.clipped_surrogate, and so does its gradient.",
    {
        "8 tokens": (torch.tensor([1.0, 1.1, 2.0, 0.5, 1.0, 0.9, 2.0, 0.5]), torch.tensor([1.0] * 4 + [-1.0] * 4), 0.2, 0.3),
        "(B, T)": (torch.tensor([[1.05, 0.7, 1.6], [0.95, 1.4, 0.05]]), torch.tensor([[0.5, -0.5, 0.25], [2.0, 0.0, -2.0]]),
                   0.1, 0.25),
    },
    [
        (lambda r, a, low, high: r * a,
         "Nothing is clipped: several steps could move the policy arbitrarily far on one rollout."),
        (lambda r, a, low, high: r.clamp(1 - low, 1 + high) * a,
         "You always clipped. Take the minimum of both: if the policy moved in the wrong direction (ratio 0.5, advantage "
         "+1), the gradient must not vanish, so that it can move back."),
        (lambda r, a, low, high: torch.maximum(r * a, r.clamp(1 - low, 1 + high) * a),
         "You took the maximum: the gradient is then 0 where it is needed, and not 0 where it should be."),
        (lambda r, a, low, high: torch.minimum(r, r.clamp(1 - low, 1 + high)) * a,
         "You took the minimum of the ratios, before the advantage: for a negative advantage the smaller product belongs "
         "to the larger ratio."),
        (lambda r, a, low, high: _clipped(r, a, high, low),
         "The widths are swapped: the ratio is limited to the interval from 1 - low to 1 + high."),
        (lambda r, a, low, high: _clipped(r, a, low, low),
         "You used `low` on both sides: the interval goes from 1 - low to 1 + high."),
        (lambda r, a, low, high: _clipped(r, a, high, high),
         "You used `high` on both sides: the interval goes from 1 - low to 1 + high."),
        (lambda r, a, low, high: torch.minimum(r * a, r.clamp(low, high) * a),
         "You clipped to the interval from low to high. These are widths around 1: it goes from 1 - low to 1 + high."),
        (lambda r, a, low, high: torch.minimum(r * a, r.clamp(-low, high) * a),
         "You clipped to an interval around 0. A ratio of 1 means no change: the interval goes from 1 - low to 1 + high."),
        (lambda r, a, low, high: torch.minimum(r * a, (r * a).clamp(1 - low, 1 + high)),
         "You clipped the product. Clip the ratio, and multiply it by the advantage after that."),
        (lambda r, a, low, high: (r * a).clamp(1 - low, 1 + high),
         "You clipped the product. Clip the ratio, multiply it by the advantage, and take the minimum of both products."),
        (lambda r, a, low, high: torch.minimum(r * a, r.clamp(max=1 + high) * a),
         "There is no lower bound: the ratio is also clipped at 1 - low."),
        (lambda r, a, low, high: torch.minimum(r * a, r.clamp(min=1 - low) * a),
         "There is no upper bound: the ratio is also clipped at 1 + high."),
        (lambda r, a, low, high: torch.minimum(r * a, r.clamp(1 - low, 1 + high)),
         "The clipped ratio was not multiplied by the advantage."),
        (lambda r, a, low, high: torch.minimum(r, r.clamp(1 - low, 1 + high)), "The advantages were not used."),
        (lambda r, a, low, high: -_clipped(r, a, low, high),
         "The sign is reversed. The surrogate should grow; the minus sign comes later, in the loss."),
        (lambda r, a, low, high: _clipped(1 / r, a, low, high),
         "You turned the ratio around (old / new). `ratio` is new / old already; use it as it is."),
        (lambda r, a, low, high: _clipped(r.exp(), a, low, high),
         "You took exp of the ratio. The ratio is exp(logp - old_logp) already; use it as it is."),
        (lambda r, a, low, high: _clipped(r.log(), a, low, high),
         "You took the logarithm of the ratio; use the ratio as it is."),
        (lambda r, a, low, high: r.log() * a, "You took the logarithm of the ratio; use the ratio as it is."),
        (lambda r, a, low, high: _clipped(r, a.abs(), low, high), "The sign of the advantage was lost."),
        (lambda r, a, low, high: torch.where(a > 0, r.clamp(1 - low, 1 + high), r) * a,
         "You clipped by the sign of the advantage. What decides is which product is smaller: take the minimum of both."),
        (lambda r, a, low, high: torch.where((r > 1 + high) | (r < 1 - low), 0, r * a),
         "Outside the interval you returned 0. The clipped ratio counts there, times the advantage."),
        (lambda r, a, low, high: r * a.clamp(1 - low, 1 + high), "You clipped the advantages; clip the ratio."),
        *((lambda r, a, low, high, f=f: f(_clipped(r, a, low, high)),
           "You made one number of all tokens. The result has a number for each token: `torch.minimum` compares them one "
           "by one, and the sum comes later.") for f in (torch.sum, torch.mean)),
        (lambda r, a, low, high: torch.minimum((r * a).min(), (r.clamp(1 - low, 1 + high) * a).min()),
         "You made one number of all tokens. The result has a number for each token: `torch.minimum` compares them one "
         "by one."),
    ],
    read=tensor,
    through=0,
)  # fmt: skip


def _loss(per_token: Tensor, mask: Tensor, longest: int) -> Tensor:
    return -(per_token * mask).sum() / (len(per_token) * longest)


def _sums(x: Tensor, mask: Tensor) -> Tensor:
    return -(x * mask).sum()


OWN_LENGTH = (
    "You divided each output by its own length: a token of a short output then weighs more than one of a long output. "
    "Divide by the constant B * longest."
)
normalised = Check(
    "my_loss",
    _loss,
    "It is the last step of fgrpo.loss.policy_loss.",
    {
        "2 outputs": (torch.tensor([[1.0, 0.5, -1.0, 2.0], [2.0, 1.0, 9.0, 9.0]]),
                      torch.arange(4) < torch.tensor([[3], [2]]), 5),
        "4 outputs": (torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),
                      torch.arange(8) < torch.tensor([[6], [5], [2], [3]]), 10),
    },
    [
        (lambda x, m, longest: -_loss(x, m, longest),
         "The minus sign is missing: an optimizer makes the loss smaller, and the surrogate should grow."),
        (lambda x, m, longest: _loss(x, torch.ones_like(m), longest), "Padding was counted: the mask is missing."),
        (lambda x, m, longest: _loss(x, ~m, longest), "The mask is turned around: it is true for real tokens."),
        (lambda x, m, longest: -((x * m).sum(1) / m.sum(1)).mean(), OWN_LENGTH),
        (lambda x, m, longest: -((x * m).sum(1) / m.sum(1)).sum(), OWN_LENGTH),
        (lambda x, m, longest: ((x * m).sum(1) / m.sum(1)).mean(), f"The minus sign is missing. {OWN_LENGTH}"),
        (lambda x, m, longest: _sums(x, m) / m.sum(),
         "You divided by the number of real tokens of this batch: the weight of a token then depends on the length of the "
         "other outputs. Divide by the constant B * longest."),
        (lambda x, m, longest: _sums(x, m) / (m.sum() * longest),
         "You divided by the number of real tokens of this batch; divide by the number of outputs, B."),
        (lambda x, m, longest: _sums(x, m) / x.numel(),
         "You divided by the width of this batch (a mean over all places); longest is the longest output that the grammar "
         "allows."),
        (lambda x, m, longest: -x.mean(), "You took the mean over all places: padding was counted, and `longest` not used."),
        (lambda x, m, longest: _sums(x, m) / (len(x) * m.sum(1).max()),
         "You divided by the longest output of this batch; `longest` is the longest output that the grammar allows."),
        (lambda x, m, longest: _sums(x, m) / longest,
         "You divided by `longest` only: divide by the number of outputs, B, too."),
        (lambda x, m, longest: _sums(x, m) / len(x), "You divided by the number of outputs only: divide by `longest` too."),
        (lambda x, m, longest: _sums(x, m), "The sum was not divided: divide by B * longest."),
        (lambda x, m, longest: _sums(x, m) * longest / len(x),
         "You multiplied by `longest`: put brackets around B * longest."),
        (lambda x, m, longest: _sums(x, m) / (x.shape[1] * longest),
         "You divided by the width T of the batch times `longest`; B is the number of rows, `len(per_token)`."),
        (lambda x, m, longest: -(x * m).sum(1) / longest, "That is one number per output; the loss is one number for all."),
        (lambda x, m, longest: -(x * m).sum(1) / (len(x) * longest),
         "That is one number per output; the loss is one number for all: sum over both dimensions."),
        (lambda x, m, longest: -(x * m) / (len(x) * longest), "That is one number per token: the sum is missing."),
        (lambda x, m, longest: -(x * m).sum(0) / (len(x) * longest),
         "You summed over the outputs only; sum over the tokens too."),
    ],
    read=tensor,
    through=0,
)  # fmt: skip


# --- diagnosis --------------------------------------------------------------------------------------------------------


def _fate(candidate: int, slate: list[int], ranked: list[int], relevant: set[int]) -> str:
    if candidate not in slate:
        return "slate_miss"
    if candidate not in ranked:
        return "rank_drop"
    return "right" if set(ranked[: ranked.index(candidate)]) <= relevant else "rank_drop"


def _if_kept(judge: Function) -> Function:
    """`my_fate`, but `judge` says whether a candidate that is in slate and ranked list is right."""

    def of(candidate: int, slate: list[int], ranked: list[int], relevant: set[int]) -> str:
        if candidate not in slate or candidate not in ranked:
            return _fate(candidate, slate, ranked, relevant)
        return "right" if judge(ranked.index(candidate), slate, ranked, relevant) else "rank_drop"

    return of


def _outputs(seed: int) -> list[tuple[int, list[int], list[int], set[int]]]:
    """A slate and its ranking, with each relevant candidate."""
    slate, relevant = _lists(seed)
    return [(c, slate, slate[:1:-1], relevant) for c in sorted(relevant)]


OUTPUT = ([0, 1, 5, 6, 2], [0, 5, 1, 6], {0, 1, 2, 3})  # 5 and 6 are irrelevant
fate = Check(
    "my_fate",
    _fate,
    "It agrees with fgrpo.evaluate.fates.",
    {
        "below an irrelevant one": (1, *OUTPUT), "not ranked": (2, *OUTPUT), "missed": (3, *OUTPUT), "first": (0, *OUTPUT),
        "second of two": (1, [0, 1], [0, 1], {0, 1}), "not first in the slate": (2, [5, 0, 2], [0, 2, 5], {0, 2}),
        "after an irrelevant and a relevant one": (2, [5, 0, 2], [5, 0, 2], {0, 2}),
        "early, but not right": (1, [7, 1, 2], [7, 1, 2], {1, 2, 3}),
        **{(n, case[0]): case for n in range(30) for case in _outputs(n)},
    },
    [
        (_if_kept(lambda i, s, x, r: True),
         "You returned 'right' for every ranked candidate, but its rank matters: no irrelevant one may be above it."),
        (lambda c, s, x, r: "slate_miss" if c not in x else _fate(c, s, x, r),
         "A candidate of the slate that is not in the ranked list is a 'rank_drop'. The ranked list does not tell whether "
         "the slate missed it: look at the slate."),
        (_if_kept(lambda i, s, x, r: i == 0),
         "Only the first rank was right for you. With two relevant candidates at the top, both are right."),
        (_if_kept(lambda i, s, x, r: set(x) <= r),
         "You asked for no irrelevant candidate anywhere in the list. What is ranked below the candidate does not matter."),
        (_if_kept(lambda i, s, x, r: set(x[i + 1 :]) <= r),
         "You looked at what is ranked *below* the candidate; what is above it decides."),
        (_if_kept(lambda i, s, x, r: i < len(r)),
         "You asked whether the candidate is among the first ranks, as many as are relevant. One irrelevant candidate "
         "above it is enough for a drop."),
        (_if_kept(lambda i, s, x, r: i == 0 or x[i - 1] in r),
         "You looked at the one candidate directly above; all that are above count."),
        (_if_kept(lambda i, s, x, r: any(o in r for o in x[:i])),
         "You asked whether *any* candidate above is relevant; *all* of them must be."),
        (_if_kept(lambda i, s, x, r: i == 0 or any(o in r for o in x[:i])),
         "You asked whether *any* candidate above is relevant; *all* of them must be."),
        (_if_kept(lambda i, s, x, r: not set(x[:i]) <= r), "'right' and 'rank_drop' are swapped for ranked candidates."),
        (_if_kept(lambda i, s, x, r: set(s[: s.index(x[i])]) <= r),
         "You looked at the order of the slate, which has no meaning. Look at the ranked list."),
        (lambda c, s, x, r: {"slate_miss": "rank_drop", "rank_drop": "slate_miss"}.get(_fate(c, s, x, r), "right"),
         "The names 'slate_miss' and 'rank_drop' are swapped."),
        (lambda c, s, x, r: "rank_drop" if c not in s else _fate(c, s, x, r),
         "A candidate that is not in the slate is a 'slate_miss', whatever the ranking does."),
        (lambda c, s, x, r: "right" if c in s else "slate_miss",
         "You looked at the slate only; the ranking can still drop a candidate."),
        (lambda c, s, x, r: "right" if c in s and c not in x else _fate(c, s, x, r),
         "A candidate of the slate that is not in the ranked list was dropped."),
        (lambda c, s, x, r: "right" if c in r else "slate_miss",
         "Every candidate that you are asked about is relevant; its fate depends on slate and ranked list."),
    ],
    read=word,
)  # fmt: skip


def _lengths(mask: Sequence[int], width: int = 7) -> Tensor:
    return torch.arange(width) < torch.tensor(mask).unsqueeze(1)


_SLATES = _lengths([3, 2, 4, 3, 3, 2])
reward_to_go = Check(
    "my_reward_to_go",
    _kit("reward_to_go"),
    "It agrees with fgrpo.credit.reward_to_go.",
    {
        "2 x 3": (torch.tensor([[1.0, 0.5, 0.0], [0.25, 0.75, 0.5]]), torch.tensor([[0.2, 0.6, 0.1], [0.9, 0.1, 0.3]]), 0.5,
                  _SLATES, _lengths([6, 5, 6, 4, 6, 5]) & ~_SLATES),
        "2 x 2": (torch.tensor([[1.0, 0.5], [0.25, 0.75]]), torch.tensor([[0.2, 0.6], [0.9, 0.1]]), 2.0,
                  _SLATES[:4], _lengths([6, 5, 6, 4]) & ~_SLATES[:4]),
    },
    [
        (_kit("grpo"), "The rank tokens also got the slate reward, which they cannot change: that is joint credit."),
        (_kit("fgrpo"),
         "Each phase got only its own reward: that is factorised credit. The rank reward comes after the slate, so "
         "the slate tokens get it too."),
        (lambda s, r, lam, a, b: _paid(_centred(s), _centred(s + lam * r), a, b),
         "The rank tokens got a reward that came before them. A token can only change later rewards: both for the slate "
         "tokens, the rank reward for the rank tokens."),
        (lambda s, r, lam, a, b: _paid(_centred(s + lam * r), _centred(r), a, b),
         "`lam` is missing in the rank phase: its tokens learn from lam times their advantage."),
        (lambda s, r, lam, a, b: _paid(_centred(s + r), lam * _centred(r), a, b),
         "`lam` is missing in the slate phase: it is paid slate + lam * rank."),
        (lambda s, r, lam, a, b: _paid(_centred(s + r), _centred(r), a, b),
         "`lam` is missing: the rank reward has the weight lam in both phases."),
        (lambda s, r, lam, a, b: _paid(_centred(lam * s + r), _centred(r), a, b), LAM_SLATE),
        (lambda s, r, lam, a, b: _paid(_centred(lam * (s + r)), lam * _centred(r), a, b), LAM_SLATE),
        (lambda s, r, lam, a, b: _paid(s + lam * r, lam * r, a, b), UNCENTRED),
        (lambda s, r, lam, a, b: _paid(_centred(s + lam * r), lam * _centred(r), b, a),
         "The phases are swapped: the slate tokens get both rewards, the rank tokens the rank reward."),
        (lambda s, r, lam, a, b: _paid(_centred(s + lam * r), lam * _centred(r), a, ~a),
         "Padding got credit: outside both phases every advantage is 0."),
        (lambda s, r, lam, a, b: _paid(_centred(s + lam * r), lam * _centred(r), a | b, b),
         "The rank tokens got both advantages, one on top of the other. They get the second only."),
        (lambda s, r, lam, a, b: _paid(_centred(lam * r), lam * _centred(r), a, b),
         "The slate tokens got the rank reward only; they come before both rewards."),
        (lambda s, r, lam, a, b: -_paid(_centred(s + lam * r), lam * _centred(r), a, b), TURNED),
        (lambda s, r, lam, a, b: _paid(s + lam * r - (s + lam * r).mean(), lam * (r - r.mean()), a, b), WHOLE),
        (lambda s, r, lam, a, b: _paid(s + lam * r - (s + lam * r).mean(0), lam * (r - r.mean(0)), a, b), DIM_0),
        (lambda s, r, lam, a, b: _paid(_unkept(s + lam * r), lam * _unkept(r), a, b), KEEPDIM),
        (lambda s, r, lam, a, b: _paid(_centred(s + lam * r).T, lam * _centred(r).T, a, b), ROWS),
        *((lambda s, r, lam, a, b, c=c, e=e: _paid(_centred(s + lam * r) / _spread(s + lam * r, c, e),
                                                    lam * _centred(r) / _spread(r, c, e), a, b), STD) for c, e in SPREADS),
    ],
    [(lambda v: v["2 x 3"].shape == (6, 7) and bool(v["2 x 3"][:, 6].any()),
      "Padding got credit: outside both phases every advantage is 0.")],
    read=tensor,
)  # fmt: skip


# --- real data --------------------------------------------------------------------------------------------------------

_POOLS = [(10, 20, 2), (5, 20, 1), (20, 20, 3), (3, 20, 4), (10, 20, 5), (1, 8, 3)]
chance = Check(
    "my_chance",
    lambda n, pool, relevant: n / pool,
    "Each relevant candidate is in a random slate with the same probability, however many there are.",
    {case: case for case in _POOLS},
    [
        (lambda n, pool, relevant: n * relevant / pool,
         "That is the expected number of hits; recall divides it by `relevant`."),
        (lambda n, pool, relevant: relevant / pool,
         "That is the expected precision, the share of the slate that is relevant."),
        (lambda n, pool, relevant: 1 - math.comb(pool - relevant, n) / math.comb(pool, n),
         "That is the probability of at least one hit, not the recall."),
        (lambda n, pool, relevant: 1 - (1 - relevant / pool) ** n,
         "That is the probability of at least one hit (and if candidates could be drawn twice), not the recall."),
        (lambda n, pool, relevant: 1 - (1 - n / pool) ** relevant,
         "That is about the probability of at least one hit, not the recall."),
        (lambda n, pool, relevant: math.comb(pool - relevant, n - relevant) / math.comb(pool, n) if n >= relevant else 0.0,
         "That is the probability that all relevant candidates are found, not the share that is found on average."),
        (lambda n, pool, relevant: (n / pool) ** relevant,
         "That is about the probability that all relevant candidates are found, not the share that is found on average."),
        (lambda n, pool, relevant: min(1.0, n / relevant),
         "That is the maximum recall of a slate of this length, not that of a random slate."),
        (lambda n, pool, relevant: n / relevant, "The size of the pool does not appear in your answer, but it matters."),
        (lambda n, pool, relevant: pool / n, "The fraction is upside down: a longer slate finds more."),
        (lambda n, pool, relevant: n / (pool * relevant),
         "You divided by `relevant` once too often. One relevant candidate is found with probability n / pool; what is the "
         "mean of such shares?"),
        (lambda n, pool, relevant: n // pool, "You divided without remainder (`//`); use `/`."),
        (lambda n, pool, relevant: 100 * n / pool, "That is in percent; recall is a number between 0 and 1."),
        (lambda n, pool, relevant: min(n, relevant) / pool,
         "You divided the largest possible number of hits by the pool; look at one relevant candidate alone."),
        (lambda n, pool, relevant: 1 / pool, "That is the probability of one draw; the slate has n of them."),
        (lambda n, pool, relevant: 1 - n / pool, "That is the share that is missed."),
        (lambda n, pool, relevant: n / (pool - relevant),
         "The pool holds the relevant candidates too: do not take them off."),
    ],
    [
        (lambda v: all(abs(v[n, pool, r] - n / pool) < 0.1 for n, pool, r in _POOLS),
         "That is close: if it is a simulation, it will never be exact. There is a short formula."),
        (lambda v: not equal(v[10, 20, 2], v[10, 20, 5]),
         "Your answer depends on `relevant`. The expected recall does not: each relevant candidate is found with the same "
         "probability."),
    ],
)  # fmt: skip


def _shared(a: list[Any], b: list[Any]) -> int:
    return len(set(a) & set(b))


overlap = Check(
    "my_overlap",
    lambda a, b: _shared(a, b) / len({*a, *b}),
    "It is the Jaccard index.",
    {
        "same": ([1, 2, 3], [3, 1, 2]), "apart": ([1, 2], [3, 4]), "a": ([1, 2, 3], [2, 3, 4, 5]),
        "b": ([2, 3, 4, 5], [1, 2, 3]), "words": (["a"], ["b", "a", "c", "d"]), "sorted": ([1, 2, 3], [1, 2, 3]),
        "equally long": ([7, 1, 2, 3], [7, 2, 8, 9]),
    },
    [
        (lambda a, b: sum(x == y for x, y in zip(a, b, strict=False)) / max(len(a), len(b)),
         "You compared position by position: [1, 2, 3] and [3, 1, 2] hold the same items. Slates have no order."),
        (lambda a, b: float(a == b),
         "You asked whether the two lists are equal; slates have no order, and can overlap partly."),
        (lambda a, b: float(set(a) == set(b)),
         "You asked whether both hold the same items, or divided without remainder (`//`). An overlap can be partial."),
        (_shared, "That is the number of items in both; divide it, so that two equal lists give 1."),
        (lambda a, b: _shared(a, b) / len(a),
         "You divided by the length of the first list, so the overlap is not the same from both sides."),
        (lambda a, b: _shared(a, b) / len(b),
         "You divided by the length of the second list, so the overlap is not the same from both sides."),
        (lambda a, b: 2 * _shared(a, b) / (len(a) + len(b)),
         "You divided by the mean length (Dice's coefficient); divide by the number of items in either list."),
        (lambda a, b: _shared(a, b) / min(len(a), len(b)),
         "You divided by the shorter length: a short list within a long one would have an overlap of 1. Divide by the "
         "number of items in either list."),
        (lambda a, b: _shared(a, b) / max(len(a), len(b)),
         "You divided by the longer length; divide by the number of items in either list."),
        (lambda a, b: _shared(a, b) / (len(a) + len(b)),
         "You counted the shared items twice below the line: divide by the number of *different* items."),
        (lambda a, b: 1 - _shared(a, b) / len({*a, *b}), "That is the distance: equal lists must give 1."),
        (lambda a, b: len(set(a) ^ set(b)) / len({*a, *b}), "That is the distance: equal lists must give 1."),
        (lambda a, b: len({*a, *b}) / _shared(a, b), "The fraction is upside down: the shared items are above the line."),
        (lambda a, b: float(_shared(a, b) > 0), "You asked whether anything is shared; how large a part is it?"),
        (lambda a, b: 100 * _shared(a, b) / len({*a, *b}), "That is in percent; the overlap is a number between 0 and 1."),
    ],
    [
        (lambda v: not equal(v["same"], v["sorted"]), "The result depends on the order of the lists. Slates have no order."),
        (lambda v: not equal(v["a"], v["b"]), "The overlap must be the same from both sides: for (a, b) and (b, a)."),
    ],
)  # fmt: skip

CHECKS = {
    check.exercise: check
    for check in (recall, ndcg, advantage, factorised, surrogate, normalised, fate, reward_to_go, chance, overlap)
}
