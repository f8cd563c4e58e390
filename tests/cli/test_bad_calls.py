"""A hundred wrong calls: status 2, one line on stderr, no file changed. What is said names the option or the file."""

import json
import shutil
from pathlib import Path

import pytest

from fgrpo.cli.main import main

ROOT = Path(__file__).parents[2]
LAB = str(ROOT / "data/checkpoints/lab-rec")
SIZE = ["--hidden-size", "32", "--layers", "1", "--heads", "2"]
RL = ["--steps", "2", "--queries", "4", "--group", "4"]
TINY = [*SIZE, *RL, "--init", "base"]
SHORT = {"LAB": [LAB], "RUN": ["--task", "task.jsonl", *TINY], "SHAPE": ["--task", "task.jsonl", *SIZE], "RL": RL}
"""what a word in CALLS stands for"""
ROW = {"id": "a", "query": "q", "history": [], "candidates": [f"c{n}" for n in range(12)], "relevant": [0]}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task, a run, a broken file of each kind, and files that must not be overwritten."""
    folder = tmp_path_factory.mktemp("home")
    rows = [json.dumps(ROW | {"id": str(n), "query": f"q{n}", "relevant": [n % 12]}) + "\n" for n in range(20)]
    (folder / "task.jsonl").write_text("".join(rows))
    (folder / "broken.jsonl").write_text(rows[0] * 3 + '{"id": 1}\n')
    (folder / "notes.txt").write_text("mine\n")
    (folder / "brackets.json").write_text("[" * 100_000)
    (folder / "figure.png").write_text("a figure\n")
    (folder / "empty").mkdir()
    (folder / "filled/trace.jsonl").mkdir(parents=True)
    (folder / "mine").mkdir()
    (folder / "mine/train.jsonl").write_text(rows[0])
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text('{"model_type": "qwen3"}')
    (folder / "deep").mkdir()
    (folder / "deep/config.json").write_text("[" * 100_000)
    (folder / "link").symlink_to("notes.txt")
    task = folder / "task.jsonl"
    assert main(["train", "--task", str(task), "--out", str(folder / "run"), "--json", *TINY]) == 0
    for name in ("odd-step", "odd-metrics", "alone", "above/warm-start"):
        shutil.copytree(folder / "run", folder / name)
    argv = ["train", "--task", str(task), "--out", str(folder / "constant"), "--lr-decay", "none", "--json", *TINY]
    assert main(argv) == 0
    task.write_text("".join(rows[::-1]))  # the same name, another order
    assert main(["train", "--task", str(task), "--out", str(folder / "changed"), "--json", *TINY]) == 0
    task.write_text("".join(rows))
    for file in folder.glob("odd-step/checkpoints/*/SHA256SUMS"):
        file.unlink()
    for file in folder.glob("odd-step/checkpoints/*/trainer.json"):
        file.write_text("[" * 100_000)
    for file in folder.glob("alone/checkpoints/*/trainer.*"):
        file.unlink()
    for file in folder.glob("alone/checkpoints/*/SHA256SUMS"):
        file.unlink()
    (folder / "odd-metrics/metrics.jsonl").write_text('{"step": 1, "loss": "low"}\n')
    return folder


def snapshot(folder: Path) -> dict[str, object]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_size) if p.is_file() else None
        for p in sorted(folder.rglob("*"))
        if p.name != ".lock"  # it holds the number of the last process that asked for it
    }


def calls(text: str) -> list[tuple[list[str], str]]:
    """`arguments -> what is said`, one a line."""
    found = [line.split(" -> ") for line in text.strip().splitlines()]
    return [([y for x in call.split() for y in SHORT.get(x, [x])], said) for call, said in found]


CALLS = calls("""
dance -> invalid choice
demo --seed 5 -> unrecognized arguments: --seed
demo --seeds 0 -> must be whole numbers above 0
demo --seeds 1000000000 -> at most 1,000
demo --steps many -> must be whole numbers
demo --jobs 1,2 -> must be one whole number
train -> name the run's folder with --out
train --out x --lr 0 -> lr 0.0 must be at least 1e-12
train --out x --lr -1 -> lr -1.0 must be at least
train --out x --lr 1e30 -> lr 1e+30 must be at most 1.0
train --out x --lr nan -> lr nan
train --out x --lr inf -> lr inf must be at most 1.0
train --out x --sft --sft-lr 0 -> sft_lr 0.0 must be at least
train --out x --temperature 1e-40 -> temperature 1e-40 must be at least 0.01
train --out x --temperature 0 -> temperature 0.0 must be at least 0.01
train --out x --temperature 1e9 -> must be at most 100.0
train --out x --group 1000000000000 -> group 1000000000000 must be at most 65,536
train --out x --queries 1000000000000 -> queries 1000000000000 must be at most
train --out x --group 60000 --queries 60000 -> lower one
train --out x --sft-batch 1000000000000 -> sft_batch
train --out x --hidden-size 1000000000 -> hidden_size 1000000000 must be at most
train --out x --layers 10000000 -> layers 10000000 must be at most 1,000
train --out x --slate-size 1000000000000 -> slate_size 1000000000000 must be at most
train --out x --seed -1 -> seed -1 must be at least 0
train --out x --lam -1 -> lam -1.0 must be at least 0
train --out x --beta -0.1 -> beta -0.1
train --out x --rankings 0 -> rankings 0
train --out x --rankings 2 -> nested
train --out x --credit grpo:seed=5 -> credit 'grpo:seed=5' is not known
train --out x --credit nested -> --rankings 2 or more
train --out x --ratio sequence -> averages the phases
train --out x --credit item --slate-noise 1 -> leave out one
train --out x --credit shapley --rank-noise 1 -> leave out one
train --out x --credit control --ratio sequence -> averages the phases
train --out x --demonstrations best -> demonstrations 'best' is not known; choose from relevant, filled, ranked
train --out x --lr-decay cosine -> lr_decay 'cosine' is not known; choose from linear, none
train --out x --learn neither -> learn 'neither' is not known; choose from both, slate, rank
train --out x --taste -1 -> taste -1.0 must be at least 0
train --out x --taste inf -> taste inf must be at most 100
train --out x --hard nan -> hard nan must be at least 0
train --out x --hard 101 -> hard 101.0 must be at most 100
train --out x --task task.jsonl --taste 2 -> --taste is for lab-rec, not for task.jsonl
train --out x --task task.jsonl --hard 1 -> --hard is for lab-rec, not for task.jsonl
train --out x --sft --learn rank -> --learn is for RL
train --out x --sft --lr-decay none -> --lr-decay is for RL
train --out x --init base --demonstrations filled -> --init base leaves it out
train --out x --init LAB --demonstrations filled -> --demonstrations does not change the policy of --init
train --out x --preset lab-hot -> invalid choice
train --preset lab-cold --task task.jsonl -> --preset lab-cold is for the tiny policy on task lab-rec
train --preset lab-warm --model y -> --preset lab-warm is for the tiny policy on task lab-rec
train --out x --starts 2 -> unrecognized arguments: --starts
demo --starts 2 -> unrecognized arguments: --starts
train --out x --lora-rank 8 -> --lora-rank is for a pretrained policy
train --out x --dtype bfloat16 -> --dtype is for a pretrained policy
train --out x --passage-tokens 9 -> --passage-tokens is for a pretrained policy
train --out x --trust-remote-code -> --trust-remote-code is for a pretrained policy
train --out x --gguf-file x.gguf -> name the folder that holds it with --model
train --out x --date 2020-01-01 -> --date is for a pretrained policy
train --out x --decoding free --full -> --full is for constrained decoding
train --out x --model y --hidden-size 64 -> --hidden-size is for the tiny policy
train --out x --model LAB --init LAB -> is a tiny one
train --out x --task task.jsonl --pool 30 -> --pool is for lab-rec, games, beir, trec, not for task.jsonl
train --out x --task task.jsonl --no-has-gt -> --has-gt is for games, not for task.jsonl
train --out x --task movielens --data empty --negatives popular -> --negatives is for movielens-loo, lastfm
train --out x --task games --data empty --negatives often -> negatives 'often' is not known
train --out x --task games-sasrec --data empty --pool 150 -> hold at most 100 candidates
train --out x --task games-sasrec --data empty --skip-bad -> --skip-bad is for JSONL files
train --out x --task games-sasrec --data empty -> no Games here
train --out x --task games-sasrec -> needs its data
train --out x --task movielens-loo --data empty --negatives mixed -> movielens-loo takes uniform or popular
train --out x --task task.jsonl --one-relevant -> --one-relevant is for lab-rec, not for task.jsonl
train --out x --task task.jsonl --data empty -> --data is for tasks movielens
train --out x --data empty -> lab-rec does not need it
train --out x --skip-bad -> --skip-bad is for JSONL files
train --out x --task movielens -> needs its data
train --out x --task nope -> task 'nope' is not known
train --out x --task none.jsonl -> none.jsonl
train --out x --task broken.jsonl -> broken.jsonl, line 4
train --out x --init nowhere -> nowhere: no policy here
train --out x --init empty -> empty: no policy here
train --out x --init LAB --sft-steps 5 -> --sft-steps does not change the policy of --init
train --out x --init LAB --hidden-size 32 -> it has 96
train --out x --init base --sft-lr 1e-3 -> --init base leaves it out
train --out x --sft --init LAB -> leave out one of them
train --out x --sft --steps 5 -> --steps is for RL
train --out x --sft --credit grpo -> --credit is for RL
train --out x --sft --beta 1 -> --beta is for RL
train --out x --device abacus -> device 'abacus' cannot be used
train --out x --device meta -> device 'meta' cannot be used
train --out notes.txt -> notes.txt: is a file
train --out notes.txt/run -> notes.txt
train --out model -> is not the configuration of a run
train --out deep -> is not the configuration of a run
train --out run --task task.jsonl --init base -> already holds a run
train --out run --resume RUN --lr 1e-3 -> rl.lr = 0.001, it began with 0.0004
train --out run --resume RUN --credit grpo -> rl.credit
train --out run --resume RUN --seed 3 -> seed = 3
train --out run --resume RUN --temperature 2 -> rl.temperature
train --out run --resume RUN --steps 1 -> rl.steps = 1, it began with 2 (its learning rates fall to zero over them)
train --out run --resume RUN --steps 3 -> rl.steps = 3, it began with 2
train --out run --resume RUN --learn rank -> rl.learn = 'rank', it began with 'both'
train --out run --resume RUN --lr-decay none -> rl.lr_decay = 'none', it began with 'linear'
train --out constant --resume RUN --lr-decay none --steps 1 -> 2 steps are done, more than --steps 1
train --out run --resume SHAPE RL -> another initial policy
train --out run --resume SHAPE --sft -> cannot resume as sft, it began as rl
train --out alone --resume RUN -> the policy alone was kept, it cannot be resumed
train --out above --task task.jsonl -> above/warm-start already holds a run
train --out run --resume --task task.jsonl --init LAB RL -> model.hidden_size
train --out changed --resume RUN -> the task's data has changed since it began
train --out odd-step --resume RUN -> the checkpoint is damaged
train --out odd-metrics --resume RUN -> metrics.jsonl, line 1: field 'loss' must be a number
evaluate --checkpoint odd-step --task none.jsonl -> none.jsonl
train --out x --see 3 -> unrecognized arguments: --see
train --out x --dry-run --sft --steps 3 -> --steps is for RL
evaluate -> required: --checkpoint
evaluate --checkpoint nowhere -> nowhere: no policy here
evaluate --checkpoint empty -> empty: no run here
evaluate --checkpoint deep -> deep/config.json: not JSON
evaluate --checkpoint base -> name it with --model
evaluate --checkpoint LAB --model y -> --model is for a pretrained policy
evaluate --checkpoint LAB --gguf-file y -> --gguf-file is for a pretrained policy
evaluate --checkpoint LAB --trust-remote-code -> --trust-remote-code is for a pretrained policy
evaluate --checkpoint LAB --data empty -> does not need it
evaluate --checkpoint LAB --limit 0 -> above 0
evaluate --checkpoint LAB --device cuda:99 -> cannot be used here
evaluate --checkpoint LAB --split most -> invalid choice
evaluate --checkpoint LAB --trec notes.txt -> notes.txt: is not a TREC file
evaluate --checkpoint LAB --trec mine -> mine: is a folder, a link or a device
evaluate --checkpoint LAB --trec task.jsonl/x -> cannot be written
evaluate --checkpoint LAB --task trec --data empty -> no queries here (it is empty)
trace --checkpoint run -> name a file to write: --out
trace --checkpoint run --html notes.txt -> notes.txt: is not a page of this kit
trace --checkpoint run --html run/trace.jsonl -> is not a page of this kit
trace --checkpoint run --html empty -> empty: is a folder, a link or a device
trace --checkpoint run --html link -> is a folder, a link or a device
trace --checkpoint run --html /dev/null -> is a folder, a link or a device
trace --checkpoint run --out x.html --html ./x.html -> both name x.html
trace --checkpoint run --html notes.txt/t.html -> notes.txt
trace --checkpoint run --out notes.txt -> notes.txt: is not a trace file
trace --checkpoint run --out run/config.json -> is not a trace file
trace --checkpoint run --out task.jsonl -> is not a trace file
trace --checkpoint run --out brackets.json -> is not a trace file
trace --checkpoint run --out empty -> is a folder, a link or a device
trace --checkpoint run --out link -> is a folder, a link or a device
trace --checkpoint run --out /dev/null -> is a folder, a link or a device
trace --checkpoint run --out notes.txt/t.jsonl -> notes.txt
trace --checkpoint run --out t.jsonl --sampled 0 -> above 0
compare --seed 5 -> --seed is an option of train
compare --credit grpo -> --credit is an option of train
compare --credits grpo:seed=5 -> credit 'grpo:seed=5' is not known
compare --credits grpo,zz -> credit 'zz' is not known
compare --credits grpo,grpo -> names 'grpo' twice
compare --credits grpo,,fgrpo -> empty name
compare --credits grpo,fgrpo --rankings 4 -> --rankings is for credit 'nested'
compare --credits grpo,fgrpo --ratio sequence -> averages the phases
compare --baselines zz -> baseline 'zz' is not known
compare --baselines random,random -> names 'random' twice
compare --baselines zero_shot -> needs a model
compare --baselines sft_more -> baseline 'sft_more' is not known
compare --baselines taste --task task.jsonl -> baseline 'taste' is for task lab-rec, not for task.jsonl
compare --baselines random,attributes --vary task=lab-rec,task.jsonl -> baseline 'attributes' is for task lab-rec
compare --preference zz -> preference 'zz' is not known; choose from dpo, s_dpo
compare --preference dpo,dpo -> names 'dpo' twice
compare --preference s_dpo --learn rank -> preferences are about whole outputs, and learn is 'rank'
compare --starts 0 -> above 0
compare --starts many -> must be whole numbers
compare --starts 1,2 -> must be one whole number
compare --starts 4 -> --starts 4 is above --seeds 3
compare --starts 2 --init LAB -> --init names one: leave out one of them
compare --control --credits grpo,item -> --credits is set by --control
compare --control --steps 50 -> --steps is set by --control
compare --control --lr 1e-3 -> --lr is set by --control
compare --control --lr-decay linear -> --lr-decay is set by --control
compare --control --learn both -> --learn is set by --control
compare --control --slate-noise 0.5 -> --slate-noise is set by --control
compare --control --full -> --full is set by --control
compare --control --vary lam=1,2 -> --vary is set by --control
compare --control --against fgrpo -> --against is set by --control
compare --control --baselines random -> --baselines is set by --control
compare --control --preference dpo -> --preference is set by --control
compare --control --every 5 -> --every is set by --control
compare --control --no-sft-more -> --no-sft-more is set by --control
compare --control --decoding free -> leave out --decoding free
compare --control --starts 2 --init LAB -> leave out one of them
compare --ladder -> give --control as well
compare --control --ladder --steps 50 -> --steps is set by --control
compare --control --ladder --model folder -> leave out --model
compare --control --seed 1 -> --seed is an option of train
compare --learn rank --vary learn=rank,both,none -> learn 'none' is not known
compare --vary taste=1,2 --task task.jsonl -> --taste is for lab-rec, not for task.jsonl
compare --vary demonstrations=filled,best -> demonstrations 'best' is not known
compare --against zz -> must be one of the methods
compare --vary lam=1,1.0 -> is there twice
compare --vary lam=a -> must be of type float
compare --vary lam=-1 -> lam -1.0 must be at least 0
compare --vary lr=0 -> lr 0.0 must be at least
compare --vary lam -> must be FIELD=VALUE
compare --vary lam=1 --vary lam=2 -> given twice
compare --vary seed=1,2 -> counted with --seeds
compare --vary lora_rank=4,8 -> --lora-rank is for a pretrained policy
train --out x --model folder --lora-rank 0 --lora-alpha 8 -> --lora-alpha is for a LoRA adapter, and --lora-rank 0 trains all
train --out x --model folder --lora-rank 0 --lora-targets q_proj -> --lora-targets is for a LoRA adapter
compare --model folder --lora-rank 0 --lora-alpha 32 -> --lora-alpha is for a LoRA adapter
train --out x --model folder --lora-rank -1 -> lora_rank -1 must be at least 0
compare --vary pool=20,30 --task task.jsonl -> --pool is for lab-rec, games, beir, trec, not for task.jsonl
compare --vary sft_steps=1,2 --init LAB -> does not change the policy of --init
compare --vary device=cpu,abacus -> device 'abacus' cannot be used
compare --every 500 --steps 100 -> every 500 is above steps 100
compare --resume -> name its folder
compare --init nowhere -> nowhere: no policy here
compare --out notes.txt -> notes.txt
compare --seeds 1.5 -> must be whole numbers
analyse --credits zz -> credit 'zz' is not known
analyse --credits grpo, -> empty name
analyse --checkpoint nowhere -> no policy here
analyse --groups 1 -> must be whole numbers above 1
analyse --groups 3 --credits grpo,nested -> nested needs a multiple of 2, 4 at least
train --out filled RUN -> is a folder, where a run writes a file
analyse --groups 1000000000 -> at most 4,096
analyse --out notes.txt -> is not a CSV file
analyse --out figure.png -> use the suffix .csv
analyse --out figure.csv -> the figure beside the CSV file would overwrite it
analyse --out empty -> is a folder
analyse --coarse -> --coarse is an option of --map
analyse --jobs 2 -> --jobs is an option of --map
analyse --seed 0 -> --seed is an option of --map
analyse --signs --cells warm -> --cells is an option of --map
analyse --signs --batches 2 -> --batches does not change what --signs measures
analyse --signs --out notes.txt -> is not a CSV file
analyse --signs --groups 3 --credits grpo,nested -> nested needs a multiple of 2, 4 at least
analyse --seed 3 -> --seed is an option of --map and --reads
analyse --reads --signs -> --signs does not change what --reads measures
analyse --reads --credits grpo -> --credits does not change what --reads measures
analyse --reads --groups 8 -> --groups does not change what --reads measures
analyse --reads --pools 8 -> --pools does not change what --reads measures
analyse --reads --batches 8 -> --batches does not change what --reads measures
analyse --reads --coarse -> --coarse is an option of --map
analyse --reads --jobs 2 -> --jobs is an option of --map
analyse --reads --seed -1 -> whole numbers above -1
analyse --reads --limit 2 -> 2 queries of 2 groups are too few
analyse --reads --checkpoint nowhere -> no policy here
analyse --reads --checkpoint base -> name it with --model
analyse --reads --model y -> is a tiny one
analyse --reads --task nope -> task 'nope' is not known
analyse --reads --out notes.txt -> is not a CSV file
analyse --map --reads -> --reads does not change what --map measures
analyse --map --signs -> --signs does not change what --map measures
analyse --map --groups 8 -> --groups does not change what --map measures
analyse --map --pools 8 -> --pools does not change what --map measures
analyse --map --split test -> --split does not change what --map measures
analyse --map --limit 9 -> --limit does not change what --map measures
analyse --map --task task.jsonl -> --task goes with --checkpoint
analyse --map --device cpu -> --device goes with --checkpoint
analyse --map --checkpoint LAB --coarse -> --coarse is about several cells
analyse --map --checkpoint LAB --jobs 2 -> --jobs is about several cells
analyse --map --checkpoint nowhere -> no policy here
analyse --map --coarse --cells warm -> leave out one of them
analyse --map --cells zz -> cell 'zz' is not known; choose from cold
analyse --map --cells warm,warm -> names 'warm' twice
analyse --map --credits nested -> several rankings of a slate
analyse --map --credits zz -> credit 'zz' is not known
analyse --map --groups-per-cell 4 -> must be at least 8
analyse --map --resume -> name its file
analyse --map --seed -1 -> whole numbers above -1
analyse --map --out notes.txt -> is not a CSV file
analyse --map --out figure.csv -> the figure beside the CSV file would overwrite it
bench --prompt 1000000000 -> at most 65,536
bench --prompt 20 -> prompt 20 must be at least 67
bench --prompt a -> must be whole numbers
bench --completion 400 -> completion 400 must be from 15 to 74
bench --group 4,8,4 -> has a number twice
analyse --groups 2,2 -> has a number twice
bench --group 1000000000000 -> at most 65,536
bench --layers 100000 -> at most 1,000
bench --peers verl -> the one peer is trl
bench --scaling --prompt 128 -> --prompt does not change what --scaling measures
bench --scaling --peers trl -> --peers does not change what --scaling measures
bench --device abacus -> device 'abacus' cannot be used
bench --out task.jsonl -> is not a CSV file
bench --threads 0 -> above 0
data -> required: ACTION
data check -> required: file
data check none.jsonl -> none.jsonl
data stats --task task.jsonl --data empty -> --data is for tasks
data build --out mine -> mine/train.jsonl: is not a lab-rec file of this kit and would be overwritten
data stats --date 2020-01-01 -> --date is for a pretrained policy
data stats --skip-bad -> --skip-bad is for JSONL files
data stats --passage-tokens 4 -> --passage-tokens is for a pretrained policy
data fetch netflix -> invalid choice
data fetch-model gpt -> invalid choice
""")
EMPTY = [
    ["train", "--out", ""], ["train", "--out", "x", "--init", ""], ["train", "--out", "x", "--model", ""],
    ["evaluate", "--checkpoint", " "], ["evaluate", "--checkpoint", "run", "--trec", ""],
    ["compare", "--out", ""], ["trace", "--checkpoint", "run", "--out", ""],
    ["data", "build", "--out", ""], ["data", "fetch", "lastfm", "--out", ""],
    ["data", "fetch-model", "smollm2", "--out", ""],
]  # fmt: skip
"""what an unset variable of a shell leaves of a call"""


def test_there_are_more_than_a_hundred() -> None:
    commands = {call[0] for call, _ in CALLS}
    assert (
        len(CALLS) > 150 and {"demo", "train", "evaluate", "trace", "compare", "analyse", "bench", "data"} <= commands
    )


@pytest.mark.parametrize(
    ("argv", "said"),
    [*CALLS, *((call, "this one is empty") for call in EMPTY)],
    ids=lambda x: x[:60] if isinstance(x, str) else " ".join(x)[:80],
)
def test_a_bad_call_gets_one_line_and_changes_nothing(home: Path, monkeypatch, capsys, argv, said) -> None:
    monkeypatch.chdir(home)
    before = snapshot(home)
    status = main(argv)
    out, err = capsys.readouterr()
    assert status == 2 and said in err, err
    assert err.startswith("fgrpo: ") and err.count("\n") == 1 and "Traceback" not in err and not out
    assert snapshot(home) == before


@pytest.mark.parametrize(("rank", "size"), [("x", "2"), ("0", "y"), ("2", "2"), ("-1", "2"), ("", "1"), ("0", "1e3")])
def test_variables_that_no_launcher_sets_get_one_line(monkeypatch, capsys, rank, size) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    assert main(["train", "--out", "x"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"fgrpo: RANK {rank!r} and WORLD_SIZE {size!r} are not") and err.count("\n") == 1
