# ---
# jupyter:
#   fgrpo: {budget: 60}
# ---

# %% [markdown]
# # 8. A real language model (lab)
#
# **Does it transfer?**
#
# So far the policy was tiny, and every film was one token of its vocabulary. A real language model does not know our
# candidates in advance: it has to *read* them. We use SmolLM2-135M-Instruct, which is 700 times as large as the policy of
# the lab, in five versions: the base model, and after a short SFT and F-GRPO on two real data sets. All outputs below were
# recorded on one CPU core, so nothing has to be downloaded. The last section trains it.

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
import torch
from IPython.display import Image, Markdown

from fgrpo.study.plots import save
from notebooks import checks, figures

# %% [markdown]
# ## Real passages, real films
#
# The adapters were trained on MuSiQue (questions; two of twenty passages give the answer) and MovieLens (films; one of
# twenty is the next film that the viewer rated). We may not distribute those texts, and a policy should not be tested on
# its training data. So we wrote twelve questions and twelve film queries of our own, on real facts. Each appears **three
# times, with its pool in three orders**. You will see why.

# %%
from fgrpo.tasks import DATA
from fgrpo.tasks.jsonl import read_jsonl

TASKS = ("questions", "films")
examples = {task: read_jsonl(DATA / "transfer" / f"{task}.jsonl") for task in TASKS}


def pool_of(example):
    """Query and pool as text, numbered from 1 as in the prompt, the relevant ones starred."""
    lines = [f"{'★ ' * (i in example.relevant)}[{i + 1}] {text}" for i, text in enumerate(example.candidates)]
    return "\n".join([example.query, *(f"- {film}" for film in example.history), "", *lines])


chosen = int(torch.randint(12, (), generator=torch.Generator().manual_seed(SEED)))
Markdown("\n\n".join(f"```text\n{pool_of(examples[task][3 * chosen])}\n```" for task in TASKS))

# %% [markdown]
# ## Candidates by number
#
# The prompt lists the pool as above, and the model writes numbers. The prompt also contains an example of the form:
# `<SLATE> 7, 12, 3 </SLATE> <RANK> 12, 3 </RANK>`. One **label** can now have several tokens: for SmolLM2, 12 is `1`, `2`,
# and a tag has four tokens. The grammar is the same as before, but it works on tokens: after `1` it allows another digit
# or a comma. Most tokens are forced (hollow bars), so only a few are decisions of the policy.

# %%
from fgrpo.runs.trace import read_trace

POLICIES = {
    "base model": "base",
    "SFT, questions": "musique-sft",
    "F-GRPO, questions": "musique-fgrpo",
    "SFT, films": "movielens-sft",
    "F-GRPO, films": "movielens-fgrpo",
}
traces = {
    (name, task): read_trace(DATA / "transfer" / f"{file}-{task}.jsonl")
    for name, file in POLICIES.items() for task in TASKS
}  # fmt: skip
group = traces["base model", "questions"].groups[0]
strip = figures.traced_strip(group.rollouts[0], group.example)
Image(save(strip, FIGURES / "08_tokens.png"), width=1000, alt="Probability of every token of a real model, by phase")

# %%
tokens = [x for rollout in group.rollouts for x in rollout.logprobs]
Markdown(
    f"In the {len(group.rollouts)} recorded rollouts of this query {sum(x == 0 for x in tokens):,} of {len(tokens):,} "
    f"tokens were forced. Only the others get a gradient from credit."
)

# %% [markdown]
# ## Credit on real rollouts
#
# Credit is computed in the same way for every model: a group of rollouts, two rewards each, one advantage per phase
# ([notebook 3](03_advantages.ipynb)). Here are eight rollouts under joint and under factorised credit:

# %%
from dataclasses import replace

from fgrpo.prompt import PHASE_RANK, PHASE_SLATE
from fgrpo.runs.trace import credit_of


def of_phases(group, config, method):
    """Advantages of the slate tokens and of the rank tokens, one per rollout."""
    _, advantages = credit_of(group, replace(config, rl=replace(config.rl, credit=method)))
    pairs = []
    for row, rollout in zip(advantages.tolist(), group.rollouts, strict=True):
        given = dict(zip(rollout.phases, row[: len(rollout.phases)], strict=True))
        pairs.append((given[PHASE_SLATE], given[PHASE_RANK]))
    return [p[0] for p in pairs], [p[1] for p in pairs]


trained = traces["F-GRPO, questions", "questions"]
group = trained.groups[0]
credit = {method: of_phases(group, trained.config, method) for method in ("grpo", "fgrpo")}
bars = figures.credit_bars([f"rollout, {i + 1}" for i in range(len(group.rollouts))], credit)
Image(save(bars, FIGURES / "08_credit.png"), width=1000, alt="Advantages of eight rollouts of a real model")

