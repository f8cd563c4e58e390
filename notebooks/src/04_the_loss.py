# ---
# jupyter:
#   fgrpo: {budget: 60}
# ---

# %% [markdown]
# # 4. The loss (lab)
#
# **Does the gradient reach only the intended tokens?**
#
# Every token has an advantage ([notebook 3](03_advantages.ipynb)). The loss turns the advantages into a change of the
# policy's weights. In the formula each token is changed by its own advantage alone. But all tokens share the same
# weights, so we take one step and measure which probabilities really changed.

# %%
import os
import sys
from pathlib import Path

SEED = 0  # change it and run the notebook again: every number below is computed
REPOSITORY = os.environ.get("FGRPO_REPOSITORY", "ADDRESS-OF-THE-REPOSITORY")

here = Path.cwd()
folders = [here, *here.parents, *(path.parents[1] for path in here.glob("*/fgrpo/__init__.py"))]
ROOT = next((folder for folder in folders if (folder / "fgrpo" / "__init__.py").is_file()), None)
if ROOT is None:
    raise SystemExit(
        "The kit was not found. Run the next line in a cell of its own, then run this cell again:\n"
        f"!git clone {REPOSITORY} kit && pip install -e kit"
    )
sys.path.insert(0, str(ROOT))
FIGURES = ROOT / "runs" / "notebooks"

# %%
import copy
from dataclasses import replace

import torch
from IPython.display import Image, Markdown

from notebooks import checks

# %% [markdown]
# ## From advantage to loss
#
# A **loss** is a number that training makes smaller. Its **gradient** says how the loss changes with every weight, and
# the **optimizer** takes a small step against the gradient. But a reward R is a number without a gradient: the weights do
# not appear in it. They appear in the probability p of the output. Two lines are enough (grad p = p * grad log p):
#
# ```text
# grad E[R]           =  sum over all outputs of  R * grad p  =  sum of  p * R * grad log p  =  E[ R * grad log p ]
# E[ b * grad log p ] =  b * sum of  grad p  =  b * grad 1  =  0
# ```
#
# The first line is the **policy gradient**: sample outputs, and weight the gradient of each one's log-probability by its
# reward. The second says that a **baseline** b, any number that does not depend on the output, changes nothing on average.
# It costs nothing, and it removes noise: with R - b, the advantage, an output is pushed up only if it was better than usual.
# (The mean of the group contains the rollout's own reward. That makes all advantages smaller by the factor 1 - 1/G, and
# changes no direction.) And log p is a sum over tokens, so that every token can have an advantage of its own.

# %% [markdown]
# So the loss needs no gradient of the reward. It uses a replacement (a *surrogate*) with the gradient of the first line. The
# policy is compared with itself at the time of sampling. For every token
#
# ```text
# ratio = exp(logp - old_logp)      logp: log-probability under the policy now; old_logp: when the token was drawn
# ```
#
# Before the first step every ratio is 1, and the gradient of `ratio * advantages` is the advantage times the gradient of
# `logp`, as wanted: `logp` goes up where the advantage is positive and down where it is negative.

# %% [markdown]
# ## Clipping
#
# The advantages were measured with the old policy. If the same rollouts are used for several steps, the policy can move
# too far from the one that sampled them. So the gain is clipped when the ratio leaves an interval around 1 (PPO, Proximal
# Policy Optimization, arXiv 1707.06347):
#
# ```text
# surrogate = min(ratio * advantages, clip(ratio, 1 - low, 1 + high) * advantages)
# ```
#
# `clip` limits a number to an interval; `low` and `high` are its widths below and above 1. The `min` matters. If the policy
# has already moved far in the *right* direction, the clipped term is smaller; it is constant, so the gradient is 0. If the
# policy has moved in the *wrong* direction, the unclipped term is smaller, and its gradient brings the policy back.


