# ---
# jupyter:
#   fgrpo: {budget: 20}
# ---

# %% [markdown]
# # 3. Advantages (lab)
#
# **Who gets the credit?**
#
# Every rollout has two rewards ([notebook 2](02_two_rewards.ipynb)). From them we now compute one number for every token:
# should it become more likely or less likely, and how strongly? The usual method sometimes rewards a bad ranking and
# punishes a good one. Four outputs written by hand are enough to show it; the model comes later.

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
from dataclasses import replace

import torch
from IPython.display import Image, Markdown

from fgrpo.study.plots import save
from notebooks import checks

# %% [markdown]
# ## Four rollouts, written by hand
#
# One query with two relevant candidates. The four outputs combine a good or a bad slate with a good or a bad ranked
# list. (After a bad slate, a "good" ranked list is as good as that slate allows.)

# %%
from fgrpo.tasks.lab import lab_task

test = lab_task().test
example = next(e for e in test[SEED:] + test if len(e.relevant) == 2)
a, b = sorted(example.relevant)
x, y, z = [i for i in range(len(example.candidates)) if i not in example.relevant][:3]

WRITTEN = {  # name: (slate, ranked list)
    "good slate, good rank": ([a, b, x, y], [a, b, x]),
    "good slate, bad rank": ([a, b, x, y], [x, y, b]),
    "bad slate, good rank": ([a, x, y, z], [a, x, y]),
    "bad slate, bad rank": ([a, x, y, z], [x, y, z]),
}
titles = {i: f"{'★ ' * (i in example.relevant)}{c}" for i, c in enumerate(example.candidates)}
rows = ["| rollout | slate | ranked list, best first |", "|---" * 3 + "|"]
for name, parts in WRITTEN.items():
    rows.append(f"| {name} | {' | '.join(', '.join(titles[i] for i in part) for part in parts)} |")
Markdown(f"Relevant: {titles[a]} and {titles[b]}.\n\n" + "\n".join(rows))

# %% [markdown]
# We turn them into the same data as outputs of the policy: text, then tokens, then a `Rollouts` record with one group. You
# know `phase` (B, T) from notebook 1 and the rewards `slate` and `rank` (Q, G) from notebook 2; here B = G and Q = 1.

# %%
from fgrpo.config import Config
from fgrpo.prompt import Output, completion_text, phases
from fgrpo.rewards import score
from fgrpo.rollout import Rollouts
from fgrpo.runs.policies import load_policy
from fgrpo.runs.warm_start import SHIPPED
from fgrpo.trainer import sampling_of

config = Config()
policy = load_policy(SHIPPED)
outputs = [Output(tuple(slate), tuple(rank)) for slate, rank in WRITTEN.values()]
labels = policy.labels.candidates(example)
texts = [completion_text(o.slate, o.rank, labels) for o in outputs]
batch = policy.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
tokens, mask = batch["input_ids"], batch["attention_mask"].bool()
phase = phases(tokens, mask, policy.tags[1])
rollouts = Rollouts(
    policy.encode([example]), tokens, mask, phase, torch.zeros(tokens.shape), outputs, len(outputs), sampling_of(config)
)
rewards = score(rollouts, [example], config.rl)
rows = ["| rollout | slate reward | rank reward |", "|---" * 3 + "|"]
rows += [f"| {n} | {s:.2f} | {r:.2f} |" for n, s, r in zip(WRITTEN, rewards.slate[0], rewards.rank[0], strict=True)]
Markdown("\n".join(rows))

# %% [markdown]
# ## Better than what?
#
# A reward of 0.5 is good for a hard query and poor for an easy one. What matters is whether a rollout was better than the
# other rollouts *of the same query*. The **advantage** is the reward minus the mean reward of the group:
#
# ```text
# advantage[q, g] = reward[q, g] - mean of reward[q, :]
# ```
#
# It is called *group-relative*, because the value that is subtracted (the **baseline**) comes from the group alone. If the
# advantage is positive, the tokens should become more likely; if it is negative, less likely. In every group the
# advantages sum to 0.
#
# The method that made this usual, **GRPO** (Group Relative Policy Optimization, arXiv 2402.03300), also divides by the
# standard deviation of the group's rewards. Then every group is equally loud: one whose rewards are 0.50 and 0.51 changes
# the policy as much as one with 0 and 1, although it says little. So this course, like a later variant (Dr. GRPO, arXiv
# 2503.20783), only subtracts the mean. In the kit the division is an option (`--scale std`).