# %% [markdown]
# ## Side by side
#
# Greedy answers of all five policies to the two queries above, by number.

# %%
lines = ["| policy | query | slate | ranked list |", "|---" * 4 + "|"]
for (name, task), trace in traces.items():
    group = trace.groups[3 * chosen]
    slate, ranked = (
        ", ".join(f"{'★' * (i in group.example.relevant)}{i + 1}" for i in part)
        for part in (group.greedy.output.slate, group.greedy.output.rank)
    )
    lines.append(f"| {name} | {task} | {slate} | {ranked} |")
Markdown("\n".join(lines))

# %% [markdown]
# Is that good? A slate of ten from a pool of twenty holds some relevant candidates even by chance. To judge a score, we need
# the score of **chance**. Suppose a slate of `n` candidates is drawn at random from a pool with `relevant` relevant ones.
# What is the expected recall?


# %% exercise="my_chance" difficulty=1 minutes=4
def my_chance(n: int, pool: int, relevant: int) -> float:
    """Expected recall of a slate of n different candidates drawn at random from a pool."""
    # solution
    return n / pool


# %% [markdown] hints="my_chance"
# Look at one relevant candidate alone. With which probability is it in a slate of `n` out of `pool`?
#
# That probability is `n / pool`, the same for every relevant candidate. So `relevant * n / pool` of them are expected
# in the slate. Recall divides this number by `relevant`.

# %%
print(checks.chance(my_chance))


# %% [markdown]
# ## Does it transfer?
#
# Every policy on both kinds of query: recall of the slate next to the chance level for slates of *its* length, and NDCG@5
# next to that of random lists of five. The three orders of a query are averaged, and the intervals (95 %) are
# over the twelve queries, so they are wide. A policy that was trained on questions and does well on films too would have
# learned the general task. A policy that does well only on its own kind of query would have learned only that kind.

# %%
from fgrpo.evaluate import measure_outputs
from fgrpo.prompt import Output
from fgrpo.study.significance import paired


def measured(outputs, task, key):
    """A metric per query, (12,): the mean over its three orders."""
    return measure_outputs(outputs, examples[task], trained.config.grammar)[key].reshape(12, 3).mean(1)


def random_outputs(draw):
    """Random outputs, one per pool: a slate of ten candidates, five of them ranked."""
    drawn = torch.rand(36, 20, generator=torch.Generator().manual_seed(1000 * SEED + draw)).argsort(1).tolist()
    return [Output(tuple(row[:10]), tuple(row[:5])) for row in drawn]


# %%
by_luck = {
    task: sum(float(measured(random_outputs(draw), task, "ndcg@5").mean()) for draw in range(20)) / 20 for task in TASKS
}  # fmt: skip
chance, whose = checks.chance.use(my_chance)  # yours, if it is right
lines = ["| policy | query | slate length | recall | by chance | NDCG@5 | by chance |", "|---" * 7 + "|"]
for (name, task), trace in traces.items():
    outputs = [group.greedy.output for group in trace.groups]
    cells = [f"{sum(len(o.slate) for o in outputs) / len(outputs):.1f}"]
    drawn = [
        chance(len(o.slate), len(e.candidates), len(e.relevant)) for o, e in zip(outputs, examples[task], strict=True)
    ]
    for key, by_chance in (("slate_recall", sum(drawn) / len(drawn)), ("ndcg@5", by_luck[task])):
        mean = paired(measured(outputs, task, key).unsqueeze(0))
        low, high = mean.interval()
        cells += [f"{mean.mean:.2f} [{low:.2f}, {high:.2f}]", f"{by_chance:.2f}"]
    lines.append(f"| {name} | {task} | {' | '.join(cells)} |")
Markdown("\n".join(lines) + f"\n\nThe recall by chance was computed by {whose}.")

# %% [markdown]
# ## Does it read, or does it count?
#
# Look at the numbers of the base model again, then at the example in the prompt. A policy can write well-formed lists
# without using the texts of the pool at all. The three orders show this: the candidates are the same, but their numbers
# are not. A policy that **reads** writes the same *candidates* each time. A policy that **counts** writes the same
# *numbers*.
#
# The **overlap** of two slates is the number of items in both, divided by the number of items in at least one of them.


# %% exercise="my_overlap" difficulty=2 minutes=5
def my_overlap(a: list, b: list) -> float:
    """Overlap of two slates: 1 if they hold the same items, 0 if they share none. No slate holds an item twice."""
    # solution
    return len(set(a) & set(b)) / len(set(a) | set(b))


# %% [markdown] hints="my_overlap"
# A slate has no order. Which Python type holds items without an order, and knows what two of them share?
#
# With `A = set(a)` and `B = set(b)`: the number of items in `A & B`, divided by the number in `A | B`.

