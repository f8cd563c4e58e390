"""The grammar where labels and tags take several tokens: an automaton over token ids.

A completion is a sequence of words, each with a fixed spelling in tokens: the tags, ` 7` (first of a list), `, 12`
(after another). Words may share a prefix, and one may be a prefix of another (`1` and `12`): after `1`, both the `2` and
everything that may follow a finished `1` are allowed. `Spelling` refuses a tokenizer for which this is ambiguous, so that
words can be recognised from the tokens so far, without lookahead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..config import GrammarConfig, KitError

Word = tuple[int, ...]
OPEN, IN_SLATE, BETWEEN, IN_RANK, CLOSED, DONE = range(6)  # stages of a completion; each tag leads to the next


@dataclass(frozen=True)
class Spelling:
    """Every word in tokens. `tags`: `<SLATE>`, `</SLATE>`, `<RANK>`, `</RANK>`, the end token.

    `first` and `later` hold one word per label, for the first position of a list and for later ones. Raises KitError if
    some tokens could be read in two ways.
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
            raise KitError("this tokenizer has no token for a tag: the grammar cannot be enforced with it.")

    @staticmethod
    def _check(family: Sequence[Word], close: Word, follow: set[int]) -> None:
        known = set(family)
        good = len(known) == len(family) and () not in known
        for word in family:
            for n in range(1, len(word)):
                good &= word[:n] not in known or (word[:n] != close and word[n] not in follow)
        if not good:
            raise KitError("this tokenizer splits labels or tags ambiguously: the grammar cannot be enforced with it.")

    @property
    def alphabet(self) -> list[int]:
        """Every token that can occur in a completion."""
        return sorted({t for word in (*self.tags, *self.first, *self.later) for t in word})

    def write(self, slate: Sequence[int], rank: Sequence[int], closed: bool = True) -> list[int]:
        """The tokens of a completion, or only those of its slate (not `closed`), from pool indices."""
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
    """State of one completion: its stage, its lists so far, and the tokens of its unfinished word."""

    spelling: Spelling
    pool: int
    stage: int = OPEN
    slate: tuple[int, ...] = ()
    rank: tuple[int, ...] = ()
    prefix: Word = ()

    def words(self, grammar: GrammarConfig) -> list[tuple[Word, int]]:
        """The words that may come next, each with its pool index (-1: a tag)."""
        s = self.spelling
        if self.stage not in (IN_SLATE, IN_RANK):
            return [(s.tags[{OPEN: 0, BETWEEN: 2}.get(self.stage, 4)], -1)]
        source: Sequence[int] = range(self.pool)
        chosen, limit = self.slate, grammar.slate_size
        if self.stage == IN_RANK:
            source, chosen, limit = self.slate, self.rank, grammar.rank_size
        labels = s.later if chosen else s.first
        found = [(labels[i], i) for i in source if i not in chosen] if len(chosen) < limit else []
        if chosen and not (grammar.full and found):
            found.append((s.tags[1 if self.stage == IN_SLATE else 3], -1))
        return found

    def after(self, index: int) -> "Walk":
        """The state after one more whole word."""
        slate, rank, stage = self.slate, self.rank, self.stage
        if index < 0:
            stage = min(stage + 1, DONE)
        elif stage == IN_SLATE:
            slate = (*slate, index)
        else:
            rank = (*rank, index)
        return Walk(self.spelling, self.pool, stage, slate, rank)

    def allowed(self, grammar: GrammarConfig) -> set[int]:
        """The tokens that may come next."""
        n, found = len(self.prefix), set()
        for word, index in self.words(grammar):
            if word[:n] == self.prefix:
                if len(word) > n:
                    found.add(word[n])
                else:
                    found |= self.after(index).allowed(grammar)
        return found

    def push(self, token: int, grammar: GrammarConfig) -> "Walk":
        """The state after one more token. Raises KitError if the token is not allowed."""
        prefix = (*self.prefix, token)
        live = [(word, index) for word, index in self.words(grammar) if word[: len(prefix)] == prefix]
        if not live:
            done = [index for word, index in self.words(grammar) if word == self.prefix]
            if not done:
                raise KitError(f"token {token} is not allowed by the grammar here.")
            return self.after(done[0]).push(token, grammar)
        if len(live) == 1 and live[0][0] == prefix:
            return self.after(live[0][1])
        return Walk(self.spelling, self.pool, self.stage, self.slate, self.rank, prefix)


@dataclass(frozen=True)
class IndexChoices:
    """Choices of the grammar (prompt.Choices), which are tokens of words here. `pools`: size of each row's pool.

    `columns` (K,) is the alphabet, `tokens` (B, K) repeats it for every row. `ends` and `closes` read tokens as text, so
    that they work for any tokenization: positions at which words and labels end, and whether `</SLATE>` was written.
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

    def to(self, device: torch.device) -> "IndexChoices":
        """On another device."""
        return replace(self, columns=self.columns.to(device))

    def repeat(self, times: int) -> "IndexChoices":
        """Each row `times` times."""
        return replace(self, pools=tuple(n for n in self.pools for _ in range(times)))

    def longest(self, grammar: GrammarConfig) -> int:
        """Tokens of the longest completion that the grammar allows over the largest pool."""
        return self.spelling.longest(len(self.spelling.first), grammar)

    def slate_ids(self, row: int, slate: Sequence[int]) -> list[int]:
        """Tokens of a slate (pool indices), from its opening tag through its closing one."""
        return self.spelling.write(slate, (), closed=False)

    def progress(self, grammar: GrammarConfig, constrained: bool) -> "IndexProgress":
        """An empty completion for every row."""
        return IndexProgress(self, grammar, constrained, [Walk(self.spelling, n) for n in self.pools])

    def walk(self, completions: Tensor, mask: Tensor, grammar: GrammarConfig) -> tuple[Tensor, Tensor]:
        """Allowed choices at each token, (B, T, K) bool, and the index of the chosen one, (B, T)."""
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
        """True at the last token of each label in a list, (B, T)."""
        found = torch.zeros_like(completions, dtype=torch.bool)
        for b, row in enumerate(completions.tolist()):
            found[b, self.ends(row)[1]] = True
        return found


@dataclass
class IndexProgress:
    """State of the completions of all rows (prompt.Progress). In free decoding, `free` holds their tokens."""

    choices: IndexChoices
    grammar: GrammarConfig
    constrained: bool
    walks: list[Walk]
    free: dict[int, list[int]] = field(default_factory=dict)

    def allowed(self) -> Tensor:
        """Allowed next choices, (B, K) bool."""
        columns = self.choices.columns.tolist()
        allowed = [walk.allowed(self.grammar) for walk in self.walks]
        return torch.tensor([[t in tokens for t in columns] for tokens in allowed], device=self.choices.columns.device)

    def append(self, rows: Tensor, tokens: Tensor) -> None:
        """Append one token to each of the given rows."""
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
