# ---
# jupyter:
#   fgrpo: {budget: 90}
# ---

# %% [markdown]
# # 6. Diagnosis (lab)
#
# **When does each credit method mislead?**
#
# [Training](05_training.ipynb) compared finished lists. Here we look for causes: where relevant candidates are lost, how
# often a group gives a phase the wrong sign, and what a badly chosen reward does. At the end we use a task that is so small
# that we can list every output, and compute the error of every method *exactly*.

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
from IPython.display import Image, Markdown, display

from fgrpo.study.plots import save
from notebooks import checks

# %% [markdown]
# ## Which phase lost the candidate?
#
# [Notebook 2](02_two_rewards.ipynb) named two ways to lose a relevant candidate. To count them, each relevant
# candidate gets exactly one **fate**:
#
# - `slate_miss`: it is not in the slate;
# - `rank_drop`: it is in the slate, but not in the ranked list, or it is ranked below an irrelevant candidate;
# - `right`: it is in the ranked list, and no irrelevant candidate is ranked above it.
#
# Write the function for one candidate. Candidates ranked *below* it do not matter.


# %% exercise="my_fate" difficulty=2 minutes=8
def my_fate(candidate: int, slate: list[int], ranked: list[int], relevant: set[int]) -> str:
    """Fate of one relevant candidate: "right", "slate_miss" or "rank_drop". All numbers are pool indices."""
    # solution
    if candidate not in slate:
        return "slate_miss"
    if candidate not in ranked:
        return "rank_drop"
    above = ranked[: ranked.index(candidate)]
    return "right" if all(other in relevant for other in above) else "rank_drop"


# %% [markdown] hints="my_fate"
# If the candidate is not in the slate, can the ranked list change its fate? And which part of the ranked list decides
# whether a candidate was dropped: that above it, or that below it?
#
# Ask in this order: not `in slate`, so a miss; not `in ranked`, so a drop; then `above = ranked[:
# ranked.index(candidate)]`, and it is right if everything in `above` is in `relevant`.

# %%
print(checks.fate(my_fate))


# %% [markdown]
# ## Misses and drops of a real policy
#
# `fates` computes the same for many outputs at once. We decode the test queries with the warm start, once as usual and once
# with full lists (`sft_full` of the last notebook). Every query is in one of four quadrants: nothing was lost, the slate
# missed something, the ranking dropped something, or both.

# %%
from fgrpo.config import Config
from fgrpo.evaluate import FATES, fates
from fgrpo.policy import Sampling
from fgrpo.rewards import pad, pool_gains
from fgrpo.rollout import rollout
from fgrpo.runs.policies import load_policy
from fgrpo.runs.warm_start import SHIPPED
from fgrpo.tasks.lab import lab_task

config = Config(seed=SEED)
policy = load_policy(SHIPPED)
test = lab_task().test
found, written = {}, {}
for name, grammar in (("warm start", config.grammar), ("full lists", replace(config.grammar, full=True))):
    written[name] = outputs = rollout(policy, test, Sampling(grammar)).outputs
    slates, ranks = (
        pad([o.slate for o in outputs], grammar.slate_size),
        pad([o.rank for o in outputs], grammar.rank_size),
    )
    failed = torch.tensor([bool(o.error) for o in outputs])
    found[name] = fates(slates, ranks, failed, pool_gains(test))  # (Q, N): index into FATES, -1 if irrelevant

# %%
from notebooks.recorded import miss_and_drop

fate, whose = checks.fate.use(my_fate)  # yours, if it is right
share = {}
for name, outputs in written.items():
    own = [
        fate(c, list(o.slate), list(o.rank), e.relevant) for e, o in zip(test, outputs, strict=True) for c in e.relevant
    ]
    share[name] = [own.count(f) / len(own) for f in FATES[:3]]
    assert own.count("slate_miss") == int((found[name] == FATES.index("slate_miss")).sum())