# %%
print(checks.overlap(my_overlap))


# %% [markdown]
# ## The figure to keep
#
# Left: how often each number is in a slate. For a policy that reads, all numbers are about equally frequent, because the
# pools are shuffled. Right: both overlaps. At the bottom right the numbers stay the same and the candidates change: the
# policy counts. Two random slates of ten have an overlap of about a third in both.

# %%
from itertools import combinations

from fgrpo.study.reads import order_rows, pool_verdict, position_rows
from notebooks.recorded import numbers_and_overlaps

overlap, whose = checks.overlap.use(my_overlap)  # yours, if it is right
rows, shares, agreement = {}, {}, {}
for name in POLICIES:
    groups = [group for task in TASKS for group in traces[name, task].groups]
    orders = [groups[order::3] for order in range(3)]
    pools = [[group.example for group in some] for some in orders]
    outputs = [[group.greedy.output for group in some] for some in orders]
    rows[name] = [*order_rows(pools, outputs, ("1", "2", "3")), *position_rows(pools, outputs)]
    shares[name] = [row["value"] for row in rows[name] if row["measure"] == "slate"]
    by_number = [[list(o.slate) for o in some] for some in outputs]  # three orders of the pool, a slate per query
    by_text = [
        [[e.candidates[i] for i in o.slate] for e, o in zip(*pair, strict=True)]
        for pair in zip(pools, outputs, strict=True)
    ]
    agreement[name] = tuple(
        sum(overlap(a, b) for x, y in combinations(slates, 2) for a, b in zip(x, y, strict=True)) / len(groups)
        for slates in (by_number, by_text)
    )  # means over the three pairs of orders
figure = numbers_and_overlaps(shares, agreement)
Image(save(figure, FIGURES / "08_reads_or_counts.png"), width=1000, alt="Which numbers slates hold; overlap of slates")

# %% [markdown]
# The overlap is about whole slates. Look also at the **first choice**, the candidate that is ranked first. It is *blind* if
# it has the same number in all three orders, but is not the same candidate; it is *reading* if it is the same candidate,
# but does not have the same number. Of a policy that chooses at random, one choice in 400 is blind and one is reading.
# Intervals (95 %) are over the 24 queries.

