"""A tiny policy that reads: an item is still one token, and what stands for it is made of the embedding of its text.

The vector of an item (input and output, tied) is a learned projection of the frozen sentence embedding of its text
(`text`), or the sum of that and an id vector (`both`). To the logit of each candidate a prior is added, what a pretrained
model would know: how similar its text is to those of the history, what the decoder predicts from the history alone, and,
where ids are known, how often the item is met. How much the prior counts is learned, and depends on the decoder's state h:

    logit(c) = h · vector(c) + (w + A h) · features(c, history)

Texts are embedded when they are first met, so that items which training never saw are read as well. A checkpoint holds the
projection, not the embeddings. Where an example has no history, its query is read in its place.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import embedding, normalize
from transformers import Qwen3Config, Qwen3Model

from ..config import GrammarConfig, KitError, ModelConfig
from ..data import Example
from ..policy import Prompts, Tree, tiny_shape
from ..prompt import HISTORY, POOL, ItemLabels
from .encoders import PACKAGED, embed, encoder
from .rows import RowPolicy, RowTree

TEXT_FILE = "text.json"
SHARP = 20.0
"""factor of cosines: with a weight of 1 a choice by them has a temperature of 0.05"""
WEIGHTS = {"mean": 0.5, "last": 0.0, "nearest": 0.0, "next": 1.0, "worth": 1.0}
"""features, with their weights before training: cosines of a candidate's text with the mean of the history, its last item
and the nearest one; g · vector(c), where g is the decoder's state at the history's end, which pre-training teaches to
predict the next item (fgrpo.runs.pretrain); the item's worth, which starts at the logarithm of its count in training"""


class TextLabels(ItemLabels):
    """The `item` label scheme over a catalogue that grows: an item, known by its key and its text, is added when it is met.

    `known`: keys of the items that have an id vector. `texts` and `rows` of the items met so far: the row of an item's id
    vector is -1 where it has none.
    """

    def __init__(self, known: Sequence[str] = ()):
        super().__init__(known)
        self.row_of, self.known = {key: n for n, key in enumerate(known)}, self.items
        self.first = len(self.names) - len(known)  # the token id of the first item
        self.forget()

    def forget(self) -> None:
        """Drop the items met so far."""
        self.names = self.names[: self.first]
        self.vocabulary = {name: n for n, name in enumerate(self.names)}
        self.met: dict[tuple[str, str], str] = {}
        self.texts: list[str] = []
        self.rows: list[int] = []

    def candidates(self, example: Example) -> tuple[str, ...]:
        """Raise KitError on an item that is in the pool twice."""
        labels = self.meet(example.candidate_keys, example.candidates)
        if len(set(labels)) < len(labels):
            raise KitError(f"example {example.id!r}: an item is in the pool twice; add 'candidate_ids'.")
        return labels

    def prompt(self, example: Example) -> str:
        """`<HISTORY> i0 i1 ... <POOL> i2 i3 ...`; the query stands for a history that is empty."""
        history = self.meet(example.history_keys, example.history) or self.meet(("",), (example.query,))
        return " ".join((HISTORY, *history, POOL, *self.candidates(example)))

    def meet(self, keys: Sequence[str], texts: Sequence[str]) -> tuple[str, ...]:
        """Labels of items, which get one if they have none."""
        for item in zip(keys, texts, strict=True):
            if item not in self.met:
                self.met[item] = f"i{len(self.met)}"
                self.vocabulary[self.met[item]] = len(self.names)
                self.names.append(self.met[item])
                self.texts.append(item[1])
                self.rows.append(self.row_of.get(item[0], -1))
        return tuple(self.met[item] for item in zip(keys, texts, strict=True))


