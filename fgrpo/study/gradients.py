"""Gradient estimates of many groups under many credit methods, from the same rollouts and a few backward passes.

An estimate is linear in the advantages, and advantages of different methods (and lambdas) are mostly combinations of a
few vectors: centred rewards on the tokens of either phase, and what item-wise methods add. So of each group only the
gradients of a basis of its advantages are computed; those of all methods are combinations of them. What is kept of a
gradient is a sketch, a few thousand numbers whose inner products are unbiased estimates of the gradients' own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..config import Config, RLConfig
from ..credit import CREDITS
from ..data import Example
from ..policy import Policy
from ..prompt import PHASE_RANK, PHASE_SLATE
from ..rewards import Rewards, score
from ..rollout import Rollouts, drawn_tokens, rollout
from ..trainer import sampling_of

BUCKETS = 4096
"""numbers that are kept of a gradient: the error of an inner product is about 1/64 of the product of both lengths"""
BATCHED = 2_000_000
"""number of weights up to which the gradients of a basis are computed in one batched backward pass"""
Key = tuple[str, float]
"""a method, and what else tells its estimates apart: lambda, or the group size"""
PHASES = {"slate": PHASE_SLATE, "rank": PHASE_RANK}


class CountSketch:
    """x (..., P) -> (..., BUCKETS): each number gets a random sign, and every BUCKETS-th are added up.

    Inner products of sketches are unbiased, over the random signs, for those of the vectors (Charikar, Chen and
    Farach-Colton, ICALP 2002). Signs are drawn once, by the seed.
    """

    def __init__(self, size: int, buckets: int = BUCKETS, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.sign = 2.0 * torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8) - 1
        self.buckets, self.missing = buckets, -size % buckets

    def __call__(self, x: Tensor) -> Tensor:
        """Sketches of vectors."""
        signed = pad(x * self.sign, (0, self.missing))
        return signed.unflatten(-1, (-1, self.buckets)).sum(-2)


def basis_of(weights: Tensor, tolerance: float = 1e-5) -> tuple[Tensor, Tensor]:
    """An orthonormal basis (K, E) of the rows of `weights` (M, E), and their coefficients (M, K): Gram-Schmidt.

    The row with the largest rest, relative to its own length, is next. `tolerance`: a rest this short is rounding.
    """
    rest, length = weights.double(), weights.double().norm(dim=1)
    basis = rest[:0]
    while len(rest):
        left = rest.norm(dim=1) / length.clamp(min=1e-12)
        row = int(left.argmax())
        if left[row] < tolerance:
            break
        unit = rest[row] / rest[row].norm()
        rest = rest - (rest @ unit).unsqueeze(1) * unit
        basis = torch.cat((basis, unit.unsqueeze(0)))
    return basis, weights.double() @ basis.T


@dataclass
class Estimates:
    """Sketched gradient estimates of N groups by `keys`, apart for slate and rank tokens.

    Of each group: sketches (K, D) of the gradients of its basis, and by phase the coefficients (keys, K) on it.
    """

    keys: list[Key]
    sketches: list[Tensor] = field(default_factory=list)
    coefficients: dict[str, list[Tensor]] = field(default_factory=lambda: {name: [] for name in PHASES})

    def __len__(self) -> int:
        return len(self.sketches)

    def of(self, key: Key, phase: str) -> Tensor:
        """Sketches of the estimates of one method, of the tokens of one phase. (N, D)."""
        row = self.keys.index(key)
        pairs = zip(self.coefficients[phase], self.sketches, strict=True)
        return torch.stack([own[row] @ sketches for own, sketches in pairs])


def add_estimates(
    found: Estimates, policy: Policy, examples: Sequence[Example], methods: Mapping[Key, RLConfig], config: Config,
    number: int, sketch: CountSketch,
) -> None:  # fmt: skip
    """Draw a group for each example, step `number` of the seed of `config`, and add what each method makes of it."""
    rollouts = rollout(
        policy, examples, sampling_of(config), config.rl.group, config.seed, number, micro=config.lm.micro
    )
    advantages = torch.stack(list(advantages_of(rollouts, examples, methods, config.seed, number).values()))
    advantages = advantages * drawn_tokens(rollouts)  # (M, B, T); a forced token has no gradient
    for q, example in enumerate(examples):
        rows = slice(q * rollouts.group, (q + 1) * rollouts.group)
        own, part = advantages[:, rows] / rollouts.group, rollouts.phase[rows]
        (slate, of_slate), (rank, of_rank) = (
            basis_of((own * (part == phase)).flatten(1).cpu()) for phase in PHASES.values()
        )
        # a group's basis is that of its slate tokens, then that of its rank tokens
        found.coefficients["slate"].append(pad(of_slate, (0, len(rank))).float())
        found.coefficients["rank"].append(pad(of_rank, (len(slate), 0)).float())
        basis = torch.cat((slate, rank))
        found.sketches.append(group_gradients(policy, example, rollouts, rows, basis, sketch))


def advantages_of(
    rollouts: Rollouts, examples: Sequence[Example], methods: Mapping[Key, RLConfig], seed: int, number: int
) -> dict[Key, Tensor]:
    """Advantages (B, T) of each method, whose options also say with how much noise it is paid.

    GDPO's division by the spread over a batch, one number for all tokens, is left out: it turns no gradient.
    """
    paid: dict[tuple[object, ...], Rewards] = {}
    found = {}
    for key, rl in methods.items():
        pay = rl.slate_reward, rl.format_penalty, rl.slate_noise, rl.rank_noise
        if pay not in paid:
            paid[pay] = score(rollouts, examples, rl, seed, number)
        found[key] = CREDITS[rl.credit](paid[pay], rollouts, rl)
    return found


def group_gradients(
    policy: Policy, example: Example, rollouts: Rollouts, rows: slice, weights: Tensor,
    sketch: Callable[[Tensor], Tensor] = lambda gradients: gradients,
) -> Tensor:  # fmt: skip
    """Gradients of sum(weights * log p) over the rollouts `rows` of one example, sketched. -> (K, P or BUCKETS).

    weights (K, G * T): K sets of a weight per token.
    """
    parameters = policy.parameters()
    size = sum(p.numel() for p in parameters)
    if not len(weights):
        return sketch(torch.zeros(0, size))
    prompts = policy.encode([example], rollouts.sampling.grammar)
    logp, _ = policy.logprobs(prompts, rollouts.completions[rows], rollouts.mask[rows], rollouts.sampling)
    paths = weights.to(logp).view(-1, *logp.shape)  # (K, G, T)

    def flat(gradients: Sequence[Tensor | None], *shape: int) -> Tensor:
        pairs = zip(gradients, parameters, strict=True)
        every = [p.new_zeros(p.shape).expand(*shape, *p.shape) if g is None else g for g, p in pairs]
        return torch.cat([g.flatten(len(shape)) for g in every], dim=-1).cpu()

    if size <= BATCHED:  # one pass for all is faster by a third for the tiny policy
        found = torch.autograd.grad(logp, parameters, paths, allow_unused=True, is_grads_batched=True)
        return sketch(flat(found, len(paths)))
    each = (torch.autograd.grad(logp, parameters, path, allow_unused=True, retain_graph=True) for path in paths)
    return torch.stack([sketch(flat(found)) for found in each])
