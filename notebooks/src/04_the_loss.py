# ---
# jupyter:
#   fgrpo: {budget: 60}
# ---

# %% [markdown]
# # 4. The loss (lab)
#
# **Does the gradient reach only the tokens meant?**
#
# Every token has an advantage ([notebook 3](03_advantages.ipynb)). The loss turns them into a change of the policy's
# weights. On paper each token is moved by its own advantage alone. But all tokens come out of the same weights: we take
# one step and measure what really moved.

# %%
import os
import sys
from pathlib import Path

SEED = 0  # change it and run again: every number below is computed
REPOSITORY = os.environ.get("FGRPO_REPOSITORY", "ADDRESS-OF-THE-REPOSITORY")

here = Path.cwd()
places = [here, *here.parents, *(path.parents[1] for path in here.glob("*/fgrpo/__init__.py"))]
ROOT = next((place for place in places if (place / "fgrpo" / "__init__.py").is_file()), None)
if ROOT is None:
    raise SystemExit(
        "The kit is not on this machine. Run this line in a cell of its own, then this cell again:\n"
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
# A **loss** is a number that training makes smaller. Its **gradient** says how it would change with every weight, and the
# **optimizer** takes a small step against the gradient. The rewards have no gradient, so something has to stand in for
# them (a *surrogate*): we want a step that makes tokens with a positive advantage likelier and those with a negative one
# less likely.
#
# The policy is compared with itself at the moment of sampling. For every token
#
# ```text
# ratio = exp(logp - old_logp)      logp: log-probability under the policy now; old_logp: when the token was drawn
# ```
#
# Before the first step every ratio is 1. Raising `ratio * advantages` does what we want: `logp` goes up where the advantage
# is positive and down where it is negative.

# %% [markdown]
# ## Not too far: clipping
#
# The advantages were measured with the old policy. If the same rollouts are used for several steps, nothing stops the
# policy from running after them. So the gain is cut off once the ratio has left a band around 1 (PPO, arXiv 1707.06347):
#
# ```text
# surrogate = min(ratio * advantages, clip(ratio, 1 - low, 1 + high) * advantages)
# ```
#
# `clip` holds a number between two bounds; `low` and `high` are the widths of the band. The `min` matters. Where the policy
# has already gone far in the *right* direction, the clipped term is the smaller one, it is constant, and the gradient is 0.
# Where it has gone in the *wrong* direction the gradient stays, to bring it back.


# %% exercise="my_surrogate" difficulty=2 minutes=10
def my_surrogate(ratio: torch.Tensor, advantages: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Clipped surrogate of every token. ratio, advantages and result have the same shape."""
    # solution
    clipped = ratio.clamp(1 - low, 1 + high)
    return torch.minimum(ratio * advantages, clipped * advantages)


# %%
print(checks.surrogate(my_surrogate))


# %% wrong="my_surrogate" says="always clipped"
def clipped_alone(ratio, advantages, low, high):
    return ratio.clamp(1 - low, 1 + high) * advantages


# %% wrong="my_surrogate" says="maximum"
def the_larger(ratio, advantages, low, high):
    return torch.maximum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


# %% wrong="my_surrogate" says="before the advantage"
def ratios_first(ratio, advantages, low, high):
    return torch.minimum(ratio, ratio.clamp(1 - low, 1 + high)) * advantages


# %% wrong="my_surrogate" says="Nothing is clipped"
def no_clip(ratio, advantages, low, high):
    return ratio * advantages


# %% [markdown]
# ## One number out of many
#
# The loss is minus the sum over all real tokens, divided by a constant (Dr. GRPO, arXiv 2503.20783):
#
# ```text
# loss = - sum(per_token * mask) / (B * longest)
# ```
#
# `per_token` (B, T) is the surrogate; `mask` (B, T) is true for real tokens and false for padding; `longest` is the length
# of the longest output that the grammar allows. Why a constant, and not each output's own length? Divided by its own length,
# a token of a short output would weigh more than one of a long output, and the policy would learn about length what
# nobody meant to teach.


# %% exercise="my_loss" difficulty=1 minutes=5
def my_loss(per_token: torch.Tensor, mask: torch.Tensor, longest: int) -> torch.Tensor:
    """The loss, one number. per_token (B, T), mask (B, T) bool."""
    # solution
    return -(per_token * mask).sum() / (len(per_token) * longest)


# %%
print(checks.normalised(my_loss))


# %% wrong="my_loss" says="its own length"
def mean_per_output(per_token, mask, longest):
    return -((per_token * mask).sum(1) / mask.sum(1)).mean()


# %% wrong="my_loss" says="real tokens of this batch"
def mean_over_tokens(per_token, mask, longest):
    return -(per_token * mask).sum() / mask.sum()


# %% wrong="my_loss" says="mask is missing"
def with_padding(per_token, mask, longest):
    return -per_token.sum() / (len(per_token) * longest)


# %% wrong="my_loss" says="sign is missing"
def uphill(per_token, mask, longest):
    return (per_token * mask).sum() / (len(per_token) * longest)


# %% [markdown]
# ## Rollouts, and their credit under two methods
#
# As before: groups for some queries of the test set, rewards, advantages (B, T).

# %%
from fgrpo.runs.policies import policy_folder
from fgrpo.runs.policies import load_policy
from fgrpo.runs.warm_start import SHIPPED
from fgrpo.config import Config
from fgrpo.credit import assign_credit
from fgrpo.tasks.jsonl import read_jsonl
from fgrpo.tasks import DATA
from fgrpo.policy import Policy
from fgrpo.rewards import score
from fgrpo.trainer import sample

config = Config()
policy = load_policy(SHIPPED)
generator = torch.Generator().manual_seed(SEED)
test = read_jsonl(DATA / "lab-rec" / "test.jsonl")
queries = [test[i] for i in torch.randperm(len(test), generator=generator)[: config.rl.queries].tolist()]
rollouts = replace(sample(policy, queries, config, generator), tree=None)  # no tree: several losses on these rollouts
rewards = score(rollouts, queries, config.rl)
advantages = {m: assign_credit(rewards, rollouts, replace(config.rl, credit=m)) for m in ("grpo", "fgrpo")}
B, T = rollouts.mask.shape
Markdown(f"Q = {len(queries)} queries, G = {rollouts.group}, so B, T = {B}, {T}.")

# %% [markdown]
# ## On paper: exactly the tokens meant
#
# The loss is a function of the log-probabilities first and of the weights second. Take the first half alone: the
# derivative of the loss with respect to every `logp`. With all ratios at 1 it should be the token's own advantage, turned
# around and scaled, and 0 at padding. Nothing crosses from one phase to the other.

# %%
from fgrpo.loss import clipped_surrogate, policy_loss
from fgrpo.prompt import max_tokens

longest = max_tokens(config.grammar)
old_logp = rollouts.logprobs  # (B, T)
logp = old_logp.clone().requires_grad_()  # as if these were the weights
ratio = (logp - old_logp).exp()
per_token = clipped_surrogate(ratio, advantages["fgrpo"], config.rl.clip_low, config.rl.clip_high)
loss = -(per_token * rollouts.mask).sum() / (B * longest)
loss.backward()

whole, logs = policy_loss(policy, rollouts, advantages["fgrpo"], config.rl)
assert torch.isclose(loss, whole, atol=1e-6)  # the kit's loss, from the weights on
wanted = -advantages["fgrpo"] * rollouts.mask / (B * longest)
Markdown(f"Largest difference to minus advantages / (B * longest): {(logp.grad - wanted).abs().max():.1e}.")

# %% [markdown]
# ## In the weights: one step, measured
#
# Now the whole way. We copy the policy, take one step of plain gradient descent, and ask for the log-probability of the same
# tokens again. (Training uses AdamW, whose first steps are equally long however small the gradient is; plain descent shows
# the gradient as it is.) To see one cause at a time, only **one rollout** has an advantage: the one, of those
# with a full ranked list, whose phases disagree most: good slate and bad ranking or the other way round.

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
own_slate, own_rank = (advantages["fgrpo"].gather(1, place).squeeze(1) for place in first)
full = torch.tensor([len(output.rank) == config.grammar.rank_size for output in rollouts.outputs])
apart = torch.minimum(own_slate.abs(), own_rank.abs()) * (own_slate * own_rank < 0) * full
row = int(apart.argmax())
alone = (torch.arange(B) == row).unsqueeze(1)  # (B, 1): true for this rollout only
change = {method: step(a * alone) for method, a in advantages.items()}
Markdown(f"Rollout {row}: its slate earned {own_slate[row]:+.2f}, its ranking {own_rank[row]:+.2f}.")

# %% [markdown]
# ## The figure to keep
#
# Every bar is a token of that rollout; up means likelier than before. (Natural logarithms are counted in *nats*; for small
# changes, 0.01 nats are one percent more probability.) One joint advantage asks both phases to go the same
# way. With an advantage each, the two are asked to part company. Tokens that the grammar forced have no choice in them
# and cannot move.

# %%
from notebooks import figures
from fgrpo.study.plots import save

bars = figures.logprob_change(policy, queries[row // rollouts.group], rollouts, row, change, advantages)
Image(save(bars, FIGURES / "04_the_loss.png"), width=950, alt="Change of log-prob of every token after one step")

# %% [markdown]
# ## Did every token go where its own reward points?
#
# "The right way" means: up if the token's own phase did better than the group, down if worse. First for this rollout,
# then for a step on all rollouts at once, where every token is also moved by everybody else's. If the two methods come
# out close there, it is for that reason: what a single token does is then mostly decided by the other rollouts.

# %%
free = (rollouts.logprobs < 0) & rollouts.mask  # tokens that the policy chose
own = advantages["fgrpo"]
together = {method: step(a) for method, a in advantages.items()}
rows = ["| step on | credit | slate tokens, the right way | rank tokens, the right way |", "|---" * 4 + "|"]
for name, moved, where in (("this rollout", change, free & alone), ("all rollouts", together, free & (own != 0))):
    for method, values in moved.items():
        shares = []
        for p in (PHASE_SLATE, PHASE_RANK):
            here = where & (rollouts.phase == p)
            shares.append(f"{int((values * own > 0)[here].sum())} of {int(here.sum())}")
        rows.append(f"| {name} | {method} | {shares[0]} | {shares[1]} |")
Markdown("\n".join(rows))

# %% [markdown]
# ## What leaks
#
# Give an advantage to the tokens of *one phase only* and nothing to the other. On paper the other phase is left in peace.
# In the weights it is not: both phases speak about the same films through the same weights. The table shows the mean
# size of the change, in thousandths of a nat.

# %%
rows = ["| advantage on | slate tokens move by | rank tokens move by | leak |", "|---" * 4 + "|"]
for name, p, other in (("slate", PHASE_SLATE, PHASE_RANK), ("rank", PHASE_RANK, PHASE_SLATE)):
    moved = step(own * alone * (rollouts.phase == p)).abs()
    size = {q: float(moved[free & alone & (rollouts.phase == q)].mean()) for q in (PHASE_SLATE, PHASE_RANK)}
    rows.append(
        f"| {name} alone | {1000 * size[PHASE_SLATE]:.1f} | {1000 * size[PHASE_RANK]:.1f} | {size[other] / size[p]:.0%} |"
    )
Markdown("\n".join(rows))

# %% [markdown]
# ## So, does it?
#
# - **The loss** reaches exactly the tokens meant: the derivative for a token is its own advantage, scaled. That is what
#   factorised credit promises, and the kit's tests hold it to it.
# - **The step** moves shared weights, so every token moves a little with every other. Factorised credit chooses what is
#   *asked* of each phase; it cannot build a wall between them.
# - One rollout's step is one voice. Over many rollouts and steps, what the voices have in common is what is learned.
#
# The paper claims *separability*: for small steps, one phase's update does not move the other's expected reward gradient.
# You have just seen why such a claim has to be measured and cannot be taken for granted.