class Items(nn.Module):
    """Vectors and features of tokens. `texts` (V, E): centred embeddings of the items met; `rows` (V,) of id vectors."""

    texts: Tensor
    rows: Tensor
    centre: Tensor

    def __init__(self, labels: TextLabels, width: int, size: int):
        """Vectors of `width`, from embeddings of `size`."""
        super().__init__()
        self.labels, known = labels, len(labels.known)
        self.tokens = nn.Parameter(0.02 * torch.randn(labels.first, width))
        self.project = nn.Parameter(0.02 * torch.randn(size, width))
        self.ids = nn.Parameter(0.02 * torch.randn(known, width)) if known else None
        self.worth = nn.Parameter(torch.zeros(known)) if known else None
        self.features = list(WEIGHTS)[: 5 if known else 4]
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("texts", torch.zeros(0, size), persistent=False)
        self.register_buffer("rows", torch.zeros(0, dtype=torch.long), persistent=False)
        self.pool = labels.vocabulary[POOL]

    def add(self, vectors: Tensor, rows: Sequence[int]) -> None:
        """Items that were met: embeddings of their texts (N, E), rows of their id vectors."""
        vectors = normalize(vectors.to(self.centre) - self.centre, dim=-1)
        self.texts = torch.cat((self.texts, vectors))
        self.rows = torch.cat((self.rows, torch.tensor(rows, dtype=torch.long, device=self.rows.device)))

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors of tokens, (..., width)."""
        item = (ids - self.labels.first).clamp(min=0)
        found = self.texts[item] @ self.project
        if self.ids is not None:
            found = found + self._of_known(self.ids, item)
        of_tags = embedding(ids.clamp(max=self.labels.first - 1), self.tokens)
        return torch.where((ids < self.labels.first).unsqueeze(-1), of_tags, found)

    def described(self, ids: Tensor, state: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Vectors of tokens (Q, K), or of all, and their features, 0 for what is no item: (Q, K, width), (Q, K, F).

        Given prompts (Q, P) and the decoder's state at the end of each history (Q, width).
        """
        first, at = self.labels.first, torch.arange(ids.shape[1], device=ids.device)
        past = (ids >= first) & ((ids == self.pool).cumsum(1) == 0)  # (Q, P): the history
        length = int(past.sum(1).max())
        at = (past * (at + 1)).topk(length, dim=1).values - 1  # (Q, H), the last item first; -1 where there are fewer
        read = self.texts[(ids.gather(1, at.clamp(min=0)) - first).clamp(min=0)] * (at >= 0).unsqueeze(-1)  # (Q, H, E)
        if tokens is None:
            every = torch.arange(first + len(self.texts), device=ids.device)
            cosines = torch.einsum("ke,qhe->qkh", self.texts[(every - first).clamp(min=0)], read)
            tokens = every.expand(len(ids), -1)
        else:
            tokens = tokens.clamp(min=0)  # -1 in a short pool
            cosines = self.texts[(tokens - first).clamp(min=0)] @ read.transpose(1, 2)  # (Q, K, H)
        mean = cosines.sum(-1) / read.sum(1).norm(dim=-1, keepdim=True).clamp(min=1e-6)
        nearest = cosines.masked_fill((at < 0).unsqueeze(1), -1.0).amax(-1)
        vectors = self(tokens)
        following = (vectors @ state.unsqueeze(-1)).squeeze(-1)
        found = [SHARP * mean, SHARP * cosines[..., 0], SHARP * nearest, following]
        if self.worth is not None:
            found.append(self.worths(tokens))
        return vectors, torch.stack(found, dim=-1) * (tokens >= first).unsqueeze(-1)

    def worths(self, tokens: Tensor) -> Tensor:
        """The worth of items, 0 for those without an id vector; of the same shape."""
        item = (tokens - self.labels.first).clamp(min=0)
        if self.worth is None:
            return torch.zeros(tokens.shape, device=tokens.device)
        return self._of_known(self.worth.unsqueeze(1), item).squeeze(-1)

    def end(self, ids: Tensor) -> Tensor:
        """Where the history of each prompt ends, (Q,): before `<POOL>`."""
        return (ids == self.pool).int().argmax(1) - 1

    def _of_known(self, table: Tensor, item: Tensor) -> Tensor:
        """Rows of a table of known items, 0 for other items."""
        row = self.rows[item]
        return embedding(row.clamp(min=0), table) * (row >= 0).unsqueeze(-1)


