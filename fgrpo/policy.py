"""A causal language model behind one small interface: encode queries, give the log-probability of every token.

`Policy.tiny` builds a small Qwen3-architecture decoder from scratch. Here every rollout encodes its own prompt, the
plain way. Subclasses encode it once for the rollouts of a query: fgrpo.lm.prefix.SharedPolicy, for any model, and from
it fgrpo.lm.rows.RowPolicy, the tiny policy as runs make it, and fgrpo.lm.pretrained.PretrainedPolicy, with a LoRA
adapter or without; fgrpo.runs.policies.load_policy reads a saved policy of either kind.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from .config import GrammarConfig, ModelConfig
from .data import Example
from .prompt import END, PAD, Choices, ItemLabels, Labels

transformers_logging.disable_progress_bar()


@dataclass(frozen=True)
class Prompts:
    """Q encoded queries, padded on the left: `ids` (Q, P), `mask` (Q, P) bool, `choices` of the grammar (Q rows)."""

    ids: Tensor
    mask: Tensor
    choices: Choices


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn, which log-probabilities must repeat: grammar, constrained or free, temperature."""

    grammar: GrammarConfig
    constrained: bool = True
    temperature: float = 1.0


class Tree(Protocol):
    """Encoded prompts, from which the rollouts of a query grow as branches: fgrpo.lm.prefix.PrefixTree."""

    logits: Tensor  # (Q, V) after each prompt

    def take(self) -> bool: ...  # whether the loss may still grow from it
    def feed(self, group: int, completions: Tensor, begun: int) -> Callable[[Tensor, Tensor], Tensor]: ...
    def completion_logits(self, completions: Tensor, wanted: Tensor, fed: Tensor, begun: int) -> Tensor: ...