rows = [f"| {name} | " + " | ".join(f"{x:.0%}" for x in s) + " |" for name, s in share.items()]
table = "| relevant candidates of | " + " | ".join(FATES[:3]) + " |\n" + "|---" * 4 + "|\n" + "\n".join(rows)
display(Markdown(f"{table}\n\nCounted by {whose}."))
quadrants = miss_and_drop(found)
Image(save(quadrants, FIGURES / "06_quadrants.png"), width=850, alt="Queries by slate misses and rank drops")

# %%
miss, right = (100 * (share["full lists"][i] - share["warm start"][i]) for i in (FATES.index("slate_miss"), 0))
Markdown(
    f"Full lists change the share of slate misses by {miss:+.0f} percentage points and the share of `right` by "
    f"{right:+.0f}. What is left went into rank drops."
)

# %% [markdown]
# Full lists change no weight, so this ranking is no better than before. A candidate that the slate no longer misses may
# still be ranked too low. A fate says where a candidate was lost, not what would have saved it.

# %% [markdown]
# ## The same for trained policies
#
# From the recorded runs of the [last notebook](05_training.ipynb) (`lab.csv`): shares of the relevant candidates, mean over
# seeds.

# %%
from fgrpo.study.plots import error_types, name_of
from notebooks.recorded import pick, read_table

_, lab = read_table("lab")
rows = [r for r in lab if r["seeds"] or r["method"] in ("sft", "sft_full", "sft_more")]
Image(save(error_types(rows), FIGURES / "06_errors.png"), width=800, alt="Fate of the relevant candidates, by method")

# %% [markdown]
# Does a credit method move losses from one phase to the other? Differences to grpo, with 95 % intervals of single rows.
# These metrics are not part of the family of [notebook 5](05_training.ipynb), so the table is descriptive: of twenty such
# intervals, about one excludes 0 by chance alone (those that do are bold).

# %%
METRICS = ("slate_miss", "rank_drop", "slate_length", "ndcg@5")
lines = [f"| method | {' | '.join(METRICS)} |", "|---" * (1 + len(METRICS)) + "|"]
for method in [r["method"] for r in pick(lab, metric="ndcg@5") if r["seeds"] and r["method"] != r["baseline"]]:
    cells = []
    for metric in METRICS:
        (r,) = pick(lab, method=method, metric=metric)
        bold = "**" * (r["diff_low"] > 0 or r["diff_high"] < 0)
        cells.append(f"{bold}{r['diff']:+.3f}{bold} [{r['diff_low']:+.3f}, {r['diff_high']:+.3f}]")
    lines.append(f"| {name_of(method)} | {' | '.join(cells)} |")
Markdown("\n".join(lines))

# %% [markdown]
# ## Joint credit: how often is the sign wrong?
#
# Joint credit gives every token the advantage of the *sum*, factorised credit that of the phase's own reward. Which one has
# the right sign? The judge is the **true advantage** of [notebook 3](03_advantages.ipynb): of a ranking, its reward minus
# the mean reward of all rankings that the policy could write after the same slate; of a slate, its worth (slate reward plus
# `lam` times that mean) minus the mean worth of the policy's slates. In pools of 5 candidates every output can be listed, so
# the true advantages are exact. `exact_signs` draws many groups of eight and counts the phases that get the opposite sign.
# `reward_to_go`, which you will write below, gives slate tokens both rewards and rank tokens the rank reward only.
#
# No method is always right: eight rollouts are a small sample, and rankings are compared across different slates.
#
# The line below the table is about the weights: the **cosine** between the gradients of the two phases. 1 means that both
# phases change the weights in the same direction, 0 that the directions are independent, and -1 that they are opposite.

# %%
from fgrpo.credit import with_credit
from fgrpo.study.analysis import interference
from fgrpo.study.signs import exact_signs, shares