class TextModel(nn.Module):
    """A Qwen3 decoder over `Items`. As a causal model it gives the logits of all items met so far, or `only` of some."""

    only: Tensor | None = None  # (B, K) tokens whose logits are given alone

    def __init__(self, config: Qwen3Config, labels: TextLabels, size: int):
        super().__init__()
        self.config, self.model = config, Qwen3Model(config)
        self.items = Items(labels, config.hidden_size, size)
        self.model.embed_tokens = cast(Any, self.items)
        self.prior = nn.Linear(config.hidden_size, len(self.items.features))
        nn.init.zeros_(self.prior.weight)
        self.prior.bias.data = torch.tensor([WEIGHTS[name] for name in self.items.features])

    def head(self, ids: Tensor, state: Tensor, tokens: Tensor | None) -> Tensor:
        """What `asking` is multiplied with for the logits of tokens (Q, K), or of all: (Q, K, width + F).

        Given prompts (Q, P) and the decoder's state at the end of each history (Q, width).
        """
        return torch.cat(self.items.described(ids, state, tokens), dim=-1)

    def asking(self, hidden: Tensor) -> Tensor:
        """(..., width) -> (..., width + F)."""
        return torch.cat((hidden, self.prior(hidden)), dim=-1)

    def forward(self, ids: Tensor, cache: Any = None, logits_to_keep: int = 0, **options: Any) -> SimpleNamespace:
        """ids (B, T), with prompts where nothing is cached -> `logits` (B, kept T, V or K) and `cache`."""
        cache, head = cache or (None, None)
        out = self.model(ids, cache=cache, **options)
        if head is None:
            rows = torch.arange(len(ids), device=ids.device)
            head = self.head(ids, out.last_hidden_state[rows, self.items.end(ids)], self.only)
        hidden = self.asking(out.last_hidden_state[:, -logits_to_keep:])
        return SimpleNamespace(logits=hidden @ head.transpose(1, 2), cache=(out.cache, head))

    def get_input_embeddings(self) -> nn.Module:
        """Those of all tokens."""
        return self.items


class TextTree(RowTree):
    """Encoded prompts of a text policy."""

    static = False  # its embeddings grow with the texts that are met

    def read(self, ids: Tensor) -> Tensor:
        """The end of each history, and of each prompt."""
        return torch.stack((self.model.items.end(ids), super().read(ids).squeeze(1)), dim=1)

    def choices(self, ids: Tensor, out: Tensor, tokens: Tensor | None) -> Tensor:
        """Vectors and features of what may be chosen after each prompt."""
        return self.model.head(ids, out[:, 0], tokens)

    def asking(self, hidden: Tensor) -> Tensor:
        """The decoder's state, and how much the prior counts."""
        return self.model.asking(hidden)