# %% exercise="my_advantage" difficulty=1 minutes=5
def my_advantage(reward: torch.Tensor) -> torch.Tensor:
    """Group-relative advantage of every rollout. (Q, G) -> (Q, G)."""
    # solution
    return reward - reward.mean(dim=1, keepdim=True)


# %% [markdown] hints="my_advantage"
# `reward` has the shape (Q, G). Along which of the two dimensions are the rollouts of one query? And which shape must
# the mean have, so that every row loses its *own* mean?
#
# The mean over dim 1, kept as a column of shape (Q, 1): `reward.mean(dim=1, keepdim=True)`. Subtract it from
# `reward`. Nothing is divided.

# %%
print(checks.advantage(my_advantage))


# %% [markdown]
# ## Joint credit
#
# GRPO knows one reward per output, so the usual way is to add both and to give every token of a rollout the same advantage:
#
# ```text
# joint[q, g] = slate[q, g] + lam * rank[q, g]             lam (lambda): the weight of the rank reward
# every token of rollout (q, g):   advantage of joint[q, g]
# ```
#
# If the result is good, the slate and the ranking both get a positive advantage, whichever of them made it good.
#
# ## Factorised credit
#
# **F-GRPO** (factorised GRPO, arXiv 2605.12995) gives each phase the advantage of its own reward:
#
# ```text
# slate tokens of rollout (q, g):        advantage of slate[q, g]
# rank tokens of rollout (q, g):   lam * advantage of rank[q, g]
# padding:                               0
# ```
#
# Write it, starting from the token ids. The slate phase ends with the token `close_slate` (included), the rank phase ends
# with the token `end` (included), and the rest is padding. Row `q * G + g` of `tokens` is rollout g of query q.


# %% exercise="my_credit" difficulty=3 minutes=15
def my_credit(
    slate: torch.Tensor, rank: torch.Tensor, lam: float, tokens: torch.Tensor, close_slate: int, end: int
) -> torch.Tensor:
    """One advantage per token. slate, rank (Q, G) and tokens (B, T), where B = Q * G -> (B, T)."""
    # solution
    a_slate, a_rank = (x - x.mean(dim=1, keepdim=True) for x in (slate, rank))
    closes, ends = tokens == close_slate, tokens == end
    in_slate = closes.cumsum(1) - closes.long() == 0  # nothing closed before this token
    real = ends.cumsum(1) - ends.long() == 0  # nothing ended before this token
    own = torch.where(in_slate, a_slate.reshape(-1, 1), lam * a_rank.reshape(-1, 1))
    return own * real


# %% [markdown] hints="my_credit"
# For every token you need two yes-or-no answers: was `close_slate` already written *before* it? Was `end` already
# written *before* it? How does `cumsum(1)` help to answer them?
#
# `closes = tokens == close_slate`; then `closes.cumsum(1) - closes.long() == 0` is true up to and including
# `close_slate`, and the same with `end` gives the real tokens. Compute the two advantages (Q, G), each from its own
# reward, make each a column with `reshape(-1, 1)`, and choose by `torch.where(in_slate, a_slate, lam * a_rank)`,
# times the real tokens.

# %%
print(checks.factorised(my_credit))


# %% [markdown]
# ## The same four rollouts under both
#
# Your functions compute both: joint credit is `my_advantage` of the sum, factorised credit is `my_credit`. In the kit a
# credit method is a function with a name, `grpo` and `fgrpo`; `assign_credit` calls it and must give the same. All tokens of
# a phase have the same advantage here, so we read that of the first token.

# %%
from fgrpo.credit import assign_credit
from fgrpo.prompt import PHASE_RANK, PHASE_SLATE

(advantage, whose), (credit, also) = checks.advantage.use(my_advantage), checks.factorised.use(my_credit)
first = [(phase == p).int().argmax(dim=1, keepdim=True) for p in (PHASE_SLATE, PHASE_RANK)]


def credit_of(method, rewards, lam):
    """Advantage on the slate tokens and on the rank tokens of each rollout, as two lists."""
    if method == "grpo":
        given = advantage(rewards.slate + lam * rewards.rank).reshape(-1, 1) * mask  # (B, T)
    else:
        given = credit(rewards.slate, rewards.rank, lam, tokens, policy.tags[1], policy.tokenizer.eos_token_id)
    kits = assign_credit(rewards, rollouts, replace(config.rl, credit=method, lam=lam))
    assert torch.allclose(given.float(), kits, atol=1e-5)
    return tuple(given.gather(1, place).squeeze(1).tolist() for place in first)


Markdown(f"Joint credit by {whose}; factorised credit by {also}.")

