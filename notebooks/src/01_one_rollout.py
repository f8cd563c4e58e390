# ---
# jupyter:
#   fgrpo: {budget: 20}
# ---

# %% [markdown]
# # 1. One rollout
#
# **Which token belongs to which phase?**
#
# A language model reads which films somebody liked, and a pool of other films. In one output it writes a selection
# from the pool and then a ranking of that selection. Before we can give credit for the result, we have to know which
# token belongs to which of the two parts. This notebook looks at one output, token by token.
#
# You need to know Python and the softmax function. You need no reinforcement learning.

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
# ## The task
#
# One **query** is one viewer: a *history* of films already liked, and a **pool** of *candidates*, numbered from 0. Some
# candidates are **relevant**: the viewer would like them. The model is not told which. The films are invented, but you can
# guess too: the noun of a title gives the genre, the adjective the tone, and a viewer likes some genres and tones more
# than others. (The viewer below is the first one for whom the policy of this notebook finds some relevant films and misses
# others, so that you can see both.)

# %%
import torch
from IPython.display import Image, Markdown

from fgrpo.config import Config
from fgrpo.rollout import rollout
from fgrpo.runs.policies import load_policy
from fgrpo.runs.warm_start import SHIPPED
from fgrpo.tasks.lab import GENRES, TONES, lab_task
from fgrpo.trainer import sampling_of

config, policy, test = Config(), load_policy(SHIPPED), lab_task().test
first = 64 * SEED % len(test)
viewers = test[first : first + 64]
outputs = rollout(policy, viewers, sampling_of(config), group=1, seed=SEED).outputs


def mixed(viewer, output):
    """Whether four films or more were chosen, the first one of the ranking is relevant, and a relevant one was missed."""
    return len(output.slate) >= 4 and output.rank[0] in viewer.relevant and not viewer.relevant <= set(output.slate)


example = next((v for v, o in zip(viewers, outputs, strict=True) if mixed(v, o)), viewers[0])

# %%
pool = [f"**★ {i} {c}**" if i in example.relevant else f"{i} {c}" for i, c in enumerate(example.candidates)]
key = [", ".join(f"*{name}*: {' '.join(words)}" for name, words in kind.items()) for kind in (GENRES, TONES)]
Markdown(
    f"**Liked so far:** {', '.join(example.history)}\n\n"
    f"**Pool of {len(pool)}, the {len(example.relevant)} relevant ones starred:** {', '.join(pool)}\n\n"
    f"**Key to the nouns:** {key[0]}\n\n**Key to the adjectives:** {key[1]}"
)

# %% [markdown]
# ## The policy
#
# In reinforcement learning the model is called a **policy**. Given the text so far, it computes a probability for every
# possible next **token** (the smallest piece of text that the model reads or writes). It is an ordinary language model:
# one score per token, then a softmax.
#
# Our policy is tiny. Every film is one token of its vocabulary, so that it can be trained in seconds. The text that the
# policy reads is the prompt. Inside the model a film is only a number, and the key above is unknown to it: the policy has
# to learn from examples which films go together. It has already had a short training on good outputs (the *warm start*):
# lists of the relevant films of other viewers, two to four of them. This course is about the training that follows.