generator = torch.Generator().manual_seed(SEED)
queries = [test[i] for i in torch.randperm(len(test), generator=generator)[:64].tolist()]
tried = {
    (m, lam): with_credit(replace(config.rl, lam=lam), m)
    for lam in (0.25, 1.0, 4.0) for m in ("grpo", "reward_to_go", "fgrpo")
}  # fmt: skip
rows = ["| lam | method | slates, wrong sign | slates, 0 | rankings, wrong sign | rankings, 0 |", "|---" * 6 + "|"]
for (method, lam), counts in exact_signs(policy, queries[:16], tried, config).items():  # with the same rollouts
    both = [shares(counts[phase]) for phase in ("slate", "rank")]
    rows.append(f"| {lam:g} | {method} | " + " | ".join(f"{s['wrong']:.0%} | {s['silent']:.0%}" for s in both) + " |")
cosine = interference(policy, queries, config)["cosine"]
Markdown("\n".join(rows) + f"\n\nCosine between the phases' gradients under fgrpo, on full pools: {cosine:+.2f}.")

# %% [markdown]
# The larger `lam`, the more often joint credit is wrong about slates, and the less often about rankings. The rank tokens of
# `reward_to_go` and fgrpo get the same credit. Its mistakes have another cause: the luck of the slate is part of a ranking's
# reward. Slate tokens have the wrong sign less often when they get their own reward only (fgrpo) than when the reward of
# one ranking is added. But this advantage is 0 more often, and it is wrong more often the larger `lam` is.
#
# ## The F1 trap
#
# Factorised credit can mislead in its own way. A phase learns from its own reward *alone*, so that reward has to be right.
# A longer slate never lowers recall. To get slates with fewer irrelevant items, one could use **F1** instead, the harmonic
# mean of recall and **precision** (the share of the slate that is relevant):
#
# ```text
# F1 = 2 * hits / (length of the slate + relevant candidates in the pool)
# ```
#
# Now every further candidate has a cost, and after the likely ones it is better to stop. But the slate is not the final
# result. A good ranking can put a doubtful candidate last, where it costs nothing, or first, if the rank phase judges it
# better than the slate phase did. Under joint credit the slate tokens get this signal through the rank reward, if the
# ranking makes use of the longer slate. Under F-GRPO they never get it. How strong is each of these effects? We compute them
# exactly.

# %% [markdown]
# ## The oracle: listing every output
#
# With a pool of 5 candidates and slates of at most 3 candidates there are so few possible outputs that we can **list all
# of them**, with their exact probabilities and rewards. Then nothing has to be sampled. The expected reward is a sum,
# E[R] = sum of probability x reward, and its gradient, the **true gradient**, is a sum too. `enumerate_outputs` makes such
# an *oracle* from the policy and one query.
#
# First question: how does each reward change with the length of the slate? (One relevant candidate; mean over a few
# queries.)

# %%
from fgrpo.config import GrammarConfig
from fgrpo.prompt import PHASE_SLATE
from fgrpo.rewards import f1, output_lists
from fgrpo.study.oracle import enumerate_outputs, small_pool

small = replace(config, grammar=GrammarConfig(slate_size=3, rank_size=1))
examples = [small_pool(e, size=5, relevant=1) for e in queries[:8]]
oracles = [enumerate_outputs(policy, e, small) for e in examples]
pays, lengths = [], []
for oracle, e in zip(oracles, examples, strict=True):
    slates, _ = output_lists(oracle.rollouts)  # (1, B, n)
    recall, rank = oracle.rewards.slate[0].double(), oracle.rewards.rank[0].double()
    pays.append({"recall": recall, "F1": f1(slates, pool_gains([e]).unsqueeze(1))[0].double(), "rank": rank})
    lengths.append((slates[0] >= 0).sum(1))
rows = ["| slate length | probability | recall | F1 | rank reward |", "|---" * 5 + "|"]
for n in (1, 2, 3):
    some = [o.probability * (x == n) for o, x in zip(oracles, lengths, strict=True)]
    mean = [sum(float(p @ pay[k] / p.sum()) for p, pay in zip(some, pays, strict=True)) / 8 for k in pays[0]]
    rows.append(f"| {n} | {sum(float(p.sum()) for p in some) / 8:.2f} | " + " | ".join(f"{x:.3f}" for x in mean) + " |")
Markdown(f"{len(oracles[0].probability)} outputs for each query.\n\n" + "\n".join(rows))