# %% [markdown]
# ## The figure to keep
#
# Which of the two is right? Neither can be the judge of the other. The **true advantage** compares a phase with everything
# that the policy could have done in its place, not with the few rollouts of one group:
#
# - of a ranking: its rank reward, minus the mean over all rankings that the policy could write *after the same slate*
#   (times `lam`);
# - of a slate: what it is worth, minus what slates are worth on average. A slate is worth its slate reward plus `lam` times
#   the mean rank reward of all rankings after it.
#
# A true advantage depends on the policy. For the four rollouts we take a simple one: it draws these four slates equally
# often, and every order of three of the four candidates with the same probability. We list all these orders.
#
# Left: the advantages of the slate tokens. Right: the advantages of the rank tokens. Bars are what joint credit (`grpo`) and
# factorised credit (`fgrpo`) give, dashed lines the true advantages. A bar that points to the other side is wrong praise or
# wrong blame.

# %%
from fgrpo.study.signs import random_order_advantages
from notebooks import figures


def truth(rewards, lam):
    """True advantages of the slates and of the rankings, as two lists."""
    weighted = replace(config, rl=replace(config.rl, lam=lam))
    return [x.tolist() for x in random_order_advantages(example, outputs, rewards, weighted).values()]


def bars(rewards, lam):
    """The figure for these rewards."""
    credit = {m: credit_of(m, rewards, lam) for m in ("grpo", "fgrpo")}
    return figures.credit_bars(list(WRITTEN), credit, truth(rewards, lam))


Image(save(bars(rewards, 1.0), FIGURES / "03_advantages.png"), width=900, alt="Joint, per-phase and true advantages")

# %%
given = {name: credit_of(method, rewards, 1.0)[1] for name, method in (("joint", "grpo"), ("own", "fgrpo"))}
lines = ["| ranking of | true advantage | joint credit | own credit |", "|---" * 4 + "|"]
for g, (name, true) in enumerate(zip(WRITTEN, truth(rewards, 1.0)[1], strict=True)):
    cells = (f"{x[g]:+.2f}{', wrong sign' * (x[g] * true < 0)}" for x in given.values())
    lines.append(f"| {name} | {true:+.2f} | {' | '.join(cells)} |")
Markdown("\n".join(lines))

# %% [markdown]
# Joint credit gives the rankings of the two mixed rollouts the wrong sign. A bad ranking after a good slate is praised,
# because the slate was good. A good ranking after a bad slate is blamed for the slate. Over many groups these errors average
# out, because good and bad rankings follow good and bad slates equally often. In a single group they are **noise**: they
# hide what the ranking itself did.
#
# Own credit has the right sign here, but not always. It compares a ranking with rankings of *other* slates. After the bad
# slate, a rank reward of 0.4 would be more than most orders get, and yet less than the mean of the group.

# %% [markdown]
# ## Try other values
#
# `lam` sets the weight of the rank reward. Joint credit mixes the two rewards, so `lam` also decides *which* phase gets
# the wrong sign. The table lists every wrong sign for three values of `lam`. The cell after it has sliders for `lam` and for
# the rewards of the rollout "bad slate, good rank"; they need a running kernel. Give it a rank reward of 0.4, with `lam` 1:
# now own credit is wrong as well.

# %%
rows = ["| `lam` | credit | wrong about slates of | wrong about rankings of |", "|---" * 4 + "|"]
for lam in (0.25, 1.0, 4.0):
    for name, method in (("joint", "grpo"), ("own", "fgrpo")):
        sides = zip(credit_of(method, rewards, lam), truth(rewards, lam), strict=True)
        wrong = [
            "; ".join(n for n, x, y in zip(WRITTEN, given, true, strict=True) if x * y < 0) or "none"
            for given, true in sides
        ]
        rows.append(f"| {lam:g} | {name} | {' | '.join(wrong)} |")
Markdown("\n".join(rows))

# %%
from notebooks.live import live

CHANGED = list(WRITTEN).index("bad slate, good rank")


def edited(slate, rank, lam):
    """The figure with other rewards for this rollout."""
    new = replace(rewards, slate=rewards.slate.clone(), rank=rewards.rank.clone())
    new.slate[0, CHANGED], new.rank[0, CHANGED] = slate, rank
    return save(bars(new, lam), FIGURES / "03_edited.png")


start = [round(float(x[0, CHANGED]), 2) for x in (rewards.slate, rewards.rank)]  # as in the figure above
live(edited, slate=(0.0, 1.0, 0.01, start[0]), rank=(0.0, 1.0, 0.01, start[1]), lam=(0.0, 4.0, 0.25, 1.0))

