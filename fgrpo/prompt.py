"""The output language: `<SLATE> ids </SLATE> <RANK> ids </RANK>`, its grammar, its parser, its two phases.

Everything here is a pure function of texts or token ids. The grammar mask is recomputed wherever it is needed and never
stored: what may come next depends only on the pool and on how often each choice was already emitted.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from .config import GrammarConfig, KitError
from .data import Example

TAGS = ("<SLATE>", "</SLATE>", "<RANK>", "</RANK>")
END = "<eos>"
PAD = "<pad>"
HISTORY, POOL = "<HISTORY>", "<POOL>"
PHASE_PAD, PHASE_SLATE, PHASE_RANK = -1, 1, 2  # 0 is the prompt, which no completion tensor holds
ERRORS = ("", "malformed", "foreign", "duplicate", "too_long", "out_of_slate")


class Labels(Protocol):
    """A label scheme: how examples and completions are written in tokens. `ItemLabels`, or fgrpo.lm's IndexLabels."""

    pad: int
    end: int

    @property
    def tags(self) -> Sequence[int]: ...  # token ids of the four tags, empty where a tag takes several tokens
    def prompt(self, example: Example) -> str: ...  # for a reader
    def prompt_ids(self, example: Example, grammar: GrammarConfig | None = None) -> list[int]: ...
    def candidates(self, example: Example) -> tuple[str, ...]: ...  # the label of each, in pool order
    def choices(self, examples: Sequence[Example]) -> "Choices": ...  # what may be written for each example
    def spell(self, example: Example, slate: Sequence[int], rank: Sequence[int]) -> list[int]: ...  # a whole completion
    def text(self, ids: Sequence[int]) -> str: ...  # without the end token that closes it
    def phases(self, completions: Tensor, mask: Tensor) -> Tensor: ...  # of each token, (B, T)
    def words(self, completions: Tensor, mask: Tensor) -> Tensor | None: ...  # number of each token's word, (B, T)


class Choices(Protocol):
    """What the grammar may ever choose from: K choices for each of B rows. `ItemChoices`, or fgrpo.lm's IndexChoices."""

    @property
    def tokens(self) -> Tensor: ...  # (B, K) token ids
    @property
    def columns(self) -> Tensor | None: ...  # token ids whose logits are enough for every row; None: all of them
    def to(self, device: torch.device) -> Self: ...
    def repeat(self, times: int) -> Self: ...  # each row so often, as the rollouts of one query follow each other
    def longest(self, grammar: GrammarConfig) -> int: ...  # tokens of the longest completion that is allowed
    def slate_ids(self, row: int, slate: Sequence[int]) -> list[int]: ...  # with its opening and its closing tag
    def progress(self, grammar: GrammarConfig, constrained: bool) -> "Progress": ...  # of completions not yet begun
    def walk(self, completions: Tensor, mask: Tensor, grammar: GrammarConfig) -> tuple[Tensor, Tensor]: ...
    def item_ends(self, completions: Tensor) -> Tensor: ...  # (B, T) bool: the last token of each item in a list


class Progress(Protocol):
    """How far the completions of all rows are: what each may write next, (B, K) bool, and which of them are done."""

    def allowed(self) -> Tensor: ...
    def append(self, rows: Tensor, tokens: Tensor) -> None: ...
    def slate_closed(self) -> Tensor: ...
    def ended(self) -> Tensor: ...
    def repeat(self, times: int) -> Self: ...


