"""Every experiment behind data/results/ and data/checkpoints/: `python data/results/make.py NAME ...` (--help lists them).

Run it from the repository's root, with OMP_NUM_THREADS=1. Runs go to runs/NAME and continue where they were interrupted;
tables and figures are copied to data/results/. Folders of real data are environment variables: MOVIELENS
(ml-latest-small), LASTFM (hetrec2011-lastfm-2k), MUSIQUE, HOTPOTQA, and SMOLLM2 (`python -m fgrpo data fetch-model
smollm2` makes it).
"""

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from fgrpo.baselines import baselines_by_name, decoupled, zero_shot  # noqa: E402
from fgrpo.cli.options import LM_PRESET, PRESETS  # noqa: E402
from fgrpo.config import KitError  # noqa: E402
from fgrpo.credit import with_credit  # noqa: E402
from fgrpo.lm.pretrained import PretrainedPolicy  # noqa: E402
from fgrpo.runs.fields import config_with, with_fields  # noqa: E402
from fgrpo.runs.policies import load_policy, policy_folder  # noqa: E402
from fgrpo.runs.run import read_config  # noqa: E402
from fgrpo.runs.trace import trace_of, trace_policy, write_trace  # noqa: E402
from fgrpo.study import analysis  # noqa: E402
from fgrpo.study.compare import compare  # noqa: E402
from fgrpo.study.experiments import grid  # noqa: E402
from fgrpo.study.report import write_report  # noqa: E402
from fgrpo.tasks import load_task, resolved  # noqa: E402

RESULTS, CHECKPOINTS, TRANSFER = (Path("data") / name for name in ("results", "checkpoints", "transfer"))
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
LAB = config_with(**PRESETS["lab-rec"])
SHORT, LONG = with_fields(LAB, steps=50, lr=3e-5), with_fields(LAB, steps=300, lr=1e-4)  # rates from `lr` and `lr-long`
ALL = ("grpo", "grpo scale=std", "gdpo", "fgrpo", "reward_to_go", "nested", "nested rankings=4", "item")
EQUAL_TOKENS = ("fgrpo", "reward_to_go", "nested", "nested rankings=4", "item")
BOTH_TASKS, BOTH_REWARDS = {"one_relevant": [False, True]}, {"slate_reward": ["recall", "f1"]}
ONE_SETTING = Path("runs/credits/one_relevant-false_slate_reward-recall")


def methods(config, *names):
    """Methods by name; nested samples as many tokens as the others, from more queries."""
    nested = with_credit(config.rl, "nested")
    special = {
        "grpo scale=std": replace(config.rl, credit="grpo", scale="std"),
        "nested": replace(nested, queries=24),
        "nested rankings=4": replace(nested, rankings=4, queries=30),
    }
    return {name: replace(config, rl=special.get(name) or with_credit(config.rl, name)) for name in names}


def sweep(config, names, **vary):
    """The methods `names` under every combination of values."""
    return {setting: methods(base["grpo"], *names) for setting, base in grid(config, ["grpo"], vary).items()}


def experiment(name, experiments, seeds, folder=None, copies=None, figure=True, against="", split="test", limit=None,
               shipped_start=True, baselines=None, **options):  # fmt: skip
    """Run a comparison, in runs/NAME unless a folder is given, and copy its table, its figure and `copies`."""

    def load(config):
        splits, items = load_task(config)
        return splits._replace(test=getattr(splits, split)[:limit]), items

    folder, start = folder or Path("runs") / name, policy_folder(CHECKPOINTS / "lab-rec") if shipped_start else None
    results = compare(experiments, seeds, folder, load, baselines or {}, start, resume=True, **options)
    write_report(results, experiments, folder, against)
    figures = {"comparison.png": f"{name}.png"} if figure else {}
    for source, target in {"comparison.csv": f"{name}.csv", **figures, **(copies or {})}.items():
        shutil.copy(folder / source, RESULTS / target)


def folder_of(variable):
    """The folder that an environment variable names."""
    if not os.environ.get(variable):
        raise KitError(f"set the environment variable {variable} to a folder, as data/results/make.py --help explains.")
    return os.environ[variable]


def smollm2(task, data, limit=None, passage_tokens=200, **changes):
    """SmolLM2-135M-Instruct with a LoRA adapter on a real task, beside the untuned model under the grammar."""
    lm = {"model": folder_of("SMOLLM2"), "gguf_file": GGUF, "dtype": "bfloat16", "passage_tokens": passage_tokens}
    flat = {**LM_PRESET, **lm, "lora_rank": 2, "lora_alpha": 16, "lora_targets": "q_proj,v_proj", "micro": 2,
            "sft_steps": 40, "sft_batch": 4, "sft_lr": 1e-3, "steps": 10, "queries": 2, "lr": 3e-4, **changes}  # fmt: skip
    config = resolved(config_with(task=task, data=folder_of(data), **flat))
    baselines = baselines_by_name(["random", "popularity", "bm25", "dense"]) | {"zero_shot": partial(zero_shot, **lm)}
    experiment(f"smollm2-{task}", {"": methods(config, "grpo", "fgrpo", "item")}, 3, limit=limit, shipped_start=False,
               baselines=baselines, jobs=1)  # fmt: skip