# %% [markdown]
# ## With a real policy
#
# How often do the two differ with a real policy? We sample groups for queries of the test split, with full lists and with
# lists of free length, and compare the signs of the two advantages, phase by phase. If all rollouts of a group have the same
# reward, all their advantages are 0: the policy learns nothing from that group.

# %%
from fgrpo.credit import zero_variance
from fgrpo.rollout import rollout

generator = torch.Generator().manual_seed(SEED)
queries = [test[i] for i in torch.randperm(len(test), generator=generator)[: config.rl.queries].tolist()]
rows = ["| lists | phase | rollouts | signs differ | own 0, joint not | groups with equal rewards |", "|---" * 6 + "|"]
for lists, full in (("full", True), ("free length", False)):
    sampling = sampling_of(replace(config, grammar=replace(config.grammar, full=full)))
    drawn = rollout(policy, queries, sampling, config.rl.group, SEED)
    earned = score(drawn, queries, config.rl)
    joint, own = (assign_credit(earned, drawn, replace(config.rl, credit=m)) for m in ("grpo", "fgrpo"))
    for name, p in (("slate", PHASE_SLATE), ("rank", PHASE_RANK)):
        first = (drawn.phase == p).int().argmax(dim=1, keepdim=True)
        a, b = joint.gather(1, first), own.gather(1, first)
        opposite, silent = int((a * b < 0).sum()), int(((b == 0) & (a != 0)).sum())
        equal = int(zero_variance(getattr(earned, name)).sum())
        rows.append(f"| {lists} | {name} | {len(a)} | {opposite} | {silent} | {equal} of {len(queries)} |")
Markdown("\n".join(rows))

# %% [markdown]
# This table counts differences; it does not say which method is right. For that we need the true advantages of *this*
# policy, and they are exact only if every output can be listed. So we cut the pools of the same queries down to five
# candidates (slates of at most three, rankings of at most two), list all outputs with their probabilities, and draw many
# groups of eight from them. How often is the sign of a phase the opposite of its true advantage, and how often is it 0
# although the truth is not? Two more methods take part:
#
# - `reward_to_go`: slate tokens get the advantage of both rewards, rank tokens that of the rank reward;
# - `nested` samples in two stages, four slates and then two rankings of each, and compares a ranking with the other one of
#   its slate.

# %%
from fgrpo.credit import with_credit
from fgrpo.study.signs import exact_signs, sign_rows

tried = {(m, config.rl.group): with_credit(config.rl, m) for m in ("grpo", "fgrpo", "reward_to_go", "nested")}
by_phase = sign_rows(exact_signs(policy, queries, tried, replace(config, seed=SEED)), config.rl.lam)
wrong = {(r["method"], r["phase"]): r["wrong"] for r in by_phase}
rows = ["| method | phase | wrong sign | 95 % interval | 0 |", "|---" * 5 + "|"]
for r in by_phase:
    interval = f"{100 * r['wrong_low']:.0f} to {100 * r['wrong_high']:.0f} %"
    rows.append(f"| {r['method']} | {r['phase']} | {r['wrong']:.0%} | {interval} | {r['silent']:.0%} |")
words = " and ".join(f"{wrong['grpo', p]:.0%} of {p}s (own credit: {wrong['fgrpo', p]:.0%})" for p in ("slate", "rank"))
words = words.replace("ranks", "rankings")
Markdown("\n".join(rows) + f"\n\nOver {len(queries)} queries joint credit has the wrong sign for {words}.")

# %% [markdown]
# Why is own credit wrong at all? A group of eight is a small sample, and its mean depends on which eight were drawn. A
# ranking is compared with rankings of other slates, so part of its advantage is luck with the slate. `nested` removes that
# luck and is rarely wrong about rankings, but two rankings of one slate often have the same reward, and then it is silent. A
# slate's own advantage leaves out what the ranking could make of the slate. Joint credit and `reward_to_go` include it, but
# from a single ranking per slate, which may have been a lucky one.

# %% [markdown]
# ## Is factorised credit simply better?
#
# It has a price. Under F-GRPO the slate tokens learn from the slate reward only; they get no signal about what helps the
# ranking. And a ranking is compared with rankings of *other* slates, so the quality of the slate still affects the rank
# advantage. The kit has a method for each problem (`reward_to_go` and `nested`). Later notebooks measure when they help.
#
# **Next:** [the loss](04_the_loss.ipynb), which turns advantages into an update of the policy.