class TextPolicy(RowPolicy):
    """A tiny policy over texts. `encoder`: the sentence encoder, as in fgrpo.lm.encoders.embed; `keep`: on disk."""

    labels: TextLabels
    model: TextModel
    keep = True

    def __init__(self, model: TextModel, encoder: str = ""):
        super().__init__(model, cast(Any, None), model.items.labels)  # its vocabulary grows: there is no tokenizer
        self.encoder = encoder or PACKAGED

    @classmethod
    def new(
        cls, texts: Mapping[str, str], counts: Mapping[str, int], config: ModelConfig, seed: int = 0
    ) -> "TextPolicy":
        """Fresh weights, for a catalogue given by the text of each key, and how often training holds each.

        Raises KitError if the encoder cannot be loaded.
        """
        labels = TextLabels(list(texts) if config.features == "both" else ())
        place = {text: n for n, text in enumerate(dict.fromkeys(texts.values()))}  # titles may repeat
        vectors = embed(list(place), config.encoder or PACKAGED)
        shape = tiny_shape(config, labels.first)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = TextModel(shape, labels, vectors.shape[1])
        # sentence encoders map all texts into a narrow cone: without centring, items look alike
        model.items.centre.copy_(vectors.mean(0))
        if model.items.worth is not None:
            worth = torch.tensor([math.log1p(counts.get(key, 0)) for key in texts])
            model.items.worth.data = worth - worth.mean()
        labels.meet(list(texts), list(texts.values()))
        model.items.add(vectors[[place[text] for text in texts.values()]], labels.rows)
        return cls(model, config.encoder)

    def read(self) -> None:
        """Embed the texts that were met since the last time."""
        items, labels = self.model.items, self.labels
        if (done := len(items.texts)) < len(labels.texts):
            new = labels.texts[done:]
            vectors = embed(new, self.encoder) if self.keep else encoder(self.encoder)(new)
            if vectors.shape[1] != len(items.centre):
                raise KitError(
                    f"encoder {self.encoder!r} gives {vectors.shape[1]} numbers, not the {len(items.centre)} that this "
                    "policy was trained with: it is another encoder."
                )
            items.add(vectors, labels.rows[done:])

    def forget(self) -> None:
        """Drop the items met so far, so that texts which visitors type do not fill the memory."""
        self.labels.forget()
        self.model.items.texts, self.model.items.rows = self.model.items.texts[:0], self.model.items.rows[:0]

    def encode(self, examples: Sequence[Example], grammar: GrammarConfig | None = None) -> Prompts:
        """Tokenize queries and embed texts that are new."""
        prompts = super().encode(examples, grammar)
        self.read()
        return prompts

    def completion_logits(
        self, prompts: Prompts, completions: Tensor, wanted: Tensor, group: int, shared: bool = True,
        tree: Tree | None = None, begun: int = 0, tokens: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As of any policy. Of `tokens` (Q, K), if given, it gives the logits alone, not of the whole catalogue."""
        self.model.only = None if tokens is None else tokens.repeat_interleave(group, dim=0)
        try:
            return super().completion_logits(prompts, completions, wanted, group, shared, tree, begun, tokens)
        finally:
            self.model.only = None

    def grow(self, ids: Tensor, mask: Tensor, tokens: Tensor | None) -> TextTree:
        """Encode prompts (Q, P), each of whose rollouts gets a copy."""
        return TextTree(self.model, ids, mask, tokens)

    def save(self, folder: str | Path) -> None:
        """Write weights, configuration, the encoder's name, and the keys of the items that have an id vector."""
        folder = Path(folder)
        self.model.config.save_pretrained(folder)
        weights = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items() if name in self.saved}
        safetensors.torch.save_file(weights, folder / "model.safetensors")
        (folder / TEXT_FILE).write_text(json.dumps({"encoder": self.encoder}) + "\n", encoding="utf-8")
        (folder / "items.json").write_text(json.dumps(self.labels.known, ensure_ascii=False), encoding="utf-8")

    @property
    def saved(self) -> list[str]:
        """Names of the tensors in a checkpoint: of the embeddings that are shared, one."""
        return [name for name in self.model.state_dict() if not name.startswith("model.embed_tokens.")]

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> "TextPolicy":
        """Read a folder that `save` wrote. Raises KitError if it is damaged."""
        folder = Path(folder)
        try:
            about = json.loads((folder / TEXT_FILE).read_text(encoding="utf-8"))
            known = json.loads((folder / "items.json").read_text(encoding="utf-8"))
            weights = safetensors.torch.load_file(folder / "model.safetensors")
            encoder, labels = str(about["encoder"]), TextLabels(known)
            config = Qwen3Config.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            policy = cls(TextModel(config, labels, len(weights["items.centre"])), encoder)
            if weights.keys() != set(policy.saved):
                raise ValueError("its weights are those of another model")
            policy.model.load_state_dict(weights, strict=False)
        except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise KitError(f"{folder}: the checkpoint is damaged or incomplete ({reason}).") from None
        policy.to(device)
        return policy

    def reload(self, folder: str | Path) -> "TextPolicy":
        """The policy of another checkpoint of its run, which has met the same items."""
        other = self.load(folder, str(self.device))
        other.labels.meet([key for key, _ in self.labels.met], [title for _, title in self.labels.met])
        other.read()
        return other

    def reference(self, folder: str | Path) -> "TextPolicy":
        """The same: nothing is shared between two policies."""
        return self.reload(folder)
