# ---
# jupyter:
#   fgrpo: {budget: 25}
# ---

# %% [markdown]
# # 8. Real data (lab)
#
# **Does the policy read its candidates, and does credit matter then?**
#
# So far every film was one invented token. Real candidates are texts, and a policy has to *read* them. A well-formed list
# does not prove that it did: it may go by the candidates' numbers. So before any comparison of credit, this notebook tests
# whether a policy reads or counts. Two kinds of policy take the test: a small language model, SmolLM2, which fails, and a
# tiny policy over texts, which passes. For the second we then read the comparison. All outputs were recorded; only the
# last section downloads anything.

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
from notebooks import checks

# %% [markdown]
# ## The same pool in three orders
#
# SmolLM2-135M-Instruct was trained on two real data sets, MuSiQue (questions; two of twenty passages give the answer) and
# MovieLens (films; one of twenty is the next one that the viewer rated). We may not distribute those texts, so we wrote
# twelve questions and twelve film queries of our own, on real facts. Each appears **three times, with its pool in three
# orders**. Here is a question; the relevant passages have a star.

# %%
from fgrpo.tasks import DATA
from fgrpo.tasks.jsonl import read_jsonl

TASKS = ("questions", "films")
examples = {task: read_jsonl(DATA / "transfer" / f"{task}.jsonl") for task in TASKS}
chosen = int(torch.randint(12, (), generator=torch.Generator().manual_seed(SEED)))
example = examples["questions"][3 * chosen]
pool = [f"{'★ ' * (i in example.relevant)}[{i + 1}] {text}" for i, text in enumerate(example.candidates)]
Markdown("```text\n" + "\n".join([example.query, "", *pool]) + "\n```")

# %% [markdown]
# The prompt lists the pool like this, gives an example of the form, `<SLATE> 7, 12, 3 </SLATE> <RANK> 12, 3 </RANK>`, and
# the model writes numbers. One **label** can now have several tokens (12 is `1`, `2`). The grammar of [notebook
# 1](01_one_rollout.ipynb) works on tokens: after `1` it allows another digit or a comma.
#
# Five versions of the model were recorded: the base model, and on either data set one after a short SFT and one after
# F-GRPO on top of it. They are **LoRA** adapters: the weights of the model stay as they are, and beside some of its
# matrices the product of two thin ones is added, which alone is trained. Their greedy answers to the question above, and
# to a film query:

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
# ## Better than chance?
#
# A slate of ten from a pool of twenty holds some relevant candidates even by chance. To judge a score, we need the score
# of **chance**. Suppose a slate of `n` candidates is drawn at random from a pool with `relevant` relevant ones. What is
# the expected recall?


# %% exercise="my_chance" difficulty=1 minutes=4
def my_chance(n: int, pool: int, relevant: int) -> float:
    """Expected recall of a slate of n different candidates drawn at random from a pool."""
    # solution
    return n / pool


# %% [markdown] hints="my_chance"
# Look at one relevant candidate alone. With which probability is it in a slate of `n` out of `pool`?
#
# That probability is `n / pool`, the same for every relevant candidate. So `relevant * n / pool` of them are expected in
# the slate. Recall divides this number by `relevant`.

# %%
print(checks.chance(my_chance))

# %%
from fgrpo.evaluate import measure_outputs
from fgrpo.study.significance import paired

chance, whose = checks.chance.use(my_chance)  # yours, if it is right
lines = ["| policy | query | recall of the slate [95 %] | by chance |", "|---" * 4 + "|"]
for (name, task), trace in traces.items():
    outputs = [group.greedy.output for group in trace.groups]
    recall = measure_outputs(outputs, examples[task], trace.config.grammar)["slate_recall"]
    mean = paired(recall.reshape(12, 3).mean(1).unsqueeze(0))  # the three orders of a query are one observation
    low, high = mean.interval()
    drawn = [
        chance(len(o.slate), len(e.candidates), len(e.relevant)) for o, e in zip(outputs, examples[task], strict=True)
    ]
    lines.append(f"| {name} | {task} | {mean.mean:.2f} [{low:.2f}, {high:.2f}] | {sum(drawn) / len(drawn):.2f} |")
