# ---
# jupyter:
#   fgrpo: {budget: 20}
# ---

# %% [markdown]
# # 2. Two rewards (lab)
#
# **Which reward does each phase get?**
#
# The [first notebook](01_one_rollout.ipynb) split an output into a slate and a ranked list. Now each of the two gets a
# score. You will write both scores yourself, and then look at the scores of a whole group of outputs.
#
# *In a lab, you write the cells that end in `raise NotImplementedError`. The next cell checks your function and, if it is
# wrong, names the mistake that it found and shows a case. Two hints and the solution are folded below it. The cells after
# use your functions once they are right, and the kit's own until then, so the notebook runs in any case.*

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

# %% [markdown]
# ## A number for every output
#
# A **reward** is a number that says how good an output was; higher is better. In *reinforcement learning* the model is
# never shown the right output. It writes outputs, gets a reward for each, and changes its probabilities towards outputs
# with a high reward.
#
# One number for the finished list cannot say *why* the list is bad. A relevant film can be lost in two ways:
#
# - a **slate miss**: it is not in the slate;
# - a **rank drop**: it is in the slate, but it was ranked too low or left out of the ranked list.
#
# So there are two rewards: `slate` scores the selection and ignores its order; `rank` scores the ranked list.

# %%
import math

import torch
from IPython.display import Image, Markdown

from notebooks import checks

# %% [markdown]
# ## The slate reward: recall
#
# **Recall** is the share of the relevant candidates that the slate holds:
#
# ```text
# recall = (relevant candidates in the slate) / (relevant candidates in the pool)
# ```
#
# The order of the slate does not matter. Recall is 1 if no relevant candidate was missed, even if the slate also holds
# many others.


# %% exercise="my_recall" difficulty=1 minutes=5
def my_recall(slate: list[int], relevant: set[int]) -> float:
    """Recall of a slate. Both arguments hold indices into the pool; `relevant` is never empty."""
    # solution
    return len(set(slate) & relevant) / len(relevant)


# %% [markdown] hints="my_recall"
# Recall asks how many of the *relevant* candidates were found. Which number is then below the fraction line, that of
# the slate or that of the relevant ones?
#
# Count the candidates that are in `set(slate)` and in `relevant`, and divide by `len(relevant)`.

# %%
print(checks.recall(my_recall))


# %% [markdown]
# ## The rank reward: NDCG
#
# In a ranked list the *rank* of the relevant candidates matters. **DCG** (discounted cumulative gain) gives a relevant
# candidate at rank i (the first rank is 1) a share that gets smaller with i, and uses only the first k ranks:
#
# ```text
# DCG@k  = sum over ranks i = 1 ... k of  gain_i / log2(i + 1)      gain_i: 1 if the candidate at rank i is relevant, else 0
# NDCG@k = DCG@k / (DCG@k of the best order of the whole pool)      N: normalised, between 0 and 1
# ```
#
# The best order starts with all relevant candidates *of the pool*, not of the slate. Otherwise a ranking would look
# better than it is whenever the slate missed something.

# %%
from fgrpo.rewards import discounts

weights = discounts(5, torch.ones(()))
Markdown(
    "| rank i | " + " | ".join(str(i) for i in range(1, 6)) + " |\n|---" + "|---" * 5 + "|\n"
    "| 1 / log2(i + 1) | " + " | ".join(f"{w:.3f}" for w in weights) + " |"
)

# %% [markdown]
# Write NDCG@k for plain lists. Think of pools with fewer than k relevant candidates, and of pools with more than k.


# %% exercise="my_ndcg" difficulty=2 minutes=10
def my_ndcg(ranked: list[int], relevant: set[int], k: int) -> float:
    """NDCG@k of a ranked list, best first. Both hold indices into the pool; `relevant` is never empty."""

    # solution
    def discount(i):
        return 1 / math.log2(i + 1)

    dcg = sum(discount(i) for i, item in enumerate(ranked[:k], start=1) if item in relevant)
    best = sum(discount(i) for i in range(1, min(k, len(relevant)) + 1))
    return dcg / best


# %% [markdown] hints="my_ndcg"
# How would the best possible list begin? How many relevant candidates could it hold at its first `k` ranks, if the
# pool has more than `k` of them, and if it has fewer?
#
# `dcg` is the sum of `1 / math.log2(i + 1)` over `enumerate(ranked[:k], start=1)`, where the item is relevant. `best`
# is the same sum over the ranks 1 to `min(k, len(relevant))`. The result is `dcg / best`.

# %%
print(checks.ndcg(my_ndcg))


# %% [markdown]
# ## A group of rollouts
#
# The G rollouts of a group answer the same query, so their rewards can be compared. `score` computes the rewards of all
# groups at once, with shape `(Q, G)`: Q queries with G rollouts each. We sample groups for some queries of the test split,
# with full lists, and look at the group whose rewards differ most.