class ItemLabels:
    """The `item` label scheme: every catalogue item is one token, `i0`, `i1`, ... in catalogue order.

    Titles never reach the tokenizer, so no text in them can be mistaken for a tag.
    """

    def __init__(self, items: Sequence[str]):
        """`items` are the catalogue's keys (ids, or texts where there are none), each once."""
        self.items = tuple(items)
        self.pad, self.end, *self.tags = range(2 + len(TAGS))  # token ids, as in `names`
        self.token_of = {key: f"i{n}" for n, key in enumerate(self.items)}
        self.names = [PAD, END, *TAGS, HISTORY, POOL, *self.token_of.values()]  # every token, by id
        self.vocabulary = {token: n for n, token in enumerate(self.names)}
        if len(self.token_of) != len(self.items):
            raise KitError("the catalogue holds an item twice: list each key once.")

    def candidates(self, example: Example) -> tuple[str, ...]:
        """Raise KitError on an unknown item or one that is in the pool twice."""
        labels = self._labels(example, example.candidate_keys)
        if len(set(labels)) < len(labels):
            raise KitError(f"example {example.id!r}: an item is in the pool twice; add 'candidate_ids'.")
        return labels

    def prompt(self, example: Example) -> str:
        """`<HISTORY> i4 i9 ... <POOL> i7 i12 ...`"""
        history = self._labels(example, example.history_keys)
        return " ".join((HISTORY, *history, POOL, *self.candidates(example)))

    def prompt_ids(self, example: Example, grammar: GrammarConfig | None = None) -> list[int]:
        return self._ids(self.prompt(example))

    def choices(self, examples: Sequence[Example]) -> "ItemChoices":
        pools = [[self.vocabulary[label] for label in self.candidates(e)] for e in examples]
        width = max(map(len, pools))
        return ItemChoices(torch.tensor([pool + [-1] * (width - len(pool)) + [*self.tags, self.end] for pool in pools]))

    def spell(self, example: Example, slate: Sequence[int], rank: Sequence[int]) -> list[int]:
        return self._ids(completion_text(slate, rank, self.candidates(example)))

    def text(self, ids: Sequence[int]) -> str:
        ids = ids[:-1] if len(ids) and ids[-1] == self.end else ids
        return " ".join([self.names[t] for t in ids])

    def phases(self, completions: Tensor, mask: Tensor) -> Tensor:
        return phases(completions, mask, self.tags[1])

    def words(self, completions: Tensor, mask: Tensor) -> Tensor | None:
        return None  # every token is a word

    def _ids(self, text: str) -> list[int]:
        return [self.vocabulary[token] for token in text.split()]

    def _labels(self, example: Example, keys: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(self.token_of[key] for key in keys)
        except KeyError as error:
            raise KitError(
                f"example {example.id!r}: item {error.args[0][:80]!r} is not in the policy's vocabulary of "
                f"{len(self.items)} items: use a checkpoint trained on this catalogue."
            ) from None


def completion_text(slate: Sequence[int], rank: Sequence[int], labels: Sequence[str]) -> str:
    """Write a slate and a rank (pool indices) in the output language."""
    inner = [" ".join(labels[i] for i in part) for part in (slate, rank)]
    return f"<SLATE> {inner[0]} </SLATE> <RANK> {inner[1]} </RANK> {END}"


class Output(NamedTuple):
    """A parsed completion: pool indices in the order written, or an error, one of ERRORS.

    A fault of the slate leaves both lists empty; one of the ranking alone leaves the slate as it was written.
    """

    slate: tuple[int, ...] = ()
    rank: tuple[int, ...] = ()
    error: str = ""


_SLATE = re.compile(r"\s*<SLATE>([^<>]*)</SLATE>(.*)", re.DOTALL)
_RANK = re.compile(r"\s*<RANK>([^<>]*)</RANK>\s*")


def parse(text: str, labels: Mapping[str, int], grammar: GrammarConfig) -> Output:
    """Read a completion (end and padding tokens removed). Never raises.

    `labels` maps each label of the pool to its index. Labels are compared as strings, so that neither Unicode digits
    nor endless numbers are ever read as a number. Separators are commas and white space.
    """
    match = _SLATE.fullmatch(text)
    slate, error = _read_list(match and match[1], grammar.slate_size, labels)
    if match is None or error:
        return Output(error=error)
    match = _RANK.fullmatch(match[2])
    rank, error = _read_list(match and match[1], grammar.rank_size, labels)
    if not error and not set(rank) <= set(slate):
        error = "out_of_slate"
    return Output(slate, () if error else rank, error)


def _read_list(text: str | None, size: int, labels: Mapping[str, int]) -> tuple[tuple[int, ...], str]:
    found = (text or "").replace(",", " ").split()
    if not found:
        return (), "malformed"
    if len(found) > size:
        return (), "too_long"
    if not all(label in labels for label in found):
        return (), "foreign"
    return tuple(labels[x] for x in found), "duplicate" if len(set(found)) < len(found) else ""


def max_tokens(grammar: GrammarConfig) -> int:
    """Tokens of the longest well-formed completion when every label is one token: both lists, four tags, the end."""
    return grammar.slate_size + grammar.rank_size + len(TAGS) + 1


@dataclass(frozen=True)
class ItemChoices:
    """What the grammar may ever choose from: the pool's labels, then the four tags and the end token.

    `tokens` (B, N + 5): token id of each choice, -1 where a pool is shorter than the longest.
    """

    tokens: Tensor
    columns = None

    def to(self, device: torch.device) -> "ItemChoices":
        return ItemChoices(self.tokens.to(device))

    def repeat(self, times: int) -> "ItemChoices":
        return ItemChoices(self.tokens.repeat_interleave(times, dim=0))

    def longest(self, grammar: GrammarConfig) -> int:
        return max_tokens(grammar)

    def slate_ids(self, row: int, slate: Sequence[int]) -> list[int]:
        inner = self.tokens[row, torch.tensor(slate, dtype=torch.long)].tolist()
        return [int(self.tokens[row, -5]), *inner, int(self.tokens[row, -4])]

    def progress(self, grammar: GrammarConfig, constrained: bool) -> "ItemProgress":
        return ItemProgress(self, grammar, torch.zeros_like(self.tokens, dtype=torch.int16).unsqueeze(1))

    def walk(self, completions: Tensor, mask: Tensor, grammar: GrammarConfig) -> tuple[Tensor, Tensor]:
        """What was allowed at each token, (B, T, N + 5) bool, and which of the choices it is, (B, T)."""
        # one-hot of each token over the choices, all zero for a foreign token
        emitted = ((completions.unsqueeze(-1) == self.tokens.unsqueeze(1)) & mask.unsqueeze(-1)).to(torch.int16)
        counts = emitted.cumsum(1, dtype=torch.int16) - emitted
        return self.allowed(counts, grammar), emitted.argmax(-1)

    def item_ends(self, completions: Tensor) -> Tensor:
        return (completions.unsqueeze(-1) == self.tokens[:, None, :-5]).any(-1)

    def allowed(self, counts: Tensor, grammar: GrammarConfig) -> Tensor:
        """Which choices may come next, given how often each was emitted. counts (B, T, N + 5) -> bool, same shape.

        An item's count is 0 outside the slate, 1 in the slate, 2 once ranked as well. After the end only the end
        is allowed, so that a finished row is forced, at log-prob 0.
        """
        items = counts[..., :-5]
        stage = counts[..., -5:].sum(-1, keepdim=True, dtype=counts.dtype)  # tags written: 1 in the slate, 3 in rank
        in_list, before = (stage == 1) | (stage == 3), stage > 1  # an item's count before it is added: 0, then 1
        written = (items > before).sum(-1, keepdim=True)
        room = in_list & (written < torch.where(stage == 1, grammar.slate_size, grammar.rank_size))
        pool = (items == before) & room & (self.tokens[:, None, :-5] >= 0)
        may_close = ~pool.any(-1, keepdim=True) if grammar.full else True
        tag = torch.arange(5, device=stage.device) == stage.clamp(max=4)
        return torch.cat((pool, tag & (~in_list | (written > 0) & may_close)), dim=-1)


def phases(token_ids: Tensor, mask: Tensor, close_slate: int) -> Tensor:
    """Phase of each completion token (B, T): PHASE_SLATE through `</SLATE>`, then PHASE_RANK, PHASE_PAD where masked."""
    closes = token_ids.eq(close_slate) & mask
    closed_before = closes.cumsum(1) - closes.long() > 0
    return torch.where(closed_before, PHASE_RANK, PHASE_SLATE).masked_fill(~mask, PHASE_PAD)


@dataclass
class ItemProgress:
    """How far the completions of all rows are: counts (B, 1, N + 5), how often each choice was emitted."""

    choices: ItemChoices
    grammar: GrammarConfig
    counts: Tensor

    def allowed(self) -> Tensor:
        return self.choices.allowed(self.counts, self.grammar).squeeze(1)

    def append(self, rows: Tensor, tokens: Tensor) -> None:
        self.counts[rows, 0] += (self.choices.tokens[rows] == tokens.unsqueeze(1)).to(self.counts.dtype)

    def slate_closed(self) -> Tensor:
        return self.counts[:, 0, -4] > 0

    def ended(self) -> Tensor:
        return self.counts[:, 0, -1] > 0

    def repeat(self, times: int) -> "ItemProgress":
        return ItemProgress(self.choices.repeat(times), self.grammar, self.counts.repeat_interleave(times, dim=0))