Markdown("\n".join(lines) + f"\n\nRecall by chance: computed by {whose}. 12 queries each, recorded on one CPU core.")

# %% [markdown]
# No policy is shown to be better than chance, whatever it was trained on. But twelve queries are few. More queries would
# tell how good the lists are; the three orders tell **why**.
#
# ## Does it read, or does it count?
#
# In three orders the candidates are the same, but their numbers are not. A policy that **reads** writes the same
# *candidates* each time. A policy that **counts** writes the same *numbers*. The **overlap** of two slates is the number
# of items in both, divided by the number of items in at least one of them.


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
# The same for the **first choice**, the candidate ranked first. It is *reading* if it is the same candidate in all three
# orders but not the same number, and *blind* if it is the same number but not the same candidate. By chance one choice in
# 400 is reading and one is blind. Two random slates of ten have an overlap of about a third, in numbers and in candidates.

# %%
from itertools import combinations

from fgrpo.study.reads import order_rows

overlap, whose = checks.overlap.use(my_overlap)  # yours, if it is right
lines = ["| SmolLM2 | overlap: numbers | overlap: candidates | reading choices | blind choices |", "|---" * 5 + "|"]
shares = {}
for name in POLICIES:
    groups = [group for task in TASKS for group in traces[name, task].groups]
    orders = [groups[order::3] for order in range(3)]
    numbers = [[list(g.greedy.output.slate) for g in some] for some in orders]
    texts = [[[g.example.candidates[i] for i in g.greedy.output.slate] for g in some] for some in orders]
    cells = [
        sum(overlap(a, b) for x, y in combinations(slates, 2) for a, b in zip(x, y, strict=True)) / len(groups)
        for slates in (numbers, texts)
    ]
    outputs = [[g.greedy.output for g in some] for some in orders]
    found = {
        r["measure"]: r for r in order_rows([[g.example for g in some] for some in orders], outputs, ("1", "2", "3"))
    }
    first = [found[f"{word} choices"] for word in ("reading", "blind")]
    shares[f"SmolLM2, {name}"] = (first[0]["value"], first[1]["value"])
    words = [f"{x:.2f}" for x in cells] + [f"{r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for r in first]
    lines.append(f"| {name} | {' | '.join(words)} |")
Markdown("\n".join(lines) + f"\n\n24 queries in three orders; overlaps computed by {whose}.")

# %% [markdown]
# ## The figure to keep: who reads?
#
# The last bar is another kind of policy, on a real data set: LastFM, listening sessions of artists, pools of 20 with one
# relevant artist. It is a *tiny* policy (the decoder of the lab) whose items are not bare tokens: the embedding of an
# artist is made of its name and an id, and training on listening histories came before SFT. Pools were shuffled at every
# step.

# %%
from notebooks.recorded import choices, differences, learned, pick, read_table, source

made, reads = read_table("reads-lastfm-sdpo")
reads = pick(reads, policy="fgrpo-seed0")
found = {r["measure"]: r for r in reads if r["part"] == "orders"}
shares["tiny policy over texts, LastFM"] = (found["reading choices"]["value"], found["blind choices"]["value"])
Image(save(choices(shares), FIGURES / "08_reads.png"), width=900, alt="Share of first choices that read and that count")

# %%
Markdown(f"The test of the tiny policy, on {reads[0]['queries']:,} queries of {reads[0]['groups']} sessions: it "
         f"{made['verdicts']['fgrpo-seed0']}\n\n{source(made)}")  # fmt: skip

# %% [markdown]
# **SmolLM2 counts.** The base model copies the numbers of the example in its prompt. After SFT it prefers 1 and 10 to 19:
# of the labels 1 to 20, eleven begin with the token `1`, and greedy decoding takes the most likely token. To connect a
# number with the text beside it has to be learned, and a few dozen steps on a model of this size did not teach it.
#
# Could credit help? Numbers that happen to be right get a positive advantage, and over pools in random order this averages
# out. **Credit assignment cannot help a policy whose output does not depend on its candidates.** The warm start must teach
# it to read.
#
# **The tiny policy reads**: its choices follow the candidate, and with the history of another listener it is much worse.
# So here a comparison of credit means something.
#
# ## Credit, with policies that read
#
# 150 steps of RL from 5 warm starts, on two real data sets: LastFM, and MovieLens (the last film of each viewer). Queries
# of one session or viewer are not independent; the intervals treat them as one cluster.

# %%
parts = []
for name in ("lastfm-sdpo", "movielens-loo"):
    made, rows = read_table(name)
    rows = pick(rows, metric="ndcg@5")
    beside = ", ".join(
        f"{r['method']} {r['mean']:.3f}" for r in rows if r["method"] in ("popularity", "gru4rec", "unisrec")
    )
    trained = [r for r in rows if r["seeds"]]
    check = learned(read_table(f"{name}-check")[1])
    parts.append(f"**{name}** ({beside})\n\n{check}\n\n{differences(trained)}\n\n{source(made, trained)}")
Markdown("\n\n".join(parts))

# %% [markdown]
# - **RL learns here**: it is above SFT that went on for the same compute (`sft_more`), by 0.011 to 0.020; only for `fgrpo`
#   on MovieLens this is not shown. Against the warm start with full lists (`sft_full`) the gain is about 0.01 and not
#   always shown.
# - **Credit makes no difference larger than 0.01** between `fgrpo` and `grpo` on LastFM. This is a result, not a missing
#   one: the experiment could see 0.010. On MovieLens it could see 0.020 only, so nothing is known about less.
# - The map of this LastFM policy had promised `fgrpo` 2.4 times the signal [1.6, 4.5] (`map-lastfm-sdpo.csv`). A promise
#   of faster learning says nothing about where training ends, and the way there was not measured.
#
# And SmolLM2, on samples of four data sets? First, again, whether RL learned at all:

# %%
lines, count = ["| task | seeds, SFT steps, test queries | grpo minus `sft_full` |", "|---" * 3 + "|"], 0
for task in ("musique", "hotpotqa", "movielens", "lastfm"):
    made, found = read_table(f"smollm2-{task}")
    rows = [r for r in pick(found, metric="ndcg@5") if r["seeds"]]
    (full,) = pick(found, metric="ndcg@5", method="sft_full")  # its difference is that to grpo
    queries = made["command"].partition("--limit ")[2].split(" ")[0] or "all"
    size = f"{rows[0]['seeds']} seeds, {made['config']['sft']['sft_steps']} steps, {queries}"
    lines.append(f"| {task} | {size} | {-full['diff']:+.3f} [{-full['diff_high']:+.3f}, {-full['diff_low']:+.3f}] |")
    count += full["diff_high"] < 0
Markdown("\n".join(lines) + f"\n\n{made['hardware']}. RL is shown to beat the warm start on {count} of 4 tasks.")

# %% [markdown]
# Nothing was learned, so no difference between credit methods is read.
#
# ## Train it yourself
#
# Set `TRAIN = True` and run the cell. It downloads SmolLM2 (98 MB, once, into `~/.cache/fgrpo`; this needs `pip install
# gguf` and a network connection), trains an adapter on eight of the questions and tests it on the other four. It takes
# about 10 minutes on 2 cores. Are four questions enough to see a difference? You can answer this by now. [Notebook
# 10](10_your_data.ipynb) does the same with your data.

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
# ## Answer
#
# - A well-formed list does not show that a policy has read its pool. Shuffle the pool before you believe a score: `python
#   -m fgrpo analyse --reads --checkpoint FOLDER` does it for any policy, and exchanges the queries too.
# - Always compare with chance: with a pool of twenty and a slate of ten, a random slate has a recall of one half.
# - With policies that read, RL beats SFT on LastFM and MovieLens, and on LastFM factorised credit makes no difference
#   larger than 0.01 after 150 steps. The paper's gain on LastFM is large; its policies are pretrained models that were not
#   available here.
#
# **Next:** [your own credit method](09_your_method.ipynb) in ten minutes, or [diagnosis](11_diagnosis.ipynb): which phase
# loses the candidates?
