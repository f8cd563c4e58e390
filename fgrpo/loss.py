"""The clipped surrogate, and nothing else: PPO's objective (arXiv 1707.06347) with one advantage per token.

Normalised as Dr. GRPO: the sum over tokens is divided by a constant (rollouts x longest completion), not by each
completion's own length, so that long outputs are neither favoured nor spared.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .config import RLConfig
from .policy import Policy, Scorer, slices
from .prompt import PHASE_RANK, PHASE_SLATE, max_tokens
from .rollout import Rollouts


def policy_loss(
    policy: Policy, rollouts: Rollouts, advantages: Tensor, config: RLConfig, reference: Scorer | None = None,
    micro: int = 0,
) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
    """Loss (scalar, with gradient) and its logs for one batch of rollouts.

    advantages (B, T). With `beta` above 0, the k3 estimate of KL(policy || reference) is added to each token. With
    `micro`, the loss is computed for so many queries at a time (0: all at once); value and gradient are the same.
    """
    n_queries = len(rollouts.outputs) // rollouts.group
    if not 0 < micro < n_queries:
        return _policy_loss(policy, rollouts, advantages, config, reference)
    logs: dict[str, float] = {}

    def parts() -> Iterator[Tensor]:
        for some in slices(n_queries, micro):
            part = rollouts.rows(some)
            own = advantages[some.start * rollouts.group : some.stop * rollouts.group, : part.mask.shape[1]]
            share = (some.stop - some.start) / n_queries
            loss, found = _policy_loss(policy, part, own, config, reference)
            logs.update({name: logs.get(name, 0.0) + share * value for name, value in found.items()})
            yield share * loss

    return accumulated(parts(), policy.parameters()), logs


def _policy_loss(
    policy: Policy, rollouts: Rollouts, advantages: Tensor, config: RLConfig, reference: Scorer | None
) -> tuple[Tensor, dict[str, float]]:
    mask, sampling = rollouts.mask, rollouts.sampling
    logp, entropy = policy.logprobs(
        rollouts.prompts, rollouts.completions, mask, sampling, tree=rollouts.tree, begun=rollouts.begun
    )  # (B, T)
    log_ratio = logp - rollouts.logprobs  # 0 in the first epoch: the ratio is then 1, and its gradient that of logp
    ratio = RATIOS[config.ratio](log_ratio, rollouts).exp()
    per_token = clipped_surrogate(ratio, advantages, config.clip_low, config.clip_high)
    kl = torch.zeros(())
    if reference is not None and config.beta > 0:
        with torch.no_grad():
            reference_logp, _ = reference.logprobs(rollouts.prompts, rollouts.completions, mask, sampling)
        kl = k3(logp, reference_logp)
        per_token = per_token - config.beta * kl
    # a constant divisor: B rollouts x tokens of the longest completion that the grammar allows
    loss = -(per_token * mask).sum() / (mask.shape[0] * (rollouts.longest or max_tokens(sampling.grammar)))

    with torch.no_grad():
        logs = {"loss": loss.item(), "approx_kl": masked_mean(k3(rollouts.logprobs, logp), mask).item()}
        if config.beta > 0:
            logs["kl_reference"] = masked_mean(kl.expand_as(logp), mask).item()
        clipped = clips(ratio, advantages, config.clip_low, config.clip_high).float()
        for name, phase in (("slate", PHASE_SLATE), ("rank", PHASE_RANK)):
            in_phase = rollouts.phase == phase
            logs[f"clipfrac/{name}"] = masked_mean(clipped, in_phase).item()
            logs[f"entropy/{name}"] = masked_mean(entropy, in_phase).item()
    return loss, logs


class _Accumulated(torch.autograd.Function):
    """A number whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(outputs[0] * g for g in ctx.gradients))


def accumulated(parts: Iterable[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """The sum of several losses as one scalar with gradient, with the graph of one part in memory at a time."""
    value, gradients = torch.zeros(()), [torch.zeros_like(p) for p in parameters]
    for loss in parts:
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients = [a if b is None else a.add_(b) for a, b in zip(gradients, found, strict=True)]
        value = value + loss.detach().cpu()
    return _Accumulated.apply(value, gradients, *parameters)


def clipped_surrogate(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """min(ratio A, clip(ratio, 1 - low, 1 + high) A), elementwise."""
    return torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def clips(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """True where the clip takes the gradient away: above 1 + high for a positive advantage, below 1 - low otherwise."""
    return ((advantages > 0) & (ratio > 1 + high)) | ((advantages < 0) & (ratio < 1 - low))


def k3(logp: Tensor, reference_logp: Tensor) -> Tensor:
    """Unbiased, never negative estimate of KL(policy || reference) from samples of the policy: exp(d) - d - 1."""
    d = reference_logp - logp
    return d.exp() - d - 1


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the true entries of mask; 0 if there are none."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


# --- levels of the importance ratio: which tokens share one ratio ---


def token_level(log_ratio: Tensor, rollouts: Rollouts) -> Tensor:
    """Each token has its own ratio (PPO, GRPO)."""
    return log_ratio


def item_level(log_ratio: Tensor, rollouts: Rollouts) -> Tensor:
    """The tokens of one word (a label with what separates it from the one before, a tag) share their geometric mean.

    Every word of the `item` scheme is one token: there this is the token level.
    """
    if rollouts.words is None:
        return log_ratio
    words, mask = rollouts.words, rollouts.mask
    total = torch.zeros_like(log_ratio).scatter_add(1, words, log_ratio * mask)
    count = torch.zeros_like(log_ratio).scatter_add(1, words, mask.to(log_ratio.dtype)).clamp(min=1)
    return (total / count).gather(1, words) * mask


def phase_level(log_ratio: Tensor, rollouts: Rollouts) -> Tensor:
    """The tokens of one phase share the geometric mean of their ratios."""
    slate, rank = (_share(log_ratio, rollouts.phase == p) for p in (PHASE_SLATE, PHASE_RANK))
    return slate + rank


def sequence_level(log_ratio: Tensor, rollouts: Rollouts) -> Tensor:
    """The tokens of one completion share the geometric mean of their ratios (GSPO, arXiv 2507.18071)."""
    return _share(log_ratio, rollouts.mask)


def _share(log_ratio: Tensor, where: Tensor) -> Tensor:
    """Replace each entry by the mean over its row's true entries; 0 elsewhere."""
    mean = (log_ratio * where).sum(1, keepdim=True) / where.sum(1, keepdim=True).clamp(min=1)
    return mean * where


RATIOS: dict[str, Callable[[Tensor, Rollouts], Tensor]] = {
    "token": token_level, "item": item_level, "phase": phase_level, "sequence": sequence_level,
}  # fmt: skip
