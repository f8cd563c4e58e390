# ---
# jupyter:
#   fgrpo: {budget: 20}
# ---

# %% [markdown]
# # 1. One rollout
#
# **Which token belongs to which phase?**
#
# A language model reads what somebody liked and a pool of films. In one go it writes a selection and then an order of
# that selection. Before anyone can be praised or blamed for the result we have to know which word belongs to which
# half. This notebook looks at a single output, token by token.
#
# You need Python and the softmax function; nothing about reinforcement learning.

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

# %% [markdown]
# ## The task
#
# One **query** is one viewer: a *history* of films already liked, and a **pool** of *candidates*, numbered from 0. Some
# candidates are **relevant** (the viewer would like them); the model does not get to see which. The films are invented,
# the adjective of a title tells the tone and the noun the genre, so that you can play along.

# %%
import torch
from IPython.display import Image, Markdown

from fgrpo.tasks.jsonl import read_jsonl
from fgrpo.tasks import DATA

generator = torch.Generator().manual_seed(SEED)
test = read_jsonl(DATA / "lab-rec" / "test.jsonl")
example = test[int(torch.randint(len(test), (), generator=generator))]

pool = [f"**★ {i} {c}**" if i in example.relevant else f"{i} {c}" for i, c in enumerate(example.candidates)]
Markdown(
    f"*Liked so far:* {', '.join(example.history)}\n\n"
    f"*Pool of {len(pool)}, the {len(example.relevant)} relevant ones starred:* {', '.join(pool)}"
)

# %% [markdown]
# ## The policy
#
# A **policy** is the model seen as something that acts: given what has been written so far, it holds a probability for
# every possible next **token** (the smallest piece of text that the model reads or writes). It is an ordinary language
# model: scores, then a softmax.
#
# Ours is tiny, and to make it learn in seconds every film is one token of its vocabulary. The prompt is what it reads.
# Inside the model a film is just a number, so it has to learn from examples which films go together. It has seen some
# already, in a short training on good outputs (the *warm start*); this course is about what comes after.

# %%
from fgrpo.runs.policies import policy_folder
from fgrpo.runs.policies import load_policy
from fgrpo.runs.warm_start import SHIPPED
from fgrpo.policy import Policy

policy = load_policy(SHIPPED)
weights = sum(p.numel() for p in policy.model.parameters())
Markdown(
    f"The policy has {weights:,} weights and {len(policy.token_text)} tokens. It reads this prompt:\n\n"
    f"```text\n{policy.labels.prompt(example)}\n```"
)

# %% [markdown]
# ## Writing: the rollout
#
# The output has a fixed form:
#
# ```text
# <SLATE> at most slate_size films of the pool </SLATE> <RANK> at most rank_size films of that slate </RANK> <eos>
# ```
#
# The **slate** is the selection; its order means nothing. The **ranked list** is an order of some of the slate, best
# first.
#
# A **rollout** is one output drawn at random: look at the probabilities, draw a token, append it, repeat until the **end
# token** `<eos>`. A **grammar** helps: tokens that would break the form get probability 0 and the rest are scaled up to
# a sum of 1. `rollout` draws G of them for the same query, a **group**; here we ask for one.

# %%
from fgrpo.config import Config
from fgrpo.rollout import rollout
from fgrpo.trainer import sampling_of

config = Config()
rollouts = rollout(policy, [example], sampling_of(config), group=1, generator=generator)
output = rollouts.outputs[0]
Markdown(
    f"At most {config.grammar.slate_size} films in the slate and {config.grammar.rank_size} in the ranked list. "
    f"This rollout chose {len(output.slate)} and ranked {len(output.rank)}:\n\n"
    f"```text\n{policy.text(rollouts.completions[0].tolist())}\n```\n\n"
    f"- slate, as places in the pool: {output.slate}\n- ranked list, best first: {output.rank}"
)

# %% [markdown]
# ## Two phases
#
# The output is written in two **phases**:
#
# - the *slate phase* reaches through `</SLATE>`: closing the slate is a choice too, the choice to stop;
# - the *rank phase* is everything after it, through the end token.
#
# `phases` finds them from nothing but the token numbers. It gives `PHASE_SLATE`, `PHASE_RANK`, or `PHASE_PAD` where a
# shorter output was filled up to the length of the longest. Shapes are written `(B, T)`: B outputs of T tokens.

# %%
from fgrpo.prompt import PHASE_RANK, PHASE_SLATE, phases

phase = phases(rollouts.completions, rollouts.mask, policy.tags[1])  # (B, T); policy.tags[1] is </SLATE>
assert phase.equal(rollouts.phase)  # a rollout carries its phases with it
counts = {name: int((phase == p).sum()) for name, p in (("slate", PHASE_SLATE), ("rank", PHASE_RANK))}
Markdown(f"B, T = {tuple(phase.shape)}. Tokens per phase: {counts['slate']} slate, {counts['rank']} rank.")

# %% [markdown]
# ## The figure to keep
#
# Each bar is one token, in the order written. Its colour and hatching tell the phase, its height the probability that
# the token had at the moment it was drawn. Hollow bars were **forced**: the grammar left only one choice, so they had
# probability 1 and the policy decided nothing.

# %%
from notebooks import figures
from fgrpo.study.plots import save

strip = figures.token_strip(policy, example, rollouts)
Image(save(strip, FIGURES / "01_one_rollout.png"), width=900, alt="Probability of every token, by phase")

# %% [markdown]
# ## One product, two factors
#
# The probability of a whole output is the product of the probabilities of its tokens. We add logarithms instead, since
# products of many small numbers vanish; `logprobs` (B, T) holds them. Because every token belongs to one phase, the sum
# falls into two parts:
#
# ```text
# log p(slate, rank) = log p(slate) + log p(rank, given the slate)
#                    = logprobs[phase == PHASE_SLATE].sum() + logprobs[phase == PHASE_RANK].sum()
# ```
#
# One model, one pass, and still two decisions that can be told apart. That is all that the method of this course needs.

# %%
slate = rollouts.logprobs[phase == PHASE_SLATE].sum()
rank = rollouts.logprobs[phase == PHASE_RANK].sum()
assert torch.isclose(slate + rank, rollouts.logprobs.sum())
forced = int(((rollouts.logprobs == 0) & rollouts.mask).sum())
Markdown(
    f"log p(slate) = {slate:.2f}, log p(rank, given the slate) = {rank:.2f}, together {slate + rank:.2f}: "
    f"this very output comes up about once in {float(f'{1 / (slate + rank).exp():.0e}'):,.0f} rollouts. "
    f"{forced} of the {int(rollouts.mask.sum())} tokens were forced and add 0."
)

# %% [markdown]
# ## Try it
#
# - Change `SEED` at the top and run all cells: another viewer, another output.
# - Could the rank phase repeat a mistake of the slate phase? Look for a relevant film (★) that is not in the slate. The
#   grammar allows the ranked list films of the slate only, so a film that the slate missed is lost for good.
#
# **Next:** [two rewards](02_two_rewards.ipynb), one for each phase.