# %%
from fgrpo.config import Config, GrammarConfig
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
q = int((rewards.slate.std(dim=1) + rewards.rank.std(dim=1)).argmax())
Markdown(
    f"`rewards.slate` and `rewards.rank` have the shape (Q, G) = {tuple(rewards.slate.shape)}. Query {q} has "
    f"{len(queries[q].relevant)} relevant candidates: "
    + ", ".join(f"★{i} {queries[q].candidates[i]}" for i in sorted(queries[q].relevant))
)

# %% [markdown]
# Now your functions: they compute the last two columns, and have to agree with `rewards`. (Numbers are indices into the
# pool; ★ is relevant.)

# %%
(recall, whose), (ndcg, also) = checks.recall.use(my_recall), checks.ndcg.use(my_ndcg)
rows = ["| rollout | slate | ranked list | slate reward | rank reward |", "|---" * 5 + "|"]
for g, output in enumerate(rollouts.outputs[q * rollouts.group : (q + 1) * rollouts.group]):
    marked = (
        " ".join(f"**★{i}**" if i in queries[q].relevant else str(i) for i in part)
        for part in (output.slate, output.rank)
    )
    slate = recall(list(output.slate), set(queries[q].relevant))
    rank = ndcg(list(output.rank), set(queries[q].relevant), config.grammar.rank_size)
    assert math.isclose(slate, rewards.slate[q, g], abs_tol=1e-5) and math.isclose(
        rank, rewards.rank[q, g], abs_tol=1e-5
    )
    rows.append(f"| {g + 1} | {' | '.join(marked)} | {float(slate):.2f} | {float(rank):.2f} |")
Markdown("\n".join(rows) + f"\n\nSlate rewards by {whose}, rank rewards by {also}.")

# %% [markdown]
# ## The figure to keep
#
# Each row is a rollout. Left: the two rewards. Middle: how much of the slate reward would be lost without the **item** (here
# a film) at that position of the slate. Right: how much each rank contributes to the rank reward (a row sums to it). Dark
# cells without a number: 0.

# %%
from fgrpo.study.plots import save
from notebooks import figures

heat = figures.group_rewards(rewards, rollouts, q)
Image(save(heat, FIGURES / "02_two_rewards.png"), width=950, alt="Rewards of one group: G rollouts by rewards")

# %% [markdown]
# ## What one number would have hidden
#
# Add the two rewards, as a single score of the list would, and compare any two rollouts of a group. How often does the
# sum say that one of them is better, although a phase did *equally well* in both, or even *better in the other one*? In
# each such pair the sum gives credit to tokens that did not earn it. (The last two rows: lists of free length, as in the
# first figure of notebook 1. A slate of two leaves the ranking little to decide, so the two rewards nearly agree.)


# %%
def misled(joint, own):
    """Pairs of a group with equal `own` but different `joint`, and pairs in opposite order. (Q, G) each."""
    joint, own = (x.unsqueeze(2) - x.unsqueeze(1) for x in (joint, own))  # (Q, G, G): every pair, in both orders
    return [int(pairs.sum()) // 2 for pairs in ((own == 0) & (joint != 0), own * joint < 0)]


free = score(rollout(policy, queries, sampling_of(Config()), config.rl.group, SEED), queries, config.rl)
pairs = rewards.slate.numel() * (rollouts.group - 1) // 2
rows = ["| lists | phase | pairs | equal, but the sum differs | opposite order |", "|---" * 5 + "|"]
for lists, found in (("full", rewards), ("free length", free)):
    for name, own in (("slate", found.slate), ("rank", found.rank)):
        equal, opposite = misled(found.slate + found.rank, own)
        rows.append(f"| {lists} | {name} | {pairs} | {equal} | {opposite} |")
Markdown("\n".join(rows))

# %% [markdown]
# ## Good to know
#
# - An output that breaks the form is *ill-formed*. The phase at fault earns 0 and pays the format penalty, in
#   `rewards.slate_format` or `rewards.rank_format`; if it is the slate, nothing can be ranked, so the rank reward is 0 too.
#   With the grammar switched on, as here, this cannot happen.
# - A longer slate never lowers recall. Another slate reward is **F1**, which also counts how pure the slate is: 2 * hits /
#   (length of the slate + relevant candidates in the pool). With it every irrelevant film costs a little. The notebook on
#   [diagnosis](11_diagnosis.ipynb) computes what that means for the length of the slate.
# - The rank reward depends on the slate: a film that was missed cannot be ranked. The slate reward does not depend on
#   the ranked list.
#
# **Next:** [advantages](03_advantages.ipynb), who gets the credit.