# %% exercise="my_surrogate" difficulty=2 minutes=10
def my_surrogate(ratio: torch.Tensor, advantages: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Clipped surrogate of every token. ratio, advantages and result have the same shape."""
    # solution
    clipped = ratio.clamp(1 - low, 1 + high)
    return torch.minimum(ratio * advantages, clipped * advantages)


# %% [markdown] hints="my_surrogate"
# Compute both products, with and without the clip. At the ratio 0.5 with advantage +1, and at the ratio 2 with
# advantage -1: which product is smaller, and does it still depend on the ratio?
#
# `torch.minimum(ratio * advantages, clipped * advantages)` with `clipped = ratio.clamp(1 - low, 1 + high)`. Stay with
# tensors: a Python number has no gradient.

# %%
print(checks.surrogate(my_surrogate))


# %% [markdown]
# ## From tokens to one number
#
# The loss is minus the sum over all real tokens, divided by a constant (Dr. GRPO, arXiv 2503.20783):
#
# ```text
# loss = - sum(per_token * mask) / (B * longest)
# ```
#
# `per_token` (B, T) is the surrogate; `mask` (B, T) is true for real tokens and false for padding; `longest` is the length
# of the longest output that the grammar allows. Why a constant, and not the length of each output? If each output were
# divided by its own length, a token of a short output would weigh more than a token of a long output. The policy would
# then learn to prefer certain lengths for no good reason.


# %% exercise="my_loss" difficulty=1 minutes=5
def my_loss(per_token: torch.Tensor, mask: torch.Tensor, longest: int) -> torch.Tensor:
    """The loss, one number. per_token (B, T), mask (B, T) bool."""
    # solution
    return -(per_token * mask).sum() / (len(per_token) * longest)


# %% [markdown] hints="my_loss"
# An optimizer makes the loss *smaller*, but the surrogate should grow. Which tokens must not count, and which number
# is the same whatever the lengths of the other outputs?
#
# Multiply `per_token` by `mask`, sum everything, divide by `len(per_token) * longest`, and put a minus sign in front.

# %%
print(checks.normalised(my_loss))


# %% [markdown]
# ## Rollouts, and their credit under two methods
#
# As before: groups for some queries of the test split, with full lists; rewards; advantages (B, T).

# %%
from fgrpo.config import Config, GrammarConfig
from fgrpo.credit import assign_credit
from fgrpo.rewards import score
from fgrpo.rollout import rollout
from fgrpo.runs.policies import load_policy
from fgrpo.runs.warm_start import SHIPPED
from fgrpo.tasks.lab import lab_task
from fgrpo.trainer import sampling_of

config = Config(grammar=GrammarConfig(full=True))
policy = load_policy(SHIPPED)
generator = torch.Generator().manual_seed(SEED)
test = lab_task().test
queries = [test[i] for i in torch.randperm(len(test), generator=generator)[: config.rl.queries].tolist()]
rollouts = rollout(policy, queries, sampling_of(config), config.rl.group, SEED)
rewards = score(rollouts, queries, config.rl)
advantages = {m: assign_credit(rewards, rollouts, replace(config.rl, credit=m)) for m in ("grpo", "fgrpo")}
B, T = rollouts.mask.shape
Markdown(f"Q = {len(queries)} queries, G = {rollouts.group}, so B, T = {B}, {T}.")

# %% [markdown]
# ## In the formula: exactly the intended tokens
#
# The loss depends on the log-probabilities, and these depend on the weights. Look at the first part alone: the derivative
# of the loss with respect to every `logp`. With all ratios equal to 1 it should be minus the token's own advantage, times
# a constant, and 0 at padding. No token is affected by the advantage of another phase. (The loss is computed by your two
# functions, once they are right, and has to agree with the kit's.)

# %%
from fgrpo.loss import policy_loss
from fgrpo.prompt import max_tokens

longest = max_tokens(config.grammar)
old_logp = rollouts.logprobs  # (B, T)
logp = old_logp.clone().requires_grad_()  # treated as if they were the weights
ratio = (logp - old_logp).exp()
(surrogate, whose), (total, also) = checks.surrogate.use(my_surrogate), checks.normalised.use(my_loss)
per_token = surrogate(ratio, advantages["fgrpo"], config.rl.clip_low, config.rl.clip_high)
loss = total(per_token, rollouts.mask, longest)
loss.backward()

whole, logs = policy_loss(policy, rollouts, advantages["fgrpo"], config.rl)
assert torch.isclose(loss, whole, atol=1e-6)  # the kit's loss, computed from the weights
wanted = -advantages["fgrpo"] * rollouts.mask / (B * longest)
Markdown(
    f"Largest difference to minus advantages / (B * longest): {(logp.grad - wanted).abs().max():.1e}. "
    f"(Surrogate by {whose}; loss by {also}.)"
)

# %% [markdown]
# ## In the weights: one measured step
#
# Now the weights too. We copy the policy, take one step of plain gradient descent, and compute the log-probabilities of
# the same tokens again. (Training uses AdamW, an optimizer whose first steps have the same size for small and large
# gradients. Plain gradient descent shows the gradient itself.) To see one cause at a time, only **one rollout** has an
# advantage. We choose the one whose phases disagree most: a good slate with a bad ranking, or a bad slate with a good one.

# %%
from fgrpo.prompt import PHASE_RANK, PHASE_SLATE
from fgrpo.trainer import update


def step(advantages, lr=1.0):
    """Change of every log-probability (B, T) after one step of a copy of the policy."""
    new = copy.deepcopy(policy)
    loss, _ = policy_loss(new, rollouts, advantages, config.rl)
    update(new, torch.optim.SGD(new.model.parameters(), lr=lr), loss, config.rl.max_grad_norm)
    with torch.no_grad():
        logp, _ = new.logprobs(rollouts.prompts, rollouts.completions, rollouts.mask, rollouts.sampling)
    return logp - rollouts.logprobs


first = [(rollouts.phase == p).int().argmax(dim=1, keepdim=True) for p in (PHASE_SLATE, PHASE_RANK)]
own_slate, own_rank = (advantages["fgrpo"].gather(1, t).squeeze(1) for t in first)
apart = torch.minimum(own_slate.abs(), own_rank.abs()) * (own_slate * own_rank < 0)
row = int(apart.argmax())
alone = (torch.arange(B) == row).unsqueeze(1)  # (B, 1): true for this rollout only
change = {method: step(a * alone) for method, a in advantages.items()}
Markdown(
    f"Rollout {row}: the advantage of its slate is {own_slate[row]:+.2f}, that of its ranking {own_rank[row]:+.2f}."
)

# %% [markdown]
# ## The figure to keep
#
# Every bar is a token of that rollout. A bar above 0 means that the token is more likely than before. (The unit of natural
# logarithms is the *nat*; a small change of 0.01 nats is one percent more probability.) Under joint credit both phases
# have the same advantage and are pushed in the same direction. Under factorised credit each phase has its own advantage,
# and here they have opposite signs. Forced tokens always have probability 1 and cannot change.

# %%
from fgrpo.study.plots import save
from notebooks import figures

bars = figures.logprob_change(policy, queries[row // rollouts.group], rollouts, row, change, advantages)
Image(save(bars, FIGURES / "04_the_loss.png"), width=950, alt="Change of log-prob of every token after one step")

# %% [markdown]
# ## Did every token change in the direction of its own reward?
#
# A token changes "in the right direction" if it becomes more likely when its own phase was better than the group, and less
# likely when it was worse. We count this for this rollout, and then for a step on all rollouts at once. In that step every
# token is also changed by the other rollouts. If the two methods come out close there, this is the reason: the other
# rollouts have more influence on a token than its own advantage.

# %%
free = (rollouts.logprobs < 0) & rollouts.mask  # tokens that the policy chose
own = advantages["fgrpo"]
together = {method: step(a) for method, a in advantages.items()}
rows = [
    "| step on | credit | slate tokens in the right direction | rank tokens in the right direction |",
    "|---" * 4 + "|",
]
for name, moved, where in (("this rollout", change, free & alone), ("all rollouts", together, free & (own != 0))):
    for method, values in moved.items():
        shares = []
        for p in (PHASE_SLATE, PHASE_RANK):
            here = where & (rollouts.phase == p)
            shares.append(f"{int((values * own > 0)[here].sum())} of {int(here.sum())}")
        rows.append(f"| {name} | {method} | {shares[0]} | {shares[1]} |")
Markdown("\n".join(rows))

# %% [markdown]
# ## Leakage between the phases
#
# Now only the tokens of *one phase* get an advantage; that of the other phase is 0. In the formula the other phase is not
# affected. In the weights it is: both phases use the same weights for the same films. The table shows the mean absolute
# change of the log-probabilities, in thousandths of a nat.

# %%
rows = ["| advantage on | change of slate tokens | change of rank tokens | leakage |", "|---" * 4 + "|"]
for name, p, other in (("slate", PHASE_SLATE, PHASE_RANK), ("rank", PHASE_RANK, PHASE_SLATE)):
    moved = step(own * alone * (rollouts.phase == p)).abs()
    size = {q: float(moved[free & alone & (rollouts.phase == q)].mean()) for q in (PHASE_SLATE, PHASE_RANK)}
    rows.append(
        f"| {name} only | {1000 * size[PHASE_SLATE]:.1f} | {1000 * size[PHASE_RANK]:.1f} | {size[other] / size[p]:.0%} |"
    )
Markdown("\n".join(rows))

# %% [markdown]
# ## Answer
#
# - **The loss** reaches exactly the intended tokens: the derivative for a token is its own advantage times a constant.
#   This is what factorised credit promises, and the kit's tests check it.
# - **The step** changes shared weights, so pushing one token also changes the others; the leakage table says how much.
#   Factorised credit decides in which direction each phase is *pushed*; it does not separate the weights of the phases.
# - This was the step of one rollout. Training takes many steps on many rollouts, and the policy learns what their gradients
#   have in common.
#
# A summary of the paper speaks of *first-order separability*; its exact statement could not be obtained. We read it as: a
# small step of one phase does not change the reward gradient of the other. With a model for each phase that is so, except
# that after a step of the slate phase the ranker is asked about other slates. With shared weights it is not, as you have
# just seen. `python -m fgrpo analyse` measures both.