# %% [markdown]
# With one relevant candidate, a *perfect* ranking would have reward 1 whenever the slate holds it, so its rank reward would
# be the recall column. The last column is the reward of this policy's rankings of the same slates.
#
# Second question: a small step of the *slate tokens* along the expected update of each method changes the expected slate
# length. By how much? To first order, the exact answer is the inner product of the update with the gradient of E[length].
# It is given in percent of the change under recall with fgrpo.

# %%
ADDED = {"fgrpo": None, "grpo": "rank", "grpo, perfect ranking": "recall"}  # what is added to the slate reward
pull = {(reward, method): 0.0 for reward in ("recall", "F1") for method in ADDED}
for reward, method in pull:
    for oracle, pay, n in zip(oracles, pays, lengths, strict=True):
        paid = pay[reward] + (pay[ADDED[method]] if ADDED[method] else 0)
        step, longer = (oracle.gradient(x) * (oracle.phase == PHASE_SLATE) for x in (paid, n.double()))
        pull[reward, method] += float(oracle.dot(step, longer))
base = pull["recall", "fgrpo"]
rows = [f"| slate reward | {' | '.join(ADDED)} |", "|---" * 4 + "|"]
rows += [f"| {r} | " + " | ".join(f"{pull[r, m] / base:+.0%}" for m in ADDED) + " |" for r in ("recall", "F1")]
left, this, best = (pull["F1", m] / base for m in ADDED)
Markdown(
    "\n".join(rows)
    + f"\n\nWith F1, the push towards longer slates is {left:+.0%} of that with recall (negative: towards shorter ones). "
    f"The rank reward of *this* policy adds {this - left:+.0%}, that of a perfect ranking {best - left:+.0%}."
)

# %% [markdown]
# So the trap has two parts: how much of the push towards longer slates is left under F1, and whether the slate tokens also
# get the rank reward. Under joint credit they do, and it helps as far as the ranking makes use of longer slates; where a
# longer slate makes the ranking worse, it makes slates shorter still. Under factorised credit they do not get it, however
# good the ranking becomes.

# %% [markdown]
# ## Bias and variance
#
# From one group, a training step computes an **estimate** of the true gradient of E[slate + lam * rank]. An estimate can be
# wrong in two different ways:
#
# - **bias**: the mean of the estimate over all possible groups does not have the direction of the true gradient. We
#   measure the angle between the two, in degrees. More rollouts do not reduce it.
# - **variance**: single estimates differ from their mean. More rollouts reduce the variance, at a cost. The
#   **signal-to-noise** ratio is the length of the mean estimate along the true gradient, divided by the standard deviation
#   of the estimate. It is computed for as many groups as 1,000 sampled tokens give.
#
# With a pool of 4 and slates of at most 2, we can also list all *groups*, so both numbers are exact. Three methods are new:
# `gdpo` divides each reward by its standard deviation in the group before it adds them; `nested` samples several rankings
# of the *same* slate and compares those with each other; `item` gives every item credit for its own contribution.

# %%
from fgrpo.study.analysis import mean_of, oracle_table

tiny = replace(config, grammar=GrammarConfig(slate_size=2, rank_size=2))
METHODS = {m: with_credit(tiny.rl, m) for m in ("grpo", "gdpo", "fgrpo", "reward_to_go", "nested", "item")}
oracles = [enumerate_outputs(policy, small_pool(e, 4), tiny) for e in queries[:6] if len(e.relevant) > 1]
pools = [oracle_table([oracle], METHODS, [3, 4], exact=True) for oracle in oracles]  # nested: 2 x 2 rankings
names = ("angle_slate", "angle_rank", "angle", "variance", "signal_1k")
rows = ["| method | G | slate tokens | rank tokens | all | variance | signal-to-noise |", "|---" * 7 + "|"]
for own in zip(*pools, strict=True):
    first, mean = own[0], mean_of([{n: r[n] for n in names} for r in own])
    angles = " | ".join(f"{mean[n]:.1f}°" for n in names[:3])
    rows.append(
        f"| {name_of(first['method'])} | {first['group']} | {angles} | {mean['variance']:.0f} | {mean['signal_1k']:.2f} |"
    )