class Policy:
    """A model, its tokenizer and its label scheme.

    `model` is a Hugging Face causal model, or one wrapped by peft. `share`: the rollouts of a query share its encoded
    prompt. Never here; in fgrpo.lm.prefix.SharedPolicy until a comparison shows that its model cannot (fgrpo.rollout).
    `checked`: the group sizes compared so far, each with its largest length of prompt and completion. `precision`: in
    which the model computes.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, labels: Labels):
        self.model, self.tokenizer, self.labels = model, tokenizer, labels
        self.pad, self.end, self.tags = labels.pad, labels.end, labels.tags
        self.share, self.checked, self.precision = False, dict[int, int](), next(model.parameters()).dtype
        model.eval()  # no dropout anywhere: sampled and recomputed log-probabilities must agree

    @classmethod
    def tiny(cls, items: Sequence[str], config: ModelConfig, seed: int = 0) -> "Policy":
        """A Qwen3-architecture decoder with fresh weights, one token per item, tied embeddings."""
        labels = ItemLabels(items)
        vocabulary = labels.vocabulary
        words = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=PAD, eos_token=END, padding_side="left")
        shape = tiny_shape(config, len(vocabulary))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Qwen3ForCausalLM(shape)
        return cls(model, tokenizer, labels)

    # --- what a subclass may do differently ---

    def decoding(self) -> AbstractContextManager[None]:  # open while tokens are sampled
        return nullcontext()

    def narrowed(self, columns: Tensor | None) -> AbstractContextManager[None]:
        return nullcontext()  # while open, the model may give the logits of these tokens alone

    # encoded prompts (Q, P), for branches, where `share` is true; of `tokens` (Q, K), if given, the logits are enough
    def grow(self, ids: Tensor, mask: Tensor, tokens: Tensor | None) -> Tree:
        raise NotImplementedError(f"{type(self).__name__} encodes the prompt of each rollout")

    def batches(self, examples: Sequence[Example], grammar: GrammarConfig, size: int) -> list[slice]:
        return slices(len(examples), size)  # what fits memory together in greedy decoding, at most `size` at a time

    # --- the interface ---

    def encode(self, examples: Sequence[Example], grammar: GrammarConfig | None = None) -> Prompts:
        """Tokenize queries and lay out the choices of each pool; text prompts state the sizes of `grammar`."""
        rows = [self.labels.prompt_ids(e, grammar) for e in examples]
        ids, mask = pad_rows(rows, self.pad, left=True)
        return Prompts(ids.to(self.device), mask.to(self.device), self.labels.choices(examples).to(self.device))

    def spell(self, examples: Sequence[Example], outputs: Sequence[tuple]) -> tuple[Tensor, Tensor]:
        """Completions in tokens, from one (slate, rank, ...) of pool indices each: ids, mask (B, T)."""
        rows = [self.labels.spell(e, *o[:2]) for e, o in zip(examples, outputs, strict=True)]
        ids, mask = pad_rows(rows, self.pad)
        return ids.to(self.device), mask.to(self.device)

    def logprobs(
        self, prompts: Prompts, completions: Tensor, mask: Tensor, sampling: Sampling, shared: bool = True,
        tree: Tree | None = None, begun: int = 0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Log-probability of each completion token and entropy of its distribution, both (B, T), 0 where masked.

        Under constraint both are renormalised over the allowed choices; a forced token has log-prob and entropy 0.
        `shared`, `tree`, `begun`: see `completion_logits`.
        """
        group, wanted = completions.shape[0] // prompts.ids.shape[0], mask
        if sampling.constrained:
            choices = prompts.choices.repeat(group)
            allowed, index = choices.walk(completions, mask, sampling.grammar)  # (B, T, K), (B, T)
            wanted = mask & (allowed.sum(-1) > 1)  # a forced token needs no logits
        with self.narrowed(prompts.choices.columns if sampling.constrained else None):
            tokens = prompts.choices.tokens if sampling.constrained else None
            logits = self.completion_logits(prompts, completions, wanted, group, shared, tree, begun, tokens)
        if sampling.constrained:
            logps = constrained_logps(logits, choices.tokens, allowed, sampling)
        else:
            index, logps = completions, free_logps(logits, sampling)
        chosen = logps.gather(-1, index.unsqueeze(-1)).squeeze(-1)
        # p log p is 0 where p is 0: a forbidden choice has log-probability -inf, which must not meet its p of 0
        finite = logps.masked_fill(logps.isneginf(), 0.0)
        entropy = -(finite.exp() * finite).masked_fill(logps.isneginf(), 0.0).sum(-1)
        return torch.where(mask, chosen, 0.0), torch.where(mask, entropy, 0.0)

    def completion_logits(
        self, prompts: Prompts, completions: Tensor, wanted: Tensor, group: int, shared: bool = True,
        tree: Tree | None = None, begun: int = 0, tokens: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits before the `wanted` completion tokens. completions, wanted (Q * group, T) -> (Q * group, T, V).

        `shared` encodes each prompt once, if `share` is true, or not at all if `tree` holds it already, together with
        the `begun` first tokens that all completions share; the logits before those are not to be used. Otherwise
        every row carries its own copy of the prompt (the plain way, the fallback and the referee of the fast one).
        Of `tokens` (Q, K), if given, the logits are enough.
        """
        length, fed = completions.shape[1], wanted.sum(1, keepdim=True) > wanted.cumsum(1)  # tokens before a wanted one
        if not (shared and self.share):
            ids = torch.cat((prompts.ids.repeat_interleave(group, dim=0), completions[:, :-1]), dim=1)
            full_mask = torch.cat((prompts.mask.repeat_interleave(group, dim=0), fed[:, :-1]), dim=1)
            return self.model(
                ids, attention_mask=full_mask.long(), position_ids=positions(full_mask), use_cache=False,
                logits_to_keep=length,
            ).logits  # fmt: skip
        if tree is None or not tree.take():
            tree, begun = self.grow(prompts.ids, prompts.mask, tokens), 0
        return tree.completion_logits(completions, wanted, fed, begun)

    def parameters(self) -> list[Tensor]:
        """The weights that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def to(self, device: str) -> "Policy":
        """Move the weights."""
        self.model.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """The device of the weights, of prompts, rollouts and advantages."""
        return next(self.model.parameters()).device


def tiny_shape(config: ModelConfig, tokens: int) -> Qwen3Config:
    """The architecture of a tiny policy over so many tokens."""
    return Qwen3Config(
        vocab_size=tokens, hidden_size=config.hidden_size, intermediate_size=2 * config.hidden_size,
        num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.heads // 2,
        head_dim=config.hidden_size // config.heads, max_position_embeddings=1024, tie_word_embeddings=True,
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip


def slices(count: int, size: int) -> list[slice]:
    """`count` things, `size` at a time (0: all at once)."""
    return [slice(a, min(a + (size or count), count)) for a in range(0, count, size or count)]


def positions(mask: Tensor) -> Tensor:
    """Position of each token, counted from its row's first real token."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def pad_rows(rows: Sequence[Sequence[int]], value: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """Token lists as one tensor and its mask, (B, T) each, padded on the right or on the left."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    side, masks = "left" if left else "right", [torch.ones_like(x, dtype=torch.bool) for x in tensors]
    return pad_sequence(tensors, True, value, side), pad_sequence(masks, True, False, side)


def join_rows(parts: Sequence[Tensor], value: float) -> Tensor:
    """Tensors (B, T, ...) of different T under each other, padded on the right."""
    width = max(p.shape[1] for p in parts)
    return torch.cat([pad(p, (0, width - p.shape[1]), value=value) for p in parts])


def free_logps(logits: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities over the whole vocabulary, in float32."""
    return (logits.float() / sampling.temperature).log_softmax(-1)


def constrained_logps(logits: Tensor, tokens: Tensor, allowed: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities over the choices, renormalised over the allowed ones, in float32. -> (B, T, K).

    logits (B, T, V), or (B, T, K) where the model gave those of the choices alone; tokens (B, K); allowed (B, T, K).
    """
    if logits.shape[-1] != tokens.shape[-1]:  # a vocabulary holds padding, which no choice is
        logits = logits.gather(-1, tokens.clamp(min=0).unsqueeze(1).expand(-1, logits.shape[1], -1))
    scores = logits.float() / sampling.temperature
    return scores.masked_fill(~allowed, float("-inf")).log_softmax(-1)