# %%
weights = sum(p.numel() for p in policy.model.parameters())
words = policy.labels.prompt(example)
Markdown(
    f"The policy has {weights:,} weights and {len(policy.tokenizer)} tokens. It reads this prompt, in which "
    f"`{words.split()[1]}` is *{example.history[0]}*:\n\n```text\n{words}\n```"
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
# The **slate** is the selection. Its order has no meaning. The **ranked list** holds films of the slate, best first. It
# may leave some of them out.
#
# A **rollout** is one output, sampled at random: compute the probabilities, draw a token, append it, and repeat until the
# **end token** `<eos>` is drawn. A **grammar** enforces the form: tokens that would break it get probability 0, and the
# other probabilities are scaled up to sum to 1. `rollout` samples G outputs for the same query, which are called a
# **group**. Here we ask for one.

# %%
rollouts = rollout(policy, [example], sampling_of(config), group=1, seed=SEED)
output = rollouts.outputs[0]
written = " ".join(policy.tokenizer.convert_ids_to_tokens(rollouts.completions[0].tolist()))
for i, label in enumerate(policy.labels.candidates(example)):  # titles instead of the policy's tokens
    written = written.replace(f" {label} ", f" [{'★ ' * (i in example.relevant)}{example.candidates[i]}] ")
missed = [example.candidates[i] for i in sorted(example.relevant - set(output.slate))]
Markdown(
    f"At most {config.grammar.slate_size} films in the slate and {config.grammar.rank_size} in the ranked list. "
    f"This rollout chose {len(output.slate)} and ranked {len(output.rank)}:\n\n```text\n"
    + written.replace(" <RANK>", "\n<RANK>")
    + f"\n```\n\nIn the slate are {len(example.relevant) - len(missed)} of the {len(example.relevant)} relevant films (★); "
    f"missed: {', '.join(missed) or 'none'}. The kit holds an output as indices into the pool: slate {output.slate}, "
    f"ranked list {output.rank}."
)

# %% [markdown]
# ## Two phases
#
# The output is written in two **phases**:
#
# - the *slate phase* ends with `</SLATE>`, which belongs to it: closing the slate is the decision to stop;
# - the *rank phase* is everything after `</SLATE>`, including the end token.
#
# `phases` computes the phase of every token from the token ids alone. The result is `PHASE_SLATE`, `PHASE_RANK`, or
# `PHASE_PAD` where a short output was padded to the length of the longest. Shapes are written as `(B, T)`: B outputs of
# T tokens.

# %%
from fgrpo.prompt import PHASE_RANK, PHASE_SLATE, phases

phase = phases(rollouts.completions, rollouts.mask, policy.tags[1])  # (B, T); policy.tags[1] is </SLATE>
assert phase.equal(rollouts.phase)  # rollouts already hold their phases
counts = {name: int((phase == p).sum()) for name, p in (("slate", PHASE_SLATE), ("rank", PHASE_RANK))}
Markdown(f"B, T = {tuple(phase.shape)}. Tokens per phase: {counts['slate']} slate, {counts['rank']} rank.")

# %% [markdown]
# ## The figure to keep
#
# Each bar is one token, in the order of the output. Colour and hatching show the phase. The height is the probability of
# the token when it was drawn. Hollow bars are **forced** tokens: the grammar allowed only one token, so its probability
# was 1 and the policy decided nothing.

# %%
from fgrpo.study.plots import save
from notebooks import figures

strip = figures.token_strip(policy, example, rollouts)
Image(save(strip, FIGURES / "01_one_rollout.png"), width=900, alt="Probability of every token, by phase")

# %% [markdown]
# ## One product, two factors
#
# The probability of a whole output is the product of the probabilities of its tokens. A product of many small numbers
# soon becomes too small for the computer, so we add logarithms instead; `logprobs` (B, T) holds them. Every token belongs
# to exactly one phase, so the sum has two parts:
#
# ```text
# log p(slate, rank) = log p(slate) + log p(rank, given the slate)
#                    = logprobs[phase == PHASE_SLATE].sum() + logprobs[phase == PHASE_RANK].sum()
# ```
#
# One model writes one output, and yet the two decisions can be separated. The method of this course needs nothing more.

# %%
slate = rollouts.logprobs[phase == PHASE_SLATE].sum()
rank = rollouts.logprobs[phase == PHASE_RANK].sum()
assert torch.isclose(slate + rank, rollouts.logprobs.sum())
forced = int(((rollouts.logprobs == 0) & rollouts.mask).sum())
Markdown(
    f"log p(slate) = {slate:.2f}, log p(rank, given the slate) = {rank:.2f}, sum {slate + rank:.2f}: "
    f"exactly this output is sampled about once in {float(f'{1 / (slate + rank).exp():.0e}'):,.0f} rollouts. "
    f"{forced} of the {int(rollouts.mask.sum())} tokens were forced and contribute 0."
)

# %% [markdown]
# ## Full lists
#
# The policy may write up to ten films, but it has learned from lists of two to four and stops early. The grammar can forbid
# this: with `full`, both lists must be full before they may be closed. Same policy, same prompt, no weight changed:

# %%
from dataclasses import replace

full = replace(config, grammar=replace(config.grammar, full=True))
viewers = test[:128]
lines = ["| lists | films in the slate | share of the relevant films that are in it |", "|---" * 3 + "|"]
for name, choice in (("free", config), ("full", full)):
    slates = [o.slate for o in rollout(policy, viewers, sampling_of(choice), group=1, seed=SEED).outputs]
    found = sum(len(v.relevant & set(slate)) for v, slate in zip(viewers, slates, strict=True))
    share = found / sum(len(v.relevant) for v in viewers)
    lines.append(f"| {name} | {sum(len(slate) for slate in slates) / len(slates):.1f} | {share:.0%} |")
Markdown(f"One rollout for each of {len(viewers)} viewers:\n\n" + "\n".join(lines))

# %% [markdown]
# Now the closing tags are forced, and the length of the lists is no longer a decision of the policy. Keep the table in mind:
# a policy can get a better score merely by writing longer lists. The next notebooks use full lists when they compare
# rollouts, so that lists differ in what they hold and not in their length.

# %% [markdown]
# ## Try it
#
# - Change `SEED` at the top and run all cells: you get another viewer and another output. Guess before you look: which
#   films would you choose, by genre and tone?
# - Can the rank phase correct a mistake of the slate phase? Look for a relevant film (★) that is not in the slate. The
#   grammar allows only films of the slate in the ranked list, so a film that the slate missed cannot be ranked.
#
# **Next:** [two rewards](02_two_rewards.ipynb), one for each phase.