Markdown(
    f"{len(oracles[0].probability)} outputs, means over {len(oracles)} queries. grpo has no bias: what it shows above 0° is "
    "rounding, where a gradient is tiny.\n\n" + "\n".join(rows)
)

# %% [markdown]
# ## The figure to keep
#
# Lower means less bias, further right means more signal for the same number of tokens. Thin lines span from the lowest to
# the highest query. (3 rollouts per group; `nested` has 2 slates with 2 rankings each.) Which method pays for less bias
# with less signal, and which for more signal with more bias?

# %%
from notebooks.recorded import bias_and_signal, bias_over_lambda

scatter = bias_and_signal(pools)
Image(save(scatter, FIGURES / "06_diagnosis.png"), width=750, alt="Bias against signal-to-noise, by credit method")

# %% [markdown]
# ## Without bias: reward to go
#
# Why is the slate phase of F-GRPO biased? The slate tokens come *before* the rank reward: they decide which rank reward is
# still possible, but they do not get it. The rank tokens come after the slate and cannot change the slate reward; for them
# it is only noise. So we give every token all rewards that come **after** it, its *reward to go*.
#
# ```text
# slate tokens of rollout (q, g):        advantage of slate[q, g] + lam * rank[q, g]
# rank tokens of rollout (q, g):   lam * advantage of rank[q, g]
# ```


# %% exercise="my_reward_to_go" difficulty=2 minutes=8
def my_reward_to_go(
    slate: torch.Tensor, rank: torch.Tensor, lam: float, in_slate: torch.Tensor, in_rank: torch.Tensor
) -> torch.Tensor:
    """One advantage per token. slate, rank (Q, G); in_slate, in_rank (B, T) bool, row q * G + g -> (B, T)."""
    # solution
    joint, own = slate + lam * rank, lam * rank
    a_joint, a_own = ((x - x.mean(dim=1, keepdim=True)).reshape(-1, 1) for x in (joint, own))
    return a_joint * in_slate + a_own * in_rank


# %% [markdown] hints="my_reward_to_go"
# Which of the two rewards can a slate token still change? And which can a rank token still change, when the slate has
# been written?
#
# Two numbers per rollout: `slate + lam * rank` for its slate tokens and `lam * rank` for its rank tokens. Subtract
# from each its own group mean (`mean(dim=1, keepdim=True)`), make it a column with `reshape(-1, 1)`, multiply it by
# its mask, and add the two.

# %%
print(checks.reward_to_go(my_reward_to_go))


# %% [markdown]
# ## Check it with the oracle
#
# A credit method of the kit is one function with a name. When yours is right, the table shows it as `yours`. `lam` is 4
# here, so that a bias is easy to see. (Look at the last angle too: if the estimate of a phase has the right direction but
# is too short, each phase alone looks right, and the two together do not.)

# %%
from fgrpo.credit import CREDITS
from fgrpo.prompt import PHASE_RANK

tried = ["grpo", "fgrpo", "reward_to_go"]
if checks.reward_to_go.solved(my_reward_to_go):
    CREDITS["yours"] = lambda rewards, rollouts, rl: my_reward_to_go(
        rewards.slate, rewards.rank, rl.lam, rollouts.phase == PHASE_SLATE, rollouts.phase == PHASE_RANK
    )
    tried.append("yours")
rows = ["| method | slate tokens | rank tokens | all | bias |", "|---" * 5 + "|"]
weighted = replace(tiny.rl, lam=4.0)
for row in oracle_table(oracles, {m: with_credit(weighted, m) for m in tried}, [2], exact=True):
    angles = " | ".join(f"{row[name]:.1f}°" for name in ("angle_slate", "angle_rank", "angle"))
    word = "biased" if row["angle"] > 0.5 else "unbiased"  # smaller angles are rounding errors
    rows.append(f"| {row['method']} | {angles} | {word} |")