def movielens():
    """The learning rate is that of the lab task."""
    flat = {**PRESETS["movielens"], "steps": 50, "lr": 3e-5}
    config = config_with(task="movielens", data=folder_of("MOVIELENS"), **flat)
    experiment("movielens", {"": methods(config, "grpo", "fgrpo")}, 5, shipped_start=False,
               baselines=baselines_by_name(["random", "popularity", "bm25", "dense", "gru4rec"]))  # fmt: skip


def all_baselines():
    """On the runs of `credits`, several relevant films, recall; needs the extra `baselines`."""
    names = ["random", "popularity", "bm25", "dense", "gru4rec", "unisrec", "decoupled"]
    own_slates = {"decoupled slates=selector": partial(decoupled, slates="selector")}
    experiment("baselines", {"": methods(SHORT, *ALL)}, 10, ONE_SETTING, {"errors.png": "errors.png"},
               baselines=baselines_by_name(names) | own_slates)  # fmt: skip


def llm():
    """Free answers of SmolLM2 without training, on 16 queries, beside the runs of `credits`."""
    free = partial(zero_shot, model=folder_of("SMOLLM2"), gguf_file=GGUF, constrained=False)
    steps = {"zero_shot one step": free, "zero_shot two steps": partial(free, steps=2)}
    experiment("llm", {"": methods(SHORT, "grpo", "fgrpo", "item")}, 10, ONE_SETTING, figure=False, limit=16,
               baselines=baselines_by_name(["random", "bm25"]) | steps)  # fmt: skip


def transfer():
    """Answers of the untuned model and of four of its adapters to data/transfer, for notebook 08."""
    subprocess.run([sys.executable, TRANSFER / "make.py"], check=True)
    lm = {"model": folder_of("SMOLLM2"), "gguf_file": GGUF, "dtype": "bfloat16", "passage_tokens": 24, "micro": 4}
    for name in ("base", "musique-sft", "musique-fgrpo", "movielens-sft", "movielens-fgrpo"):
        for task in ("questions", "films"):
            config = config_with(**LM_PRESET | lm, task=str(TRANSFER / f"{task}.jsonl"))
            folder = CHECKPOINTS / f"smollm2-{name}"
            policy = PretrainedPolicy.new(config.lm) if name == "base" else load_policy(folder, lm=config.lm)
            examples = [e for part in load_task(config)[0] for e in part]
            groups = trace_policy(policy, examples, config, 1, seed=config.seed)
            write_trace(TRANSFER / f"{name}-{task}.jsonl", trace_of(f"{name}-{task}", config, groups))


def oracle(name, configs, batches, groups):
    """Bias and variance of methods against the exact gradient, at the shipped warm start."""
    config, policy = read_config(CHECKPOINTS / "lab-rec"), load_policy(CHECKPOINTS / "lab-rec")
    options = {method: c.rl for method, c in configs.items()}
    found = analysis.analyse(policy, load_task(config)[0], options, config, 4, batches, groups)
    analysis.write_analysis(RESULTS / f"{name}.csv", *found, str(CHECKPOINTS / "lab-rec"), config)


def noisy():
    """Noise in one phase's reward: why it hurts both phases."""
    plain = methods(LAB, "grpo", "fgrpo")
    return plain | {f"{name} {noise}=1": with_fields(c, **{noise: 1.0})
                    for noise in ("slate_noise", "rank_noise") for name, c in plain.items()}  # fmt: skip


def train(name, *options):
    """A shipped policy. A folder that holds a run is not overwritten: remove it first."""
    subprocess.run([sys.executable, "-m", "fgrpo", "train", "--task", "lab-rec", "--policy-only", *options, "--out",
                    str(CHECKPOINTS / name)], check=True)  # fmt: skip


def traces():
    """The same queries for the three shipped policies, two rankings of each slate, so that every method fits them."""
    for name in ("lab-rec", "lab-rec-grpo", "lab-rec-fgrpo"):
        folder = CHECKPOINTS / name
        config = read_config(folder)
        config = replace(config, rl=with_credit(replace(config.rl, group=8), "nested"))
        test = load_task(config)[0].test[:512]  # of all 2,048 a trace would have 1.6 MB
        groups = trace_policy(load_policy(folder), test, config, 24, seed=config.seed)
        write_trace(folder / "trace.jsonl", trace_of(name, config, groups))


