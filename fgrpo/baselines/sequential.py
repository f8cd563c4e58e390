"""Sequential recommenders trained on the task: GRU4Rec, and UniSRec's architecture over frozen text embeddings.

Both are trained by one loop. A training example is read as the sequence: start, history. Its targets are every relevant
candidate after the whole history, and each item of the history after those before it. Windows of one user overlap: a
step (an item after the same two items) that several examples hold is a target of the first of them alone.

The loss is the full cross-entropy over the catalogue of all splits, which is the catalogue of the policy as well
(fgrpo.tasks.reading.catalogue). Candidates that are not relevant are no targets, but as members of the catalogue they
are negatives of every step. An item that occurs in no training example is therefore only ever a negative and gets a low
score, not a random one. After each epoch the validation pools are ordered; the weights of the epoch with the best NDCG@5
are kept.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Config, KitError
from ..data import Example, Splits
from ..lm.encoders import PACKAGED, embed
from ..rewards import ndcg, pad, pool_gains
from ..runs.sft import Demonstrate, Ranker, demonstrations
from ..tasks.reading import catalogue, texts_of

MAX_HISTORY = 50
"""most recent items of a history that are read"""
WIDTH = 64
BATCH = 256
LR = 3e-3
MAX_EPOCHS = 60
PATIENCE = 4
"""epochs without a better validation NDCG@5 before training ends"""
EXPERTS = 4
TEMPERATURE = 0.07


class SequenceModel(nn.Module, ABC):
    """V item vectors and a causal encoder of sequences of them: all that the training loop needs to know."""

    start: nn.Parameter
    """(1, D): the input before the first item; also padding, at positions that are never read"""

    @abstractmethod
    def items(self) -> Tensor:
        """The item matrix (V, D)."""

    @abstractmethod
    def encode(self, inputs: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D); position t may depend on positions up to t only."""

    @abstractmethod
    def score(self, vectors: Tensor, items: Tensor) -> Tensor:
        """(P, D), (V, D) -> logits (P, V)."""

    def forward(self, ids: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Logits (P, V) of the next item after `positions` (P,) of the sequences `rows` (P,). ids (B, T), V: start."""
        items = self.items()  # (V, D)
        inputs = F.embedding(ids, torch.cat((items, self.start)))  # (B, T, D)
        return self.score(self.encode(inputs)[rows, positions], items)


class GRU4Rec(SequenceModel):
    """A GRU over item embeddings, which also serve as the output matrix (tied, as in arXiv 1706.03847)."""

    def __init__(self, items: int):
        super().__init__()
        self.table = nn.Parameter(0.1 * torch.randn(items, WIDTH))
        self.start = nn.Parameter(0.1 * torch.randn(1, WIDTH))
        self.bias = nn.Parameter(torch.zeros(items))
        self.dropout = nn.Dropout(0.2)
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def items(self) -> Tensor:  # noqa: D102
        return self.table

    def encode(self, inputs: Tensor) -> Tensor:  # noqa: D102
        return self.dropout(self.gru(self.dropout(inputs))[0])

    def score(self, vectors: Tensor, items: Tensor) -> Tensor:  # noqa: D102
        return vectors @ items.T + self.bias


class UniSRec(SequenceModel):
    """Parametric whitening and a mixture-of-experts adaptor over text embeddings, then a causal Transformer."""

    texts: Tensor

    def __init__(self, texts: Tensor):
        super().__init__()
        # sentence encoders map all texts into a narrow cone: without centring, items look alike in the first steps
        self.register_buffer("texts", F.normalize(texts - texts.mean(0), dim=-1), persistent=False)  # (V, E)
        # whitening (x - b) W of each expert, written as x W + c
        self.experts = nn.Linear(texts.shape[1], EXPERTS * WIDTH)
        self.gate = nn.Linear(texts.shape[1], EXPERTS, bias=False)
        self.noise = nn.Linear(texts.shape[1], EXPERTS, bias=False)
        self.start = nn.Parameter(0.1 * torch.randn(1, WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(MAX_HISTORY + 1, WIDTH))
        self.dropout, self.norm = nn.Dropout(0.2), nn.LayerNorm(WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 4 * WIDTH, 0.2, "gelu", batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def items(self) -> Tensor:  # noqa: D102
        gates = self.gate(self.texts)  # (V, experts)
        if self.training:
            gates = gates + torch.randn_like(gates) * F.softplus(self.noise(self.texts))
        outputs = self.experts(self.dropout(self.texts)).view(-1, EXPERTS, WIDTH)  # (V, experts, D)
        return (gates.softmax(-1).unsqueeze(-1) * outputs).sum(1)

    def encode(self, inputs: Tensor) -> Tensor:  # noqa: D102
        length = inputs.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=inputs.device)
        return self.blocks(self.dropout(self.norm(inputs + self.positions[:length])), mask=mask, is_causal=True)

    def score(self, vectors: Tensor, items: Tensor) -> Tensor:  # noqa: D102
        return F.normalize(vectors, dim=-1) @ F.normalize(items, dim=-1).T / TEMPERATURE


def gru4rec(splits: Splits, *, seed: int = 0) -> list[list[int]]:
    """GRU4Rec (arXiv 1511.06939), trained on splits.train; the order of each test pool, best first.

    Differs from the paper: full cross-entropy over the catalogue (as in arXiv 1706.03847, without sampling) instead of
    TOP1 or BPR on sampled negatives, tied embeddings, a start input, and sequences in random order, not in parallel
    sessions. Items are known by key, never by text. Raises KitError if a split is empty.
    """
    return [list(order) for order in gru4rec_ranker(splits, seed)(splits.test)]


def gru4rec_ranker(splits: Splits, seed: int = 0) -> Ranker:
    """Train GRU4Rec; the function it returns orders the pools of any examples of the catalogue."""
    index = {key: n for n, key in enumerate(catalogue(splits))}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GRU4Rec(len(index))
        _fit(model, splits, index)
    return partial(_order, model, index=index)


def demonstrator(splits: Splits, config: Config) -> Demonstrate | None:
    """What writes the demonstrations of SFT if it has to be trained first: GRU4Rec, for the kind `ranked`.

    A policy that reads texts needs none (fgrpo.runs.sft.teacher).
    """
    needed = config.sft.demonstrations == "ranked" and config.model.features == "id"
    return partial(demonstrations, ranker=gru4rec_ranker(splits)) if needed else None


def unisrec(splits: Splits, *, model: str = PACKAGED, seed: int = 0) -> list[list[int]]:
    """UniSRec's architecture (arXiv 2206.05941) WITHOUT its pre-training on other domains; order of each test pool.

    It is trained from fresh weights on splits.train alone: its results show the value of the text representation, not
    that of the paper's transfer. Items are known only by the frozen embedding of their text by the sentence encoder
    `model` (a folder or hub name, as for fgrpo.baselines.rankers.dense), centred over the catalogue. Smaller than in
    the paper: width 64, 4 experts.
    Raises KitError if a split is empty, a package is missing or the encoder cannot be loaded.
    """
    texts = texts_of(splits)
    index = {key: n for n, key in enumerate(catalogue(splits))}
    vectors = embed([texts[key] for key in index], model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UniSRec(vectors)
        _fit(network, splits, index)
    return _order(network, splits.test, index)


def _fit(model: SequenceModel, splits: Splits, index: dict[str, int]) -> None:
    train = list(splits.train)
    if not all((train, splits.validation, splits.test)):
        raise KitError("a sequential recommender needs training, validation and test examples; a split is empty.")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)
    gains, best, waited = pool_gains(splits.validation), -1.0, 0
    targets, kept = _targets(train, index), copy.deepcopy(model.state_dict())
    for _ in range(MAX_EPOCHS):
        model.train()
        for chosen in torch.randperm(len(train)).split(BATCH):
            ids, _ = _sequences([train[i] for i in chosen.tolist()], index)
            found = [(row, *target) for row, i in enumerate(chosen.tolist()) for target in targets[i]]
            rows, positions, items = torch.tensor(found).T  # (P,) each
            loss = F.cross_entropy(model(ids, rows, positions), items)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        value = ndcg(pad([o[:5] for o in _order(model, splits.validation, index)], 5), gains, 5).mean().item()
        if value > best:
            best, waited, kept = value, 0, copy.deepcopy(model.state_dict())
        elif (waited := waited + 1) == PATIENCE:
            break
    model.load_state_dict(kept)


@torch.inference_mode()
def _order(model: SequenceModel, examples: Sequence[Example], index: dict[str, int]) -> list[list[int]]:
    model.eval()
    orders = []
    for start in range(0, len(examples), BATCH):
        some = examples[start : start + BATCH]
        ids, last = _sequences(some, index)
        for example, scores in zip(some, model(ids, torch.arange(len(some)), last), strict=True):
            pool = scores[[index[key] for key in example.candidate_keys]]
            orders.append(pool.argsort(descending=True, stable=True).tolist())
    return orders


def _sequences(examples: Sequence[Example], index: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Start and history of each example, padded on the right with the start (B, T), and the last position of each (B,)."""
    start = len(index)
    rows = [torch.tensor([start, *(index[key] for key in e.history_keys[-MAX_HISTORY:])]) for e in examples]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=start)
    return ids, torch.tensor([len(row) - 1 for row in rows])


def _targets(examples: Sequence[Example], index: dict[str, int]) -> list[list[tuple[int, int]]]:
    """(position, next item) of every target of each example."""
    steps = {(*e.history_keys[-2:], e.candidate_keys[i]) for e in examples for i in e.relevant}
    found = []
    for e in examples:
        history = e.history_keys[-MAX_HISTORY:]
        targets = [(len(history), index[e.candidate_keys[i]]) for i in sorted(e.relevant)]
        for position, key in enumerate(history):
            step = (*history[max(0, position - 2) : position], key)
            if step not in steps:
                steps.add(step)
                targets.append((position, index[key]))
        found.append(targets)
    return found
