"""The loss by hand on three tokens, against a plain loop, and what clipping and ratio levels do."""

import math
from dataclasses import replace

import pytest
import torch

from fgrpo.config import GrammarConfig, RLConfig
from fgrpo.loss import clipped_surrogate, clips, k3, policy_loss, shared_log_ratio
from fgrpo.policy import Sampling
from fgrpo.prompt import PHASE_PAD, PHASE_RANK, PHASE_SLATE, max_tokens
from fgrpo.rollout import Rollouts, rollout


class ThreeTokens:
    """A policy with one distribution over a vocabulary of three: logits are its only parameters."""

    def __init__(self, logits: list[float]):
        self.logits = torch.tensor(logits, requires_grad=True)

    def logprobs(self, prompts, completions, mask, sampling, shared=True, tree=None, begun=0):
        logp = self.logits.log_softmax(-1)
        entropy = -(logp.exp() * logp).sum()
        return torch.where(mask, logp[completions], 0.0), entropy * mask


def rollouts_of(tokens: list[list[int]], old: list[list[float]], phase: list[list[int]]) -> Rollouts:
    phases = torch.tensor(phase)
    return Rollouts(
        None, torch.tensor(tokens), phases != PHASE_PAD, phases, torch.tensor(old), [], 2, Sampling(GrammarConfig(1, 1))
    )  # type: ignore[arg-type]


def test_gradient_by_hand_on_three_tokens() -> None:
    """Two rollouts of one token each, advantages +1 and -1, ratio 1.

    loss = -(r_0 - r_1) / (B L) with B = 2 rollouts and L = 7 tokens at most; the gradient of log softmax is
    onehot - p, so d loss / d logits = -[(onehot_0 - p) - (onehot_2 - p)] / 14 = (-1, 0, 1) / 14.
    """
    policy = ThreeTokens([0.3, -0.2, 0.5])
    old = policy.logits.detach().log_softmax(-1)
    r = rollouts_of([[0], [2]], [[old[0].item()], [old[2].item()]], [[PHASE_SLATE], [PHASE_SLATE]])
    loss, logs = policy_loss(policy, r, torch.tensor([[1.0], [-1.0]]), RLConfig())
    loss.backward()
    assert max_tokens(GrammarConfig(1, 1)) == 7
    assert torch.allclose(policy.logits.grad, torch.tensor([-1.0, 0.0, 1.0]) / 14, atol=1e-7)
    assert loss.item() == pytest.approx(0.0, abs=1e-7)
    assert logs["approx_kl"] == pytest.approx(0.0, abs=1e-6)


def test_gradient_with_one_sided_advantage_by_hand() -> None:
    """One rollout: d loss / d logits = -A (onehot - p) / (B L), here with A = 2 and p worked out by hand."""
    policy = ThreeTokens([0.0, math.log(2), 0.0])  # p = (1/4, 1/2, 1/4)
    r = rollouts_of([[1]], [[math.log(0.5)]], [[PHASE_RANK]])
    loss, _ = policy_loss(policy, r, torch.tensor([[2.0]]), RLConfig())
    loss.backward()
    assert torch.allclose(policy.logits.grad, -2 * torch.tensor([-0.25, 0.5, -0.25]) / 7, atol=1e-7)


def loss_by_loop(logp, reference, r: Rollouts, advantages, config: RLConfig) -> float:
    total, rows = 0.0, r.mask.shape[0]
    for b in range(rows):
        for t in range(r.mask.shape[1]):
            if not r.mask[b, t]:
                continue
            ratio = math.exp(logp[b, t] - r.logprobs[b, t])
            a = float(advantages[b, t])
            value = min(ratio * a, min(max(ratio, 1 - config.clip_low), 1 + config.clip_high) * a)
            d = float(reference[b, t] - logp[b, t])
            learns = (
                config.learn == "both" or int(r.phase[b, t]) == {"slate": PHASE_SLATE, "rank": PHASE_RANK}[config.learn]
            )
            total += value - learns * config.beta * (math.exp(d) - d - 1)
    return -total / (rows * max_tokens(r.sampling.grammar))