# %%
lines = ["| policy | blind choices | reading choices | the policy |", "|---" * 4 + "|"]
for name, own in rows.items():
    found = {row["measure"]: f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" for row in own}
    finding = pool_verdict(own).partition(":")[0]
    lines.append(f"| {name} | {found['blind choices']} | {found['reading choices']} | {finding} |")
Markdown("\n".join(lines))

# %% [markdown]
# The lists are well-formed, but they do not depend on the texts: **the recorded policies do not read.** The base model
# copies the numbers of the example in its prompt. After the short SFT the policy no longer copies, but it now prefers the
# numbers 1 and 10 to 19. The reason: of the labels 1 to 20, eleven begin with the token `1`. A policy without preference
# gives this token a probability of 11/20, and greedy decoding always takes the most likely token. A model has to learn to
# connect a number with the text next to it. 160 demonstrations did not teach this to a model of this size (nor did 800 on
# LastFM, see below).
#
# What can RL do with a policy that does not read? The rollouts of a group differ by chance. Numbers that happen to be
# right get a positive advantage under every credit method, and over pools in random order this averages out. **Credit
# assignment cannot help a policy whose output does not depend on the candidates.** The warm start has to teach it to read,
# and here the warm start was too short.

# %% [markdown]
# ## On the data it was trained for
#
# The recorded experiments: the same model on samples of four real data sets, with grpo, fgrpo and item credit, compared
# with the base model, the warm start and simple rankers (`data/results/smollm2-*.csv`). These experiments are small: RL had
# 10 steps of 16 rollouts, a tiny part of what the runs of [notebook 5](05_training.ipynb) had. So the first question is
# that of the *manipulation check*: did RL learn anything here? The last column compares grpo with the warm start with full
# lists.

# %%
from notebooks.recorded import means_by_task, pick, read_table

tables, lines, learned = {}, ["| task | seeds, warm start, test queries | grpo minus `sft_full` |", "|---" * 3 + "|"], 0
for task in ("musique", "hotpotqa", "movielens", "lastfm"):
    made, tables[task] = read_table(f"smollm2-{task}")
    rows = [r for r in pick(tables[task], metric="ndcg@5") if r["seeds"]]
    (full,) = pick(tables[task], metric="ndcg@5", method="sft_full")  # its difference is that to grpo
    queries = made["command"].partition("--limit ")[2].split(" ")[0] or "all"
    size = f"{rows[0]['seeds']} seeds, {made['config']['sft']['sft_steps']} steps, {queries}"
    lines.append(f"| {task} | {size} | {-full['diff']:+.3f} [{-full['diff_high']:+.3f}, {-full['diff_low']:+.3f}] |")
    learned += full["diff_high"] < 0
words = "on none of the four tasks" if not learned else f"on {learned} of the four tasks"
Markdown(
    "\n".join(lines) + f"\n\n95 % bootstrap intervals. **RL is shown to beat the warm start with full lists {words}.**"
)

# %%
figure = means_by_task(tables)
Image(save(figure, FIGURES / "08_tasks.png"), width=1000, alt="NDCG at 5 of every method on four real data sets")

# %% [markdown]
# Where RL is not shown to learn, a comparison of credit methods says nothing about credit, so there is no verdict here.
# The figure shows something else: compare the trained policies first with `random`, then with the simple rankers. Between
# policies that do not read, a difference is due to chance. What did training change? The length and the recall of the
# slates:

# %%
lines = ["| task | method | slate length | slate recall |", "|---" * 4 + "|"]
for task, rows in tables.items():
    for method in ("zero_shot", "sft", "grpo", "fgrpo", "item"):
        own = [r for r in rows if r["method"].split(":")[0] == method]
        found = [r for key in ("slate_length", "slate_recall") for r in pick(own, metric=key)]
        cells = [f"{r['mean']:.2f}" for r in found]
        lines.append(f"| {task} | {method} | {' | '.join(cells)} |")
Markdown("\n".join(lines))

# %% [markdown]
# (`zero_shot` is the base model; the grammar made it fill both lists.)
#
# ## Train it yourself
#
# Set `TRAIN = True` and run the cell. It downloads SmolLM2 (98 MB, once, into `~/.cache/fgrpo`; this needs `pip install
# gguf` and a network connection), trains an adapter on eight of the questions and tests it on the other four. It takes
# about 10 minutes on 2 cores. Are four questions enough to see a difference? You can answer this by now.

# %%
TRAIN = False
SFT_STEPS, RL_STEPS, HELD_OUT = 20, 5, 12  # the last 12 of the 36 pools are four questions in three orders

if TRAIN:
    import tempfile

    from fgrpo.evaluate import evaluate
    from fgrpo.lm.pretrained import PretrainedPolicy
    from fgrpo.runs.fields import config_with
    from fgrpo.runs.run import Run
    from fgrpo.runs.sft import sft_stage
    from fgrpo.tasks.fetch_model import GGUF, fetch_smollm2
    from fgrpo.trainer import fit, rl_stage

    model = {"model": str(fetch_smollm2()[0]), "gguf_file": GGUF, "dtype": "bfloat16", "passage_tokens": 24, "micro": 2}
    adapter = {"lora_rank": 2, "lora_alpha": 16, "lora_targets": "q_proj,v_proj"}
    budget = {"sft_steps": SFT_STEPS, "sft_batch": 4, "sft_lr": 1e-3, "steps": RL_STEPS, "queries": 2, "lr": 3e-4}
    config = config_with(task="questions", seed=SEED, **model, **adapter, **budget)
    policy, pools = PretrainedPolicy.new(config.lm), examples["questions"]
    train, test = pools[:-HELD_OUT], pools[-HELD_OUT:]
    for name, stage in {"base model": None, "SFT": sft_stage(config), "F-GRPO": rl_stage(config)}.items():
        if stage:
            policy = fit(policy, train, config, Run(tempfile.mkdtemp(dir=FIGURES), config), stage)
        metrics = evaluate(policy, test, config)
        print(f"{name}: NDCG@5 {metrics['ndcg@5'].mean():.2f}, slate recall {metrics['slate_recall'].mean():.2f}")

# %% [markdown]
# The same on a data set of your own, from the command line:
#
# ```text
# python -m fgrpo data fetch-model smollm2
# python -m fgrpo train --task FILE.jsonl --model FOLDER --gguf-file FILE --sft --out runs/sft
# python -m fgrpo train --task FILE.jsonl --model FOLDER --gguf-file FILE --init runs/sft --out runs/rl
# ```
#
# ## Summary
#
# - The method is the same for every model size and for labels of several tokens: the same phases and the same credit.
# - A well-formed list does not show that the policy has read the pool. Shuffle the pool to check:
#   `python -m fgrpo analyse --reads --checkpoint FOLDER` does it for any policy, and exchanges the queries, too.
# - Always compare with chance. With a pool of twenty and a slate of ten, even a random slate has a recall of one half.
# - With 135 M weights, a few dozen steps and a CPU, we can show that the kit runs with a real model. To see what the method
#   brings to a model that reads, you need a larger one: `python -m fgrpo train --preset paper-musique --dry-run` estimates
#   the cost.
