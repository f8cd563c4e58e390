"""The output language: `<SLATE> ids </SLATE> <RANK> ids </RANK>`, its grammar, its parser, its two phases.

Everything here is a pure function of texts or token ids. The grammar mask is recomputed wherever it is needed and never
stored: what may come next depends only on the pool and on how often each choice was already emitted.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


class ItemLabels:
    """The `item` label scheme: every catalogue item is one token, `i0`, `i1`, ... in catalogue order.

    Titles never reach the tokenizer, so no text in them can be mistaken for a tag.
    """

    def __init__(self, items: Sequence[str]):
        """`items` are the catalogue's keys (ids, or texts where there are none), each once."""
        self.items = tuple(items)
        self.token_of = {key: f"i{n}" for n, key in enumerate(self.items)}
        if len(self.token_of) != len(self.items):
            raise KitError("the catalogue holds an item twice: each key may stand there once.")

    def vocabulary(self) -> dict[str, int]:
        """Token to id, for a tokenizer that splits at white space."""
        return {t: n for n, t in enumerate((PAD, END, *TAGS, HISTORY, POOL, *self.token_of.values()))}

    def candidates(self, example: Example) -> tuple[str, ...]:
        """The label of each candidate, in pool order. Raises KitError on an unknown item or one that stands twice."""
        labels = self._labels(example, example.candidate_keys)
        if len(set(labels)) < len(labels):
            raise KitError(
                f"example {example.id!r}: an item stands twice in the pool; add 'candidate_ids' to tell apart."
            )
        return labels

    def prompt(self, example: Example) -> str:
        """`<HISTORY> i4 i9 ... <POOL> i7 i12 ...`"""
        history = self._labels(example, example.history_keys)
        return " ".join((HISTORY, *history, POOL, *self.candidates(example)))

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
    """A parsed completion: pool indices in the order written, or an error (one of ERRORS) and two empty tuples."""

    slate: tuple[int, ...] = ()
    rank: tuple[int, ...] = ()
    error: str = ""


_SHAPE = re.compile(r"\s*<SLATE>([^<>]*)</SLATE>\s*<RANK>([^<>]*)</RANK>\s*")


def parse(text: str, labels: Mapping[str, int], grammar: GrammarConfig) -> Output:
    """Read a completion (end and padding tokens removed). Never raises; an ill-formed output has no slate and no rank.

    `labels` maps each label of the pool to its index. Labels are compared as strings, so that neither Unicode digits
    nor endless numbers are ever read as a number. Separators are commas and white space.
    """
    match = _SHAPE.fullmatch(text)
    if match is None:
        return Output(error="malformed")
    slate_labels, rank_labels = (part.replace(",", " ").split() for part in match.groups())
    if not slate_labels or not rank_labels:
        return Output(error="malformed")
    if len(slate_labels) > grammar.slate_size or len(rank_labels) > grammar.rank_size:
        return Output(error="too_long")
    if not all(label in labels for label in slate_labels + rank_labels):
        return Output(error="foreign")
    if len(set(slate_labels)) < len(slate_labels) or len(set(rank_labels)) < len(rank_labels):
        return Output(error="duplicate")
    if not set(rank_labels) <= set(slate_labels):
        return Output(error="out_of_slate")
    return Output(tuple(labels[x] for x in slate_labels), tuple(labels[x] for x in rank_labels))


def max_tokens(grammar: GrammarConfig) -> int:
    """Tokens of the longest well-formed completion when every label is one token: both lists, four tags, the end."""
    return grammar.slate_size + grammar.rank_size + len(TAGS) + 1


@dataclass(frozen=True)
class Choices:
    """What the grammar may ever choose from: the pool's labels, then the four tags and the end token.

    `tokens` (B, N + 5): token id of each choice, -1 where a pool is shorter than the longest.
    """

    tokens: Tensor

    def repeat(self, times: int) -> "Choices":
        """Each row `times` times, as the rollouts of one query follow each other."""
        return Choices(self.tokens.repeat_interleave(times, dim=0))

    def allowed(self, counts: Tensor, grammar: GrammarConfig) -> Tensor:
        """Which choices may come next, given how often each was emitted. counts (B, T, N + 5) -> bool, same shape.

        An item's count is 0 outside the slate, 1 in the slate, 2 once ranked as well. After the end only the end
        is allowed, so that a finished row is forced, at log-prob 0.
        """
        items, (open_slate, close_slate, open_rank, close_rank, _) = counts[..., :-5], counts[..., -5:].unbind(-1)
        in_slate = (open_slate > 0) & (close_slate == 0)
        in_rank = (open_rank > 0) & (close_rank == 0)
        chosen, ranked = (items > 0).sum(-1), (items > 1).sum(-1)
        may_add = (in_slate & (chosen < grammar.slate_size)).unsqueeze(-1) & (items == 0)
        may_rank = (in_rank & (ranked < grammar.rank_size)).unsqueeze(-1) & (items == 1)
        pool = (may_add | may_rank) & (self.tokens[:, None, :-5] >= 0)
        may_close = ~pool.any(-1) if grammar.full else True
        structure = (
            open_slate == 0,
            in_slate & (chosen > 0) & may_close,
            (close_slate > 0) & (open_rank == 0),
            in_rank & (ranked > 0) & may_close,
            close_rank > 0,
        )
        return torch.cat((pool, torch.stack(structure, -1)), dim=-1)

    def emitted(self, token_ids: Tensor) -> Tensor:
        """One-hot of each token over the choices. (B, T) -> (B, T, N + 5) int16; all zero for a foreign token."""
        return (token_ids.unsqueeze(-1) == self.tokens.unsqueeze(1)).to(torch.int16)


def phases(token_ids: Tensor, mask: Tensor, close_slate: int) -> Tensor:
    """Phase of each completion token (B, T): PHASE_SLATE through `</SLATE>`, then PHASE_RANK, PHASE_PAD where masked."""
    closes = token_ids.eq(close_slate) & mask
    closed_before = closes.cumsum(1) - closes.long() > 0
    return torch.where(closed_before, PHASE_RANK, PHASE_SLATE).masked_fill(~mask, PHASE_PAD)
