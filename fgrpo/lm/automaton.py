"""The grammar where labels and tags take several tokens: an automaton over token ids.

A completion is a sequence of words, each with a fixed spelling in tokens: the tags, ` 7` (first of a list), `, 12`
(after another). Words may begin alike, and one may be the beginning of another (`1` and `12`): after `1` come both the
`2` and what may follow a finished `1`. `Spelling` refuses a tokenizer with which that would be ambiguous, so that the
tokens alone say which words they are, without looking ahead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..config import GrammarConfig, KitError

Word = tuple[int, ...]
OPEN, IN_SLATE, BETWEEN, IN_RANK, CLOSED, DONE = range(6)  # what a completion waits for; a tag leads to the next


@dataclass(frozen=True)
class Spelling:
    """Every word in tokens. `tags`: `<SLATE>`, `</SLATE>`, `<RANK>`, `</RANK>`, the end; `first`, `later` by label.

    Raises KitError if two readings of the same tokens were possible.
    """

    tags: tuple[Word, Word, Word, Word, Word]
    first: tuple[Word, ...]
    later: tuple[Word, ...]

    def __post_init__(self) -> None:
        for close in (self.tags[1], self.tags[3]):
            follow = {w[0] for w in (*self.later, close) if w}
            for family in (self.first, (*self.later, close)):
                self._check(family, close, follow)
        if not all(self.tags):
            raise KitError("this tokenizer spells a tag with no token at all.")

    @staticmethod
    def _check(family: Sequence[Word], close: Word, follow: set[int]) -> None:
        known = set(family)
        good = len(known) == len(family) and () not in known
        for word in family:
            for n in range(1, len(word)):
                good &= word[:n] not in known or (word[:n] != close and word[n] not in follow)
        if not good:
            raise KitError("this tokenizer spells labels or tags ambiguously: the grammar cannot be enforced with it.")

    @property
    def alphabet(self) -> list[int]:
        """Every token that a completion may hold."""
        return sorted({t for word in (*self.tags, *self.first, *self.later) for t in word})

    def write(self, slate: Sequence[int], rank: Sequence[int], closed: bool = True) -> list[int]:
        """The tokens of a completion (not `closed`: only its slate), from pool indices."""
        lists = [[(self.later if n else self.first)[i] for n, i in enumerate(part)] for part in (slate, rank)]
        words = [self.tags[0], *lists[0], self.tags[1]]
        if closed:
            words += [self.tags[2], *lists[1], *self.tags[3:]]
        return [t for word in words for t in word]

    def longest(self, pool: int, grammar: GrammarConfig) -> int:
        """Tokens of the longest completion over a pool of this size."""
        each = sorted(max(map(len, pair)) for pair in zip(self.first[:pool], self.later[:pool], strict=True))[::-1]
        return sum(map(len, self.tags)) + sum(each[: grammar.slate_size]) + sum(each[: grammar.rank_size])


@dataclass
class Walk:
    """One completion on its way: what it waits for, its lists so far, and the tokens of the word that is begun."""

    spelling: Spelling
    pool: int
    stage: int = OPEN
    slate: tuple[int, ...] = ()
    rank: tuple[int, ...] = ()
    begun: Word = ()

    def words(self, grammar: GrammarConfig) -> list[tuple[Word, int]]:
        """The words that may stand next, each with its pool index (-1: a tag)."""
        s = self.spelling
        if self.stage not in (IN_SLATE, IN_RANK):
            return [(s.tags[{OPEN: 0, BETWEEN: 2}.get(self.stage, 4)], -1)]
        listed, most, source = self.slate, grammar.slate_size, range(self.pool)
        if self.stage == IN_RANK:
            listed, most, source = self.rank, grammar.rank_size, self.slate  # type: ignore[assignment]
        spelled = s.later if listed else s.first
        found = [(spelled[i], i) for i in source if i not in listed] if len(listed) < most else []
        if listed and not (grammar.full and found):
            found.append((s.tags[1 if self.stage == IN_SLATE else 3], -1))
        return found

    def after(self, index: int) -> "Walk":
        """The completion with one more word finished."""
        slate, rank, stage = self.slate, self.rank, self.stage
        if index < 0:
            stage = min(stage + 1, DONE)
        elif stage == IN_SLATE:
            slate = (*slate, index)
        else:
            rank = (*rank, index)
        return Walk(self.spelling, self.pool, stage, slate, rank)

    def allowed(self, grammar: GrammarConfig) -> set[int]:
        """Which tokens may come next."""
        n, found = len(self.begun), set()
        for word, index in self.words(grammar):
            if word[:n] == self.begun:
                if len(word) > n:
                    found.add(word[n])
                else:
                    found |= self.after(index).allowed(grammar)
        return found

    def push(self, token: int, grammar: GrammarConfig) -> "Walk":
        """The completion with one more token. Raises KitError if it was not allowed."""
        begun = (*self.begun, token)
        live = [(word, index) for word, index in self.words(grammar) if word[: len(begun)] == begun]
        if not live:
            done = [index for word, index in self.words(grammar) if word == self.begun]
            if not done:
                raise KitError(f"token {token} is not allowed by the grammar here.")
            return self.after(done[0]).push(token, grammar)
        if len(live) == 1 and live[0][0] == begun:
            return self.after(live[0][1])
        return Walk(self.spelling, self.pool, self.stage, self.slate, self.rank, begun)


@dataclass(frozen=True)
class IndexChoices:
    """What the grammar may choose from, as prompt.Choices: here tokens of words. `pools`: size of each row's pool.

    `columns` (K,) the alphabet, `tokens` (B, K) the same in every row. `ends` and `closes` read tokens as text, however
    they are cut: where words end (all, and those of labels), and whether `</SLATE>` is written.
    """

    spelling: Spelling
    pools: tuple[int, ...]
    columns: Tensor
    ends: Callable[[Sequence[int]], tuple[list[int], list[int]]]
    closes: Callable[[Sequence[int]], bool]

    @property
    def tokens(self) -> Tensor:
        """Token id of each choice, (B, K)."""
        return self.columns.expand(len(self.pools), -1)

    def _with(self, pools: Sequence[int]) -> "IndexChoices":
        return replace(self, pools=tuple(pools))

    def to(self, device: torch.device) -> "IndexChoices":
        """On another device."""
        return replace(self, columns=self.columns.to(device))

    def repeat(self, times: int) -> "IndexChoices":
        """Each row `times` times."""
        return self._with([n for n in self.pools for _ in range(times)])

    def longest(self, grammar: GrammarConfig) -> int:
        """Tokens of the longest completion that the grammar allows over the largest pool."""
        return self.spelling.longest(len(self.spelling.first), grammar)

    def slate_ids(self, row: int, slate: Sequence[int]) -> list[int]:
        """Tokens of a slate (pool indices), from its opening tag through its closing one."""
        return self.spelling.write(slate, (), closed=False)

    def progress(self, grammar: GrammarConfig, constrained: bool) -> "IndexProgress":
        """Completions of every row that have nothing written yet."""
        return IndexProgress(self, grammar, constrained, [Walk(self.spelling, n) for n in self.pools])

    def walk(self, completions: Tensor, mask: Tensor, grammar: GrammarConfig) -> tuple[Tensor, Tensor]:
        """What was allowed at each token, (B, T, K) bool, and which of the choices it is, (B, T)."""
        column = {t: i for i, t in enumerate(self.columns.tolist())}
        end, where = self.spelling.tags[4][0], []
        for b, (row, n) in enumerate(zip(completions.tolist(), mask.sum(1).tolist(), strict=True)):
            walk = Walk(self.spelling, self.pools[b])
            for t, token in enumerate(row):
                where += [(b, t, column[x]) for x in (walk.allowed(grammar) if t < n else (end,))]
                walk = walk.push(token, grammar) if t < n else walk
        allowed = torch.zeros(*completions.shape, len(column), dtype=torch.bool, device=completions.device)
        allowed[tuple(torch.tensor(where, device=completions.device).T)] = True
        return allowed, (completions.unsqueeze(-1) == self.columns).int().argmax(-1)

    def item_ends(self, completions: Tensor) -> Tensor:
        """True at the last token of each label that a list holds. (B, T)."""
        found = torch.zeros_like(completions, dtype=torch.bool)
        for b, row in enumerate(completions.tolist()):
            found[b, self.ends(row)[1]] = True
        return found


@dataclass
class IndexProgress:
    """How far the completions of all rows are, as prompt.Progress. `free` holds their tokens where nothing is enforced."""

    choices: IndexChoices
    grammar: GrammarConfig
    constrained: bool
    walks: list[Walk]
    free: dict[int, list[int]] = field(default_factory=dict)

    def allowed(self) -> Tensor:
        """Which choices may come next, (B, K) bool."""
        columns = self.choices.columns.tolist()
        allowed = [walk.allowed(self.grammar) for walk in self.walks]
        return torch.tensor([[t in some for t in columns] for some in allowed], device=self.choices.columns.device)

    def append(self, rows: Tensor, tokens: Tensor) -> None:
        """Tokens that some rows wrote."""
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            if self.constrained:
                self.walks[row] = self.walks[row].push(token, self.grammar)
            else:
                self.free.setdefault(row, []).append(token)

    def slate_closed(self) -> Tensor:
        """Rows that have written `</SLATE>`, (B,) bool."""
        return self._flags(lambda walk: walk.stage > IN_SLATE, self.choices.closes)

    def ended(self) -> Tensor:
        """Rows that have written the end token, (B,) bool."""
        end = self.choices.spelling.tags[4][0]
        return self._flags(lambda walk: walk.stage == DONE, lambda ids: end in ids)

    def _flags(self, by_walk: Callable[[Walk], bool], by_ids: Callable[[list[int]], bool]) -> Tensor:
        flags = [by_walk(w) if self.constrained else by_ids(self.free.get(b, [])) for b, w in enumerate(self.walks)]
        return torch.tensor(flags, device=self.choices.columns.device)

    def repeat(self, times: int) -> "IndexProgress":
        """Each row `times` times."""
        free = {b * times + k: list(ids) for b, ids in self.free.items() for k in range(times)}
        walks = [w for w in self.walks for _ in range(times)]
        return IndexProgress(self.choices.repeat(times), self.grammar, self.constrained, walks, free)