TWO, THREE = ("grpo", "fgrpo"), ("grpo", "fgrpo", "item")
TUNED, SETTLING = ALL[:6] + ALL[7:], ("grpo", "fgrpo", "reward_to_go", "nested", "item")
START_300 = ("--steps", "300", "--seed", "0", "--init", str(CHECKPOINTS / "lab-rec"), "--credit")
EXPERIMENTS = {
    "lr": lambda: experiment("lr", sweep(SHORT, TUNED, **BOTH_TASKS, lr=[3e-5, 1e-4, 3e-4]), 2, split="validation"),
    "lr-long": lambda: experiment("lr-long", sweep(with_fields(LAB, steps=200), THREE, **BOTH_TASKS, lr=[1e-4, 3e-4]), 2,
                                  split="validation"),
    "credits": lambda: experiment("credits", sweep(SHORT, ALL, **BOTH_TASKS, **BOTH_REWARDS), 10),
    "credits-fgrpo": lambda: experiment("credits-fgrpo", sweep(SHORT, EQUAL_TOKENS, **BOTH_TASKS, **BOTH_REWARDS), 10,
                                        Path("runs/credits"), figure=False, against="fgrpo"),  # after `credits`
    "long": lambda: experiment("long", {"": methods(LONG, *SETTLING)}, 5,
                               copies={name: name for name in ("settling.csv", "learning.png")}),
    "long-fgrpo": lambda: experiment("long-fgrpo", {"": methods(LONG, *SETTLING[1:])}, 5, Path("runs/long"),
                                     figure=False, against="fgrpo"),  # after `long`
    "tokens": lambda: experiment("tokens", {"": methods(LONG, *THREE)}, 3, every=50, copies={
        "efficiency.csv": "tokens-curve.csv", "reached.csv": "tokens-reached.csv", "efficiency.png": "tokens.png"}),
    "noise": lambda: experiment("noise", sweep(LONG, TWO, slate_noise=[1.0]) | sweep(LONG, TWO, rank_noise=[1.0]), 5),
    "pool": lambda: experiment("pool", sweep(with_fields(LONG, steps=100, one_relevant=True), THREE, pool=[20, 50, 100]), 5),
    "pool50": lambda: experiment(  # twice the seeds
        "pool50", {"": methods(with_fields(LONG, steps=100, one_relevant=True, pool=50), *THREE)}, 10),
    "lambda": lambda: experiment("lambda", sweep(SHORT, TWO, lam=[0.25, 0.5, 1.0, 2.0, 4.0]), 2),
    "group": lambda: experiment("group", {  # as many rollouts a step, whatever the group
        f"group={g}": methods(with_fields(SHORT, group=g, queries=128 // g), *TWO) for g in (4, 8, 16, 32)}, 2),
    "slate": lambda: experiment("slate", sweep(with_fields(SHORT, rank_size=3), TWO, slate_size=[3, 5, 10, 15]), 2),
    "baselines": all_baselines,
    "oracle": lambda: oracle("oracle", methods(LAB, *ALL), 16, (2, 4, 8, 16)),
    "oracle-noise": lambda: oracle("oracle-noise", noisy(), 1, (8,)),
    # real data and models
    "movielens": movielens,
    "llm": llm,
    "smollm2-movielens": lambda: smollm2("movielens", "MOVIELENS"),
    "smollm2-lastfm": lambda: smollm2(  # the shortest prompts and the most data: a longer warm start, of all layers
        "lastfm", "LASTFM", limit=60, lora_targets="all-linear", sft_steps=200, sft_lr=5e-4),
    "smollm2-musique": lambda: smollm2("musique", "MUSIQUE", limit=40, passage_tokens=24),
    "smollm2-hotpotqa": lambda: smollm2("hotpotqa", "HOTPOTQA", limit=40, passage_tokens=24),
    "transfer": transfer,
    # data/checkpoints; the warm start was trained once and is kept, since all results start from it
    "lab-rec": lambda: train("lab-rec", "--sft"),
    "lab-rec-grpo": lambda: train("lab-rec-grpo", *START_300, "grpo"),
    "lab-rec-fgrpo": lambda: train("lab-rec-fgrpo", *START_300, "fgrpo"),
    "traces": traces,
}  # fmt: skip

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", choices=EXPERIMENTS, help=", ".join(EXPERIMENTS))
    for name in parser.parse_args().names:
        try:
            EXPERIMENTS[name]()
        except KitError as error:
            sys.exit(f"make.py: {name}: {error}")
