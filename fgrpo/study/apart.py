"""A policy of two tiny models, one per phase: one writes and learns slates, the other rankings.

Its log-probabilities are those of the single policy as long as both models are equal. Slate tokens have a gradient in
the first model's weights alone, rank tokens in the second's, so that no step of one phase changes the other's choices.
"""

from copy import copy, deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..config import Config, KitError
from ..lm.prefix import PrefixTree
from ..lm.rows import RowPolicy
from ..policy import Policy
from ..runs.policies import load_policy, save_policy

PARTS = ("slate", "rank")
"""subfolders of a checkpoint: each holds a policy that `load_policy` reads"""


class PhaseModels(nn.Module):
    """Two causal models as one: the logits after `</SLATE>` and later tokens are those of the second."""

    def __init__(self, slate: Any, rank: Any, close: int):
        """`close` is the token id of `</SLATE>`."""
        super().__init__()
        self.slate, self.rank, self.close = slate, rank, close

    def forward(self, ids: Tensor, cache: Any = None, logits_to_keep: int = 0, **options: Any) -> SimpleNamespace:
        """ids (B, T) -> `logits` (B, kept T, V) and `cache`, as of one model; other arguments go to both."""
        caches, closed = cache or ((None, None), torch.zeros_like(ids[:, :1], dtype=torch.bool))
        slate, rank = (
            model(ids, cache=own, logits_to_keep=logits_to_keep, **options)
            for model, own in zip((self.slate, self.rank), caches, strict=True)
        )
        closed = closed | ((ids == self.close).cumsum(1) > 0)  # (B, T)
        logits = torch.where(closed[:, -logits_to_keep:].unsqueeze(-1), rank.logits, slate.logits)
        return SimpleNamespace(logits=logits, cache=((slate.cache, rank.cache), closed[:, -1:]))

    def get_input_embeddings(self) -> nn.Module:
        """Those of the slate's model."""
        return self.slate.get_input_embeddings()


class PhaseTree(PrefixTree):
    """The trees of both models. A branch goes on in the second one's logits once it has closed its slate."""

    static = False  # it has two models

    def __init__(self, slate: PrefixTree, rank: PrefixTree, close: int):
        self.slate, self.rank, self.close, self.logits, self.branch = slate, rank, close, slate.logits, slate.branch
        self.closed = torch.zeros(0, dtype=torch.long)  # (B,): depth of the row's `</SLATE>`

    def fork(self, group: int, length: int) -> "PhaseTree":
        """The same prompts, for `group` branches each of at most `length` tokens."""
        other = copy(self)
        other.slate, other.rank = self.slate.fork(group, length), self.rank.fork(group, length)
        other.closed = torch.full((len(self.logits) * group,), length, device=self.logits.device)
        return other

    def extend(self, ids: Tensor, row: Tensor, depth: Tensor, read: Tensor) -> Tensor:
        """As PrefixTree.extend. The first model is not fed what follows the slate."""
        shuts = ids == self.close
        self.closed[row[shuts]] = depth[shuts]
        late = depth >= self.closed[row]  # the next token is the ranking's
        found = self.rank.extend(ids, row, depth, read & late)
        if not late.all():
            of_slate = self.slate.extend(*(x[~late] for x in (ids, row, depth, read)))
            order = late[read].argsort(stable=True).argsort()  # both parts follow each other, then the order of `read`
            found = torch.cat((of_slate, found))[order]
        return found

    def take(self) -> bool:
        """Whether the loss may grow from both trees."""
        fresh = self.slate.take()
        return self.rank.take() and fresh

    def at_once(self, prompt: int, length: int) -> int:  # type: ignore[override]
        """How many branches of a length to feed together."""
        return min(self.slate.at_once(prompt, length), self.rank.at_once(prompt, length))


class PhasePolicy(RowPolicy):
    """Two tiny policies as one. `slate` and `rank` share their models with it; a run's folder holds it as any other."""

    def __init__(self, slate: Policy, rank: Policy):
        """Raises KitError unless both are tiny policies over the same catalogue."""
        tiny = isinstance(slate, RowPolicy) and isinstance(rank, RowPolicy)
        if not tiny or slate.labels.names != rank.labels.names:  # type: ignore[attr-defined]
            raise KitError("separate weights for each phase need two tiny policies over one catalogue.")
        super().__init__(PhaseModels(slate.model, rank.model, slate.tags[1]), slate.tokenizer, slate.labels)
        self.slate, self.rank = cast(RowPolicy, slate), cast(RowPolicy, rank)

    @classmethod
    def twice(cls, policy: Policy) -> "PhasePolicy":
        """A policy and a copy of it, which begin equal and learn apart."""
        return cls(policy, deepcopy(policy))

    def grow(self, ids: Tensor, mask: Tensor, tokens: Tensor | None) -> PrefixTree:
        """Encode prompts (Q, P) with both models."""
        return PhaseTree(self.slate.grow(ids, mask, tokens), self.rank.grow(ids, mask, tokens), self.tags[1])

    def save(self, folder: str | Path) -> None:
        """Write both policies, each with its SHA256SUMS, to subfolders PARTS."""
        for name in PARTS:
            save_policy(getattr(self, name), Path(folder) / name)

    def reload(self, folder: str | Path) -> "PhasePolicy":
        """The policy of another checkpoint. Raises KitError if it is damaged."""
        return read_apart(Path(folder), str(self.device))

    def reference(self, folder: str | Path) -> "PhasePolicy":
        """The same as `reload`: nothing is shared between two policies."""
        return self.reload(folder)


def read_apart(folder: Path, device: str = "cpu") -> PhasePolicy:
    """The two-model policy of a checkpoint's folder. Raises KitError if one of them is missing or damaged."""
    return PhasePolicy(*(load_policy(folder / name, device) for name in PARTS))


def begin_apart(start: Path, config: Config) -> PhasePolicy:
    """Two models that both begin as the policy `start`."""
    return PhasePolicy.twice(load_policy(start, lm=config.lm))
