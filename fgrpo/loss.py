"""The clipped surrogate, and nothing else: PPO's objective (arXiv 1707.06347) with one advantage per token.

Normalised as Dr. GRPO (arXiv 2503.20783): the sum over tokens is divided by a constant (rollouts x longest completion),
not by each completion's own length, so that long outputs are neither favoured nor spared.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .config import RLConfig
from .policy import Policy
from .prompt import PHASE_PAD, PHASE_RANK, PHASE_SLATE, max_tokens
from .rollout import Rollouts


def policy_loss(
    policy: Policy, rollouts: Rollouts, advantages: Tensor, config: RLConfig, reference: Policy | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Loss (scalar, with gradient) and its logs for one batch of rollouts.

    advantages (B, T). With `beta` above 0, the k3 estimate of KL(policy || reference) is added to each token that learns.
    Of rollouts in several parts, the graph of one part is in memory at a time; value and gradient are the same.
    """
    if rollouts.parts:
        logs: dict[str, float] = {}

        def losses() -> Iterator[Tensor]:
            rows = advantages.split([len(part.outputs) for part in rollouts.parts])
            for part, own in zip(rollouts.parts, rows, strict=True):
                part, share = replace(part, longest=rollouts.longest), len(own) / len(advantages)
                loss, found = policy_loss(policy, part, own[:, : part.mask.shape[1]], config, reference)
                logs.update({name: logs.get(name, 0.0) + share * value for name, value in found.items()})
                yield share * loss

        return accumulated(losses(), policy.parameters()), logs

    prompts, ids, mask, sampling = rollouts.prompts, rollouts.completions, rollouts.mask, rollouts.sampling
    logp, entropy = policy.logprobs(prompts, ids, mask, sampling, tree=rollouts.tree, begun=rollouts.begun)  # (B, T)
    # in the first epoch every ratio is 1, and its gradient that of the log-probability
    ratio = shared_log_ratio(logp - rollouts.logprobs, rollouts, config.ratio).exp()
    per_token = clipped_surrogate(ratio, advantages, config.clip_low, config.clip_high)
    if reference is not None and config.beta > 0:
        with torch.no_grad():
            reference_logp, _ = reference.logprobs(prompts, ids, mask, sampling, shared=policy.share)
        kl = k3(logp, reference_logp)
        idle = {"both": PHASE_PAD, "slate": PHASE_RANK, "rank": PHASE_SLATE}[config.learn]  # what does not learn
        per_token = per_token - config.beta * kl * (rollouts.phase != idle)
    loss = -(per_token * mask).sum() / (mask.shape[0] * (rollouts.longest or max_tokens(sampling.grammar)))

    with torch.no_grad():
        logs = {"loss": loss.item(), "approx_kl": masked_mean(k3(rollouts.logprobs, logp), mask).item()}
        if reference is not None and config.beta > 0:
            logs["kl_reference"] = masked_mean(kl, mask).item()
        clipped = clips(ratio, advantages, config.clip_low, config.clip_high).float()
        for name, phase in (("slate", PHASE_SLATE), ("rank", PHASE_RANK)):
            in_phase = rollouts.phase == phase
            logs[f"clipfrac/{name}"] = masked_mean(clipped, in_phase).item()
            logs[f"entropy/{name}"] = masked_mean(entropy, in_phase).item()
    return loss, logs


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


def shared_log_ratio(log_ratio: Tensor, rollouts: Rollouts, level: str) -> Tensor:
    """Tokens of one unit share the mean of their log-ratios, that is the geometric mean of their ratios. (B, T).

    `level` says what a unit is: a token (PPO, GRPO); an item, that is a label with its separator, or a tag (the same
    as a token where every label is one); a phase; the whole sequence, as in GSPO (arXiv 2507.18071). GSPO also divides
    each sequence's term by its length; here every token counts once at every level, as in Dr. GRPO.
    """
    if level == "token" or (level == "item" and rollouts.words is None):
        return log_ratio
    unit = torch.zeros_like(rollouts.phase)  # (B, T): number of each token's unit, here one for all
    if level == "item" and rollouts.words is not None:
        unit = rollouts.words
    elif level == "phase":
        unit = (rollouts.phase - PHASE_SLATE).clamp(min=0)
    mask = rollouts.mask.to(log_ratio.dtype)
    total = torch.zeros_like(log_ratio).scatter_add(1, unit, log_ratio * mask)
    count = torch.zeros_like(log_ratio).scatter_add(1, unit, mask).clamp(min=1)
    return (total / count).gather(1, unit) * mask


def accumulated(parts: Iterable[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """The sum of several losses as one scalar with gradient, with the graph of one part in memory at a time."""
    value, gradients = torch.zeros(()), [torch.zeros_like(p) for p in parameters]
    for loss in parts:
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients = [a if b is None else a.add_(b) for a, b in zip(gradients, found, strict=True)]
        value = value + loss.detach().cpu()
    # sum(p * g) has the gradient g, and less itself the value 0
    linear = torch.stack([(p * g).sum().cpu() for p, g in zip(parameters, gradients, strict=True)]).sum()
    return value + linear - linear.detach()