@pytest.mark.parametrize("learn", ["both", "slate", "rank"])
def test_agrees_with_the_plain_loop_off_policy_with_kl(policy, queries, learn) -> None:
    """Where one phase learns, only its tokens have an advantage, and only they are held near the reference."""
    r = rollout(policy, queries, Sampling(GrammarConfig()), 4, 0)
    generator = torch.Generator().manual_seed(1)
    r = replace(r, logprobs=r.logprobs + 0.4 * torch.randn(r.logprobs.shape, generator=generator) * r.mask)
    advantages = torch.randn(r.logprobs.shape, generator=generator) * r.mask
    advantages = advantages * (r.phase != {"both": PHASE_PAD, "slate": PHASE_RANK, "rank": PHASE_SLATE}[learn])
    reference = type(policy).tiny(policy.labels.items, _model(), seed=9)
    config = RLConfig(beta=0.1, clip_low=0.1, clip_high=0.3, learn=learn)
    loss, logs = policy_loss(policy, r, advantages, config, reference)
    logp, _ = policy.logprobs(r.prompts, r.completions, r.mask, r.sampling)
    reference_logp, _ = reference.logprobs(r.prompts, r.completions, r.mask, r.sampling)
    expected = loss_by_loop(logp.detach(), reference_logp.detach(), r, advantages, config)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert logs["kl_reference"] > 0 and logs["approx_kl"] > 0
    clipped = clips((logp - r.logprobs).exp(), advantages, 0.1, 0.3)
    for name, phase in (("slate", PHASE_SLATE), ("rank", PHASE_RANK)):
        share = clipped[r.phase == phase].float().mean().item()
        assert logs[f"clipfrac/{name}"] == pytest.approx(share, abs=1e-6) and (share > 0) == (learn in ("both", name))


def _model():
    from fgrpo.config import ModelConfig
    from tests.conftest import SMALL

    return ModelConfig(**SMALL)


def test_clipping_takes_the_gradient_away_on_the_right_side() -> None:
    ratio = torch.tensor([0.5, 1.0, 1.5, 0.5, 1.0, 1.5], requires_grad=True)
    advantages = torch.tensor([1.0, 1, 1, -1, -1, -1])
    clipped_surrogate(ratio, advantages, 0.2, 0.2).sum().backward()
    assert ratio.grad.tolist() == [1, 1, 0, 0, -1, -1]
    assert clips(ratio, advantages, 0.2, 0.2).tolist() == [False, False, True, True, False, False]


def test_k3_is_unbiased_and_never_negative() -> None:
    p, q = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.4, 0.4, 0.2])
    estimate = k3(p.log(), q.log())
    assert (estimate >= 0).all()
    assert (p * estimate).sum().item() == pytest.approx((p * (p / q).log()).sum().item(), abs=1e-6)


def test_ratio_levels_by_hand() -> None:
    phase = [[PHASE_SLATE, PHASE_SLATE, PHASE_RANK, PHASE_PAD]]
    r = rollouts_of([[0, 0, 0, 0]], [[0.0] * 4], phase)
    log_ratio = torch.tensor([[0.2, 0.4, -0.6, 0.0]])
    expected = {
        "token": [0.2, 0.4, -0.6, 0.0], "item": [0.2, 0.4, -0.6, 0.0],
        "phase": [0.3, 0.3, -0.6, 0.0], "sequence": [0.0, 0.0, 0.0, 0.0],
    }  # fmt: skip
    for name in expected:
        assert torch.allclose(shared_log_ratio(log_ratio, r, name), torch.tensor([expected[name]]), atol=1e-7), name


def test_a_sequence_ratio_would_average_the_phases() -> None:
    """Why it is refused: at ratio 1 every token's gradient is the row's mean advantage, whatever its own."""
    log_ratio = torch.zeros(1, 4, requires_grad=True)
    r = rollouts_of([[0] * 4], [[0.0] * 4], [[PHASE_SLATE, PHASE_SLATE, PHASE_RANK, PHASE_RANK]])
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    (shared_log_ratio(log_ratio, r, "sequence").exp() * advantages).sum().backward()
    assert log_ratio.grad.abs().max() == 0


def test_a_sequence_ratio_is_gspos_without_its_division_by_length() -> None:
    """GSPO's term of a sequence is min(s A, clip(s) A), s the geometric mean of its ratios; here each token has it."""
    policy = ThreeTokens([0.3, -0.2, 0.5])
    tokens, old = [[0, 2, 1], [1, 0, 0]], [[-1.0, -0.9, -1.2], [-1.3, -1.0, -9.0]]
    phases = [[PHASE_SLATE, PHASE_RANK, PHASE_RANK], [PHASE_SLATE, PHASE_RANK, PHASE_PAD]]
    advantages = torch.tensor([[1.0] * 3, [-0.5] * 3])
    r = rollouts_of(tokens, old, phases)
    loss, _ = policy_loss(policy, r, advantages, RLConfig(credit="grpo", ratio="sequence", clip_low=0.9, clip_high=9.0))
    (found,) = torch.autograd.grad(loss, policy.logits)
    logp = policy.logits.log_softmax(-1)
    expected = torch.zeros(())
    for row, n in enumerate((3, 2)):
        s = ((logp[tokens[row][:n]] - torch.tensor(old[row][:n])).sum() / n).exp()
        expected = expected - n * s * advantages[row, 0] / (2 * 7)  # GSPO has 1 in place of n, and 2 in place of 2 x 7
    (wanted,) = torch.autograd.grad(expected, policy.logits)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6) and torch.allclose(found, wanted, atol=1e-6)
