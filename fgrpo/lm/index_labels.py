"""The `index` label scheme, for pretrained models: candidates are listed as `[7] title` and written by number.

Prompts are built here, from leads (the kit's own words) and texts of the data. Those texts are tokenized apart from the
template, with special tokens as plain text, without control characters, and cut to a budget of tokens: whatever they
contain, they can neither end the prompt nor begin the model's answer. A prompt never contains item ids.
"""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..config import GrammarConfig, KitError
from ..data import Example
from ..prompt import PHASE_PAD, PHASE_RANK, PHASE_SLATE, TAGS
from .automaton import IndexChoices, Spelling, Word
from .chat import NO_DATE, Frame, frame_of

CHOOSE = "Choose a slate: at most {} candidates that may fit."
RANK = "Rank the candidates that fit best, best first: at most {}."
FORM = "Write only the numbers of candidates, each once, in exactly this form and nothing else:"
SLATE_FORM, RANK_FORM = "<SLATE> 7, 12, 3 </SLATE>", "<RANK> 12, 3 </RANK>"
ANSWER = "\n\nAnswer:\n"
"""text between prompt and answer for a model without a chat template"""
CHARACTERS = 32
"""maximum number of characters of a text that are read per token of its budget"""
QUERY_TOKENS = 200
"""minimum budget of the query, which is not cut with the passages: half a question cannot be answered"""
_WORD = re.compile(r"</?(?:SLATE|RANK)>|[^\s,<>]+")
_BIDI = {0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def ask_slate(grammar: GrammarConfig) -> str:
    """The question for a slate alone, with an example of the form."""
    return f"{CHOOSE.format(grammar.slate_size)} {FORM}\n{SLATE_FORM}"


def ask_ranking(grammar: GrammarConfig) -> str:
    """The question for a ranking of the candidates in the prompt, with an example of the form."""
    return f"{RANK.format(grammar.rank_size)} {FORM}\n{RANK_FORM}"


def ask_both(grammar: GrammarConfig) -> str:
    """The question for a slate and a ranking of it, with an example of the form."""
    choose, rank = CHOOSE.format(grammar.slate_size), RANK.format(grammar.rank_size)
    return f"{choose} Then, out of the slate: {rank} {FORM}\n{SLATE_FORM} {RANK_FORM}"


def prompt_lines(example: Example, pool: Sequence[int], ask: str) -> list[tuple[str, str]]:
    """The prompt's lines as (lead, text): leads are the kit's own words, texts come from the data.

    `pool`: indices of the candidates to list. A recommendation prompt has a history and candidates, a question answering
    prompt (no history) a question and passages.
    """
    history = [("History, oldest first:", ""), *(("-", text) for text in example.history)] if example.history else []
    query, heading = ("Query:", "Candidates:") if history else ("Question:", "Candidate passages:")
    candidates = [(f"[{i + 1}]", example.candidates[i]) for i in pool]
    return [(query, example.query), *history, (heading, ""), *candidates, ("", ""), (ask, "")]


def tidied(text: str, budget: int) -> str:
    """A text of the data on one line: control and direction marks, line breaks and runs of spaces become one space."""
    text = text[: CHARACTERS * budget]
    bad = (ord(c) in _BIDI or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)
    return " ".join("".join(" " if b else c for b, c in zip(bad, text, strict=True)).split())


class PromptSize(NamedTuple):
    """Tokens of a prompt, number of its texts that were truncated, and number of tokens cut from them in all."""

    prompt: int
    truncated: int
    cut_tokens: int


class IndexLabels:
    """How prompts and completions are written in tokens, and how completions are read, for one tokenizer."""

    tags: Sequence[int] = ()

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, passage_tokens: int = 200, date: str = ""
    ):
        """`config` is the model's, for the length of its context; `date`: shown by templates that show one, or today's.

        Raises KitError on a tokenizer or a chat template that cannot be used.
        """
        self.tokenizer, self.budget, self.query_budget = tokenizer, passage_tokens, max(passage_tokens, QUERY_TOKENS)
        self.context = getattr(config.get_text_config(), "max_position_embeddings", None)
        added = {i: str(token.content) for i, token in tokenizer.added_tokens_decoder.items()}
        self.tag_ids = {text: i for i, text in added.items() if text in TAGS}  # of a vocabulary that was extended
        self.reserved = {i: text for i, text in added.items() if len(text.strip()) > 1}
        self._added = re.compile("|".join(map(re.escape, sorted(self.reserved.values(), key=len)[::-1])) or "(?!)")
        self.date = ""
        self.before, self.after, self.end = self._template(date)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end
        if any(i in self.reserved for i in self.plain(" ".join(self.reserved.values()))):
            raise KitError("this tokenizer cannot read special tokens as plain text: texts could end the prompt.")
        self._spelling = lru_cache(maxsize=64)(self._spell)
        self._spelling(12)  # a tokenizer that cannot write the answer is refused before anything is trained
        self._prompt = lru_cache(maxsize=256)(
            lambda example, grammar: tuple(self.ask(example, range(len(example.candidates)), ask_both(grammar)))
        )

    def _template(self, date: str) -> tuple[list[int], list[int], int]:
        """Tokens before and after the prompt's text, and the token that ends an answer."""
        t, frame = self.tokenizer, Frame("", ANSWER, "")
        if t.chat_template:
            frame = frame_of(t, date)
            self.date, before, after = frame.date, self._special(frame.before), self._special(frame.between)
        elif date:
            raise KitError(NO_DATE.format(date))
        else:
            begin = t("a").input_ids[:1]
            before, after = begin if begin == [t.bos_token_id] else [], self.ids(ANSWER)
        # the token that the template writes after an answer, which need not be the tokenizer's end token
        ends = [i for i in self._special(frame.after) if i in self.reserved or i == t.eos_token_id]
        end = ends[0] if ends else t.eos_token_id
        if end is None:
            raise KitError("this tokenizer has no end token.")
        return before, after, end

    def _special(self, text: str) -> list[int]:
        """Tokens of a part of the template, where special tokens are read as special."""
        return self.tokenizer(text, add_special_tokens=False).input_ids if text else []

    def ids(self, text: str) -> list[int]:
        """Tokens of a text that follows another one, without the prefix that some tokenizers add at the start."""

        def tokens(text: str) -> list[int]:
            return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids

        for anchor in ("a", "\n"):
            alone, both = tokens(anchor), tokens(anchor + text)
            if both[: len(alone)] == alone:
                return both[len(alone) :]
        return tokens(text)

    def plain(self, text: str) -> list[int]:
        """Tokens of a text of the data, never an added token of the tokenizer, special or not."""
        ids = self.ids(text)
        if not any(i in self.reserved for i in ids):
            return ids
        cuts = [0, *(m.start() + 1 for m in self._added.finditer(text)), len(text)]
        return [i for a, b in pairwise(cuts) for i in self.ids(text[a:b]) if i not in self.reserved]

    def text_ids(self, text: str, budget: int) -> list[int]:
        """Tokens of a text of the data after its lead, within a budget."""
        text = tidied(text, budget)
        return self.plain(f" {text}")[:budget] if text else []

    def _budget(self, line: int) -> int:
        return self.budget if line else self.query_budget  # the first line of a prompt holds the query

    def prompt_ids(self, example: Example, grammar: GrammarConfig | None = None) -> list[int]:
        """Token ids of the prompt, which states the maximum lengths. Raises KitError if it does not fit into the context."""
        grammar, pool = grammar or GrammarConfig(), len(example.candidates)
        ids = list(self._prompt(example, grammar))
        room = self._spelling(pool).longest(pool, grammar)
        if self.context and len(ids) + room > self.context:
            raise KitError(
                f"example {example.id!r}: a prompt of {len(ids)} tokens and {room} for the answer are more than the "
                f"{self.context} that the model reads: lower --passage-tokens, or use a smaller pool."
            )
        return ids

    def ask(self, example: Example, pool: Sequence[int], question: str) -> list[int]:
        """Token ids of a prompt that lists the candidates `pool` (indices) by number, and then asks the question."""
        ids = [*self.before]
        for n, (lead, text) in enumerate(prompt_lines(example, pool, question)):
            ids += [*self.ids("\n" * (n > 0) + lead), *self.text_ids(text, self._budget(n))]
        return [*ids, *self.after]

    def prompt_size(self, example: Example) -> "PromptSize":
        """The prompt in tokens, and the tokens cut from its texts (of each text the first 10,000 tokens are counted)."""
        texts = (example.query, *example.history, *example.candidates)
        over = [max(0, len(self.plain(f" {tidied(t, 10_000)}")) - self._budget(n)) for n, t in enumerate(texts)]
        return PromptSize(len(self._prompt(example, GrammarConfig())), sum(n > 0 for n in over), sum(over))

    def prompt(self, example: Example) -> str:
        """The prompt as text, for a reader."""
        return self._decode(self.prompt_ids(example))

    def message(self, example: Example, grammar: GrammarConfig) -> str:
        """The prompt's text, to be put into a template and tokenized elsewhere: names of added tokens are removed."""
        lines = []
        for n, (lead, text) in enumerate(prompt_lines(example, range(len(example.candidates)), ask_both(grammar))):
            text = " ".join(self._added.sub(" ", self._decode(self.text_ids(text, self._budget(n)))).split())
            lines.append(f"{lead} {text}" if text else lead)
        return "\n".join(lines)

    def framed(self, message: str) -> list[int]:
        """Token ids of a text of `message` in the chat template, up to the start of the answer."""
        return [*self.before, *self.ids(message), *self.after]

    def candidates(self, example: Example) -> tuple[str, ...]:
        """The label of each candidate, in pool order: `1` to `N`."""
        return tuple(str(i + 1) for i in range(len(example.candidates)))

    def choices(self, examples: Sequence[Example]) -> IndexChoices:
        """Choices of the grammar for each example."""
        pools = tuple(len(e.candidates) for e in examples)
        spelling = self._spelling(max(pools))
        return IndexChoices(spelling, pools, torch.tensor(spelling.alphabet), self.word_ends, self._closes)

    def _spell(self, pool: int) -> Spelling:
        """The words for pools up to a size. Raises KitError if decoding their tokens does not give them back."""

        def word(text: str) -> Word:
            if (tag := text.strip()) in self.tag_ids:  # a tag that is one token of the vocabulary is written as it
                ids, same = [self.tag_ids[tag]], "a" + tag
            else:
                ids, same = self.ids(text), "a" + text
                if names := [self.reserved[i] for i in ids if i in self.reserved]:
                    raise KitError(
                        f"{names[0]!r} is an added token of this tokenizer, and part of the answer's {text!r}."
                    )
            if self._decode([*self.ids("a"), *ids]).strip() != same:
                raise KitError(f"this tokenizer does not decode the tokens of {text!r} to the same text.")
            return tuple(ids)

        first, later = (tuple(word(f"{before}{i + 1}") for i in range(pool)) for before in (" ", ", "))
        open_slate, close_slate, open_rank, close_rank = TAGS
        tags = (word(open_slate), *(word(f" {tag}") for tag in (close_slate, open_rank, close_rank)), (self.end,))
        return Spelling(tags, first, later)  # type: ignore[arg-type]

    def spell(self, example: Example, slate: Sequence[int], ranked: Sequence[int]) -> list[int]:
        """Token ids of a whole completion, from pool indices."""
        return self._spelling(len(example.candidates)).write(slate, ranked)

    def _decode(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # of one sequence; a batch would give a list
        return text

    def text(self, ids: Sequence[int]) -> str:
        """Tokens as text, without a final end token; other special tokens are kept."""
        ids = list(ids)
        return self._decode(ids[:-1] if ids and ids[-1] == self.end else ids)

    def _closes(self, ids: Sequence[int]) -> bool:
        return TAGS[1] in self._decode(ids)

    def phases(self, completions: Tensor, mask: Tensor) -> Tensor:
        """Phase of each token, (B, T): slate through the first one at which the text holds `</SLATE>`, then rank."""
        phase = torch.full_like(completions, PHASE_PAD)
        for b, (row, n) in enumerate(zip(completions.tolist(), mask.sum(1).tolist(), strict=True)):
            through = bisect_left(range(n), True, key=lambda t: self._closes(row[: t + 1])) + 1
            phase[b, :through], phase[b, through:n] = PHASE_SLATE, PHASE_RANK
        return phase.masked_fill(~mask, PHASE_PAD)

    def word_ends(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """Positions of the tokens that end a word, and of those that end a label; none after the end token."""
        n = next((t for t, token in enumerate(ids) if token in (self.end, self.pad)), len(ids))
        lengths = [len(self._decode(ids[: t + 1])) for t in range(n)]
        words = [(bisect_left(lengths, m.end()), m[0][0] != "<") for m in _WORD.finditer(self._decode(ids[:n]))]
        words = [(min(t, n - 1), is_label) for t, is_label in words]
        return sorted({t for t, _ in words}), sorted({t for t, is_label in words if is_label})

    def words(self, completions: Tensor, mask: Tensor) -> Tensor | None:
        """Number of the word that each token belongs to, (B, T): a label with its separator, a tag, what follows."""
        found = torch.zeros_like(completions)
        for b, row in enumerate(completions.tolist()):
            found[b, self.word_ends(row)[0]] = 1
        return found.cumsum(1) - found
