"""The `index` label scheme, for pretrained models: candidates are listed as `[7] title` and written by number.

The one prompt of the kit is built here, from leads that the kit wrote and texts that it did not. Those are tokenized
apart from the template, with special tokens as plain text, cut to a budget of tokens and rid of control characters:
whatever they hold, they can neither end the prompt nor speak for the model. Ids of items never stand in a prompt.
"""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import GrammarConfig, KitError
from ..data import Example
from ..prompt import PHASE_PAD, PHASE_RANK, PHASE_SLATE, TAGS
from .automaton import IndexChoices, Spelling, Word

CHOOSE = "Choose a slate: at most {} candidates that may fit."
RANK = "Rank the candidates that fit best, best first: at most {}."
FORM = "Write only the numbers of candidates, each once, in exactly this form and nothing else:"
SLATE_FORM, RANK_FORM = "<SLATE> 7, 12, 3 </SLATE>", "<RANK> 12, 3 </RANK>"
ANSWER = "\n\nAnswer:\n"
"""what stands between prompt and answer where a model has no chat template"""
CHARACTERS = 32
"""most characters of a text that are looked at per token of its budget"""
QUERY_TOKENS = 200
"""the query's own budget, if that of a passage is lower: half a question cannot be answered"""
_WORD = re.compile(r"</?(?:SLATE|RANK)>|[^\s,<>]+")
_BIDI = {0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_HERE = "(prompt)"  # where the prompt's own text goes in a chat template


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


def prompt_lines(example: Example, shown: Sequence[int], ask: str) -> list[tuple[str, str]]:
    """The prompt's lines as (lead, text), the leads by the kit and the texts by whoever wrote the data.

    Recommendation shows a history and candidates, question answering (no history) a question and passages.
    """
    history = [("History, oldest first:", ""), *(("-", text) for text in example.history)] if example.history else []
    query, pool = ("Query:", "Candidates:") if history else ("Question:", "Candidate passages:")
    candidates = [(f"[{i + 1}]", example.candidates[i]) for i in shown]
    return [(query, example.query), *history, (pool, ""), *candidates, ("", ""), (ask, "")]


def chat(tokenizer: Any, content: str) -> str:
    """A user's message in the model's chat template, up to where its answer begins."""
    how: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    return tokenizer.apply_chat_template([{"role": "user", "content": content}], **how)


def tidied(text: str, budget: int) -> str:
    """One line of a foreign text: control and direction marks and line breaks are spaces, and those are single."""
    text = text[: CHARACTERS * budget]
    bad = (ord(c) in _BIDI or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)
    return " ".join("".join(" " if b else c for b, c in zip(bad, text, strict=True)).split())


class PromptSize(NamedTuple):
    """Tokens of a prompt, how many of its texts were cut short, and by how many tokens in all."""

    prompt: int
    truncated: int
    cut_tokens: int


class IndexLabels:
    """Prompts, spelled completions and their reading, for one tokenizer."""

    tags: Sequence[int] = ()

    def __init__(self, tokenizer: Any, config: Any, passage_tokens: int = 200):
        """`config` is the model's, for the length of its context. Raises KitError on a tokenizer that does not do."""
        self.tokenizer, self.budget, self.query_budget = tokenizer, passage_tokens, max(passage_tokens, QUERY_TOKENS)
        self.context = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.reserved = {
            i: str(t.content) for i, t in tokenizer.added_tokens_decoder.items() if len(str(t.content).strip()) > 1
        }
        self._added = re.compile("|".join(map(re.escape, sorted(self.reserved.values(), key=len)[::-1])) or "(?!)")
        before, after, self.end = self._template()
        self.before, self.after = before, after
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end
        if any(i in self.reserved for i in self.plain(" ".join(self.reserved.values()))):
            raise KitError("this tokenizer cannot read special tokens as plain text: texts could end the prompt.")
        self._spelling = lru_cache(maxsize=64)(self._spell)
        self._prompt = lru_cache(maxsize=256)(self._tokenized)

    def _template(self) -> tuple[list[int], list[int], int]:
        """Tokens before and after the prompt's text, and the token that ends an answer."""
        t = self.tokenizer
        if not t.chat_template:
            if t.eos_token_id is None:
                raise KitError("this tokenizer has no end token.")
            begin = t("a")["input_ids"][:1]
            return begin if begin == [t.bos_token_id] else [], self.ids(ANSWER), t.eos_token_id
        before, here, after = chat(t, _HERE).partition(_HERE)
        if not here or _HERE in after:
            raise KitError("the chat template of this model does not show a message as it is.")
        # an answer ends as the template ends one, which need not be the end token of the tokenizer
        said = t.apply_chat_template(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": _HERE}], tokenize=False
        )
        ends = [i for i in self._special(said.rpartition(_HERE)[2]) if i in self.reserved or i == t.eos_token_id]
        return self._special(before), self._special(after), ends[0] if ends else t.eos_token_id

    def _special(self, text: str) -> list[int]:
        """Tokens of a text of the template, in which special tokens are meant as such."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def ids(self, text: str, special: bool = False) -> list[int]:
        """Tokens of a text that stands after another: what some tokenizers put before a text is left out."""
        for anchor in ("a", "\n"):
            alone, both = (
                self.tokenizer(x, add_special_tokens=False, split_special_tokens=not special)["input_ids"]
                for x in (anchor, anchor + text)
            )
            if both[: len(alone)] == alone:
                return both[len(alone) :]
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"]

    def plain(self, text: str) -> list[int]:
        """Tokens of a foreign text: no added token of the tokenizer, special or not, is ever among them."""
        ids = self.ids(text)
        if not any(i in self.reserved for i in ids):
            return ids
        cuts = [0, *(m.start() + 1 for m in self._added.finditer(text)), len(text)]
        return [i for a, b in pairwise(cuts) for i in self.ids(text[a:b]) if i not in self.reserved]

    def text_ids(self, text: str, budget: int) -> list[int]:
        """Tokens of a foreign text behind its lead, within a budget."""
        text = tidied(text, budget)
        return self.plain(f" {text}")[:budget] if text else []

    def _budget(self, line: int) -> int:
        return self.budget if line else self.query_budget  # the query stands in the first line of a prompt

    def prompt_ids(self, example: Example, grammar: GrammarConfig | None = None) -> list[int]:
        """Token ids of the prompt, which says how long lists may be. Raises KitError if the context has no room for it."""
        grammar, pool = grammar or GrammarConfig(), len(example.candidates)
        ids = list(self._prompt(example, grammar))
        room = self._spelling(pool).longest(pool, grammar)
        if self.context and len(ids) + room > self.context:
            raise KitError(
                f"example {example.id!r}: a prompt of {len(ids)} tokens and {room} for the answer are more than the "
                f"{self.context} that the model reads: lower --passage-tokens, or use a smaller pool."
            )
        return ids

    def _tokenized(self, example: Example, grammar: GrammarConfig) -> tuple[int, ...]:
        return tuple(self.ask(example, range(len(example.candidates)), ask_both(grammar)))

    def ask(self, example: Example, pool: Sequence[int], question: str) -> list[int]:
        """Token ids of a prompt that lists the candidates `pool` (indices), each under its own number, and asks."""
        ids = [*self.before]
        for n, (lead, text) in enumerate(prompt_lines(example, pool, question)):
            ids += [*self.ids("\n" * (n > 0) + lead), *self.text_ids(text, self._budget(n))]
        return [*ids, *self.after]

    def prompt_size(self, example: Example) -> "PromptSize":
        """The prompt in tokens, and what its budget cut from each text (of which the first 10,000 tokens are looked at)."""
        texts = (example.query, *example.history, *example.candidates)
        over = [max(0, len(self.plain(f" {tidied(t, 10_000)}")) - self._budget(n)) for n, t in enumerate(texts)]
        return PromptSize(len(self._prompt(example, GrammarConfig())), sum(n > 0 for n in over), sum(over))

    def prompt(self, example: Example) -> str:
        """The prompt as text, to be looked at."""
        return self._decode(self.prompt_ids(example))

    def message(self, example: Example, grammar: GrammarConfig) -> str:
        """The prompt's text, for a template and a tokenizer elsewhere: foreign texts lose the names of added tokens."""
        lines = []
        for n, (lead, text) in enumerate(prompt_lines(example, range(len(example.candidates)), ask_both(grammar))):
            shown = " ".join(self._added.sub(" ", self._decode(self.text_ids(text, self._budget(n)))).split())
            lines.append(f"{lead} {shown}" if shown else lead)
        return "\n".join(lines)

    def candidates(self, example: Example) -> tuple[str, ...]:
        """The label of each candidate, in pool order: `1` to `N`."""
        return tuple(str(i + 1) for i in range(len(example.candidates)))

    def choices(self, examples: Sequence[Example]) -> IndexChoices:
        """What may be written for each example."""
        pools = tuple(len(e.candidates) for e in examples)
        spelling = self._spelling(max(pools))
        return IndexChoices(spelling, pools, torch.tensor(spelling.alphabet), self.word_ends, self._closes)

    def _spell(self, pool: int) -> Spelling:
        """The words for pools up to a size. Raises KitError if this tokenizer does not spell them faithfully."""

        def word(text: str) -> Word:
            ids = self.ids(text)
            if self._decode([*self.ids("a"), *ids]).strip() != "a" + text or any(i in self.reserved for i in ids):
                raise KitError(f"this tokenizer does not spell {text!r} so that it can be read again.")
            return tuple(ids)

        first, later = (tuple(word(f"{before}{i + 1}") for i in range(pool)) for before in (" ", ", "))
        open_slate, close_slate, open_rank, close_rank = TAGS
        tags = (word(open_slate), *(word(f" {tag}") for tag in (close_slate, open_rank, close_rank)), (self.end,))
        return Spelling(tags, first, later)  # type: ignore[arg-type]

    def spell(self, example: Example, slate: Sequence[int], ranked: Sequence[int]) -> list[int]:
        """Token ids of a whole completion, from pool indices."""
        return self._spelling(len(example.candidates)).write(slate, ranked)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def text(self, ids: Sequence[int]) -> str:
        """Tokens as text, without the end token that closes them; other special tokens stay, as they were written."""
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
        """Which tokens of a completion end a word, and which of them a label; none after the end token."""
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