Markdown("\n".join(rows))

# %% [markdown]
# ## Bias depends on lambda
#
# The larger the weight of the rank reward, the larger the error of slate tokens that do not get it. The mean estimate of
# each of these methods is a straight line in `lam`, and so is the true gradient. So we list all groups twice, for `lam` 0
# and 1, and know every other value exactly. The second cell has a slider, which needs a running kernel.

# %%
PLAIN = [m for m in METHODS if m != "nested"]  # nested needs 4 rollouts


def mean_and_truth(oracle, method, lam):
    """Mean estimate over all groups of two, and the true gradient: (E,) each."""
    rl = replace(METHODS[method], lam=lam, group=2)
    groups, probability = oracle.all_groups(rl)
    return probability @ oracle.estimates(groups, rl), oracle.gradient(
        (oracle.rewards.slate + lam * oracle.rewards.rank)[0]
    )


ends = {m: [[mean_and_truth(o, m, lam) for lam in (0.0, 1.0)] for o in oracles] for m in PLAIN}


def bias(method, lam):
    """Angle between mean estimate and true gradient in degrees, a mean over the queries."""
    lines = zip(oracles, ends[method], strict=True)
    return sum(o.angle(*(x + lam * (y - x) for x, y in zip(*pair, strict=True))) for o, pair in lines) / len(oracles)


VALUES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
angles = {m: [bias(m, lam) for lam in VALUES] for m in PLAIN}
line = bias_over_lambda(angles, VALUES)
Image(save(line, FIGURES / "06_lambda.png"), width=750, alt="Bias of each method against lambda")

# %%
from notebooks.live import live


def at_lambda(lam):
    """The figure with a line at this lambda; the title gives the bias of each method there."""
    figure = bias_over_lambda(angles, VALUES)
    figure.axes[0].axvline(lam, color="0.4")
    here = ", ".join(f"{name_of(m)} {bias(m, lam):.1f}°" for m in PLAIN)
    figure.axes[0].set_title(f"lambda = {lam:g}: {here}", fontsize=9, loc="left")
    return save(figure, FIGURES / "06_slider.png")


live(at_lambda, lam=(0.0, 4.0, 0.25, 1.0))

# %% [markdown]
# ## Answer: when does each credit method mislead?
#
# - **Joint credit** (grpo) is right on average but noisy: in a single group it praises and blames each phase for what the
#   other did. The table of wrong signs says how often.
# - **Factorised credit** (fgrpo) avoids this noise, not every wrong sign, and its slate tokens do not learn what helps the
#   ranking. The bias grows with `lam`, and with every fault of the slate reward.
# - **Reward to go** is unbiased like joint credit. It removes only the noise that causality allows to remove: the slate
#   reward on the rank tokens.
# - With few rollouts, a method with a small bias and little noise can still be the better choice. That is why the figure
#   has two axes.

# %%
by_name = {own[0]["method"]: own for own in zip(*pools, strict=True)}
lines = []
for method in [m for m in METHODS if m != "grpo"]:
    pairs = list(zip(by_name[method], by_name["grpo"], strict=True))
    more = sum(a["signal_1k"] > b["signal_1k"] for a, b in pairs)
    biased = sum(a["angle"] > 0.5 for a, _ in pairs)
    lines.append(
        f"- {name_of(method)}: more signal per 1,000 tokens than grpo on {more} of {len(pairs)} queries, biased on {biased}"
    )
span = f"{angles['fgrpo'][0]:.1f}° at lam = {VALUES[0]:g} to {angles['fgrpo'][-1]:.1f}° at lam = {VALUES[-1]:g}"
Markdown("On the queries of the oracle:\n\n" + "\n".join(lines) + f"\n- The bias of fgrpo goes from {span}.")

# %% [markdown]
# All of this was computed on pools of 4 with the probabilities of the warm start. On the real task, and for other policies,
# the size of these effects differs. Which method is biased and which is not does not change.
#
# **Next:** [ablations](07_ablations.ipynb): how to judge the value of a setting.
