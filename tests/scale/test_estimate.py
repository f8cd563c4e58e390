"""Plans: counts are those of a real run, memory and time are checked against measured steps, presets are the paper's."""

import ctypes
import json
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fgrpo.cli.main import COMMANDS, main
from fgrpo.cli.options import config_of, parser_of
from fgrpo.config import Config, KitError, LMConfig, ModelConfig
from fgrpo.data import Example, Splits
from fgrpo.lm.pretrained import PretrainedPolicy
from fgrpo.policy import Policy, Sampling
from fgrpo.rollout import rollout
from fgrpo.runs.fields import config_with
from fgrpo.runs.policies import new_policy
from fgrpo.runs.presets import LADDER, RECIPES
from fgrpo.runs.sft import sft_step
from fgrpo.runs.warm_start import fits_shipped
from fgrpo.scale.bench import _status
from fgrpo.scale.estimate import RATES, Tokens, format_plan, memory_of, plan, seconds_of, shape_of, tokens_of
from fgrpo.tasks.jsonl import write_jsonl
from fgrpo.tasks.lab import lab_catalogue
from fgrpo.tasks.reading import catalogue
from fgrpo.trainer import step
from tests.families import FAMILIES, examples, policy_of, save_model

WIDE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3, "head_dim": 64}


def long_examples(count: int, words: int) -> list[Example]:
    rng = random.Random(0)
    texts = [
        " ".join([str(n), *rng.choices(["film", "orbit", "vault", "mesa"], k=words - 1)]) for n in range(20 * count)
    ]
    return [Example(f"q{n}", "Which?", (), tuple(texts[20 * n : 20 * n + 20]), frozenset({1, 5})) for n in range(count)]


def config_for(folder: Path | str, **options) -> Config:
    return config_with(
        model=str(folder), **{"group": 8, "queries": 2, "lora_rank": 4, "passage_tokens": 200, **options}
    )


def run(capsys, *options: str) -> dict:
    assert main(["train", *options, "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_tiny_policy_is_planned(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = run(capsys, "--hidden-size", "32", "--heads", "2", "--layers", "1", "--steps", "7", "--queries", "5")
    # the shipped warm start is of other sizes, so that one is made
    assert found["steps"] == {"sft": 1000, "rl": 7, "rollouts": 280} and found["task"]["test"] == 2048
    policy = Policy.tiny([film.title for film in lab_catalogue()], ModelConfig(32, 1, 2))
    assert found["model"]["weights"] == found["model"]["trained"] == sum(p.numel() for p in policy.model.parameters())
    memory = found["memory_gb"]
    assert memory.pop("total") == pytest.approx(sum(memory.values())) and min(memory.values()) == memory["weights"] == 0
    assert run(capsys)["steps"]["sft"] == 0 and run(capsys, "--sft")["steps"] == {"sft": 1000, "rl": 0, "rollouts": 0}
    assert main(["train", "--dry-run", "--sft", "--init", "elsewhere"]) == 2
    assert "leave out one of them" in capsys.readouterr().err
    assert main(["train", "--dry-run"]) == 0
    assert "train 16,384" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert main(["train"]) == 2 and "--out" in capsys.readouterr().err


def test_a_pretrained_model_is_planned(capsys, tmp_path) -> None:
    folder = save_model("smollm2", tmp_path / "model")
    write_jsonl(tmp_path / "task.jsonl", long_examples(20, 2))
    options = ["--task", str(tmp_path / "task.jsonl"), "--model", str(folder), "--lora-rank", "3", "--slate-size", "6"]
    before = sorted(tmp_path.rglob("*"))
    found = run(capsys, *options, "--steps", "4", "--queries", "8")
    policy = policy_of(folder, lora_rank=3)
    trained = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    assert found["model"]["trained"] == trained
    assert found["model"]["weights"] == sum(p.numel() for p in policy.model.parameters()) - trained
    assert found["tokens"]["how"] == "counted" and [found["task"][name] for name in Splits._fields] == [16, 2, 2]
    assert found["steps"] == {"sft": 200, "rl": 4, "rollouts": 256} and found["config"]["rl"]["lr"] == 2e-5
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["train", *options, "--dry-run", "--lora-targets", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err
    assert main(["train", *options, "--dry-run", "--slate-size", "21"]) == 2
    assert "slate_size 21" in capsys.readouterr().err


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("targets", ["all-linear", "q_proj,v_proj"])
def test_counted_weights_are_those_of_the_policy(tmp_path, name, targets) -> None:
    folder = save_model(name, tmp_path / name)
    policy = policy_of(folder, lora_targets=targets)
    config = config_for(folder, lora_targets=targets)
    shape = shape_of(config, [])
    rollout(policy, examples(), Sampling(config.grammar), 2, 0)  # which finds out whether prompts are shared
    trained = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    assert shape.trained == trained and shape.shared == policy.share
    assert shape.weights == sum(p.numel() for p in policy.model.parameters()) - trained


def peak_of_a_step(config: Config, words: int) -> tuple[float, float]:
    """(estimated, measured) bytes that an RL step adds to the process; weights and optimizer are in memory before it."""
    torch.set_num_threads(1)
    queries = long_examples(4, words)
    policy = new_policy([], config)
    optimizer = torch.optim.AdamW([p for p in policy.model.parameters() if p.requires_grad], lr=0.0)
    tokens = tokens_of(config, Splits(queries, [], []), [])
    step(policy, optimizer, long_examples(2, 2), config)  # what only the first step allocates
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step(policy, optimizer, queries[:2], config, 1)
    parts = memory_of(shape_of(config, []), tokens, config)
    parts.pop("weights"), parts.pop("trained")
    return sum(parts.values()), (_status("VmHWM") - before) * 1e3


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_is_within_a_factor_of_two_of_a_measured_step(tmp_path) -> None:
    """Once with the prompt's layers kept, once with them run again."""
    folder = save_model("smollm2", tmp_path / "model", **WIDE)
    cases = {6: 0, 26: 1}  # words of a candidate: queries held at a time
    configs = [config_for(folder, micro=micro, full=True) for micro in cases.values()]  # completions of full length
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:  # none inherits memory
        for estimated, measured in pool.map(peak_of_a_step, configs, cases):
            assert measured > 2e7 and measured / 2 < estimated < 2 * measured, (estimated, measured)


def saved_bytes(model: torch.nn.Module, ids: torch.Tensor) -> int:
    """Bytes of what a forward pass keeps for its backward pass, weights apart, shared storage counted once."""
    weights, kept = {p.data_ptr() for p in model.parameters()}, {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids, use_cache=False, logits_to_keep=1)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    "name, dtype, rank",
    [
        ("qwen3", "float32", 4), ("qwen3", "bfloat16", 4), ("smollm2", "bfloat16", 4), ("qwen3", "float32", 0),
        ("smollm2", "bfloat16", 0),
    ],
)  # fmt: skip
def test_bytes_kept_by_a_layer_are_those_of_the_estimate(tmp_path, name, dtype, rank) -> None:
    """Tensors saved for the backward pass of one more layer, by size."""
    kept = []
    for layers in (2, 3):
        folder = save_model(name, tmp_path / f"{layers}", num_hidden_layers=layers)
        lm = LMConfig(model=str(folder), dtype=dtype, lora_rank=rank)
        policy = PretrainedPolicy.new(lm)
        kept.append(saved_bytes(policy.model, torch.arange(512).view(1, 512) % 300) / 512)
    config = config_for(folder, dtype=dtype, lora_rank=rank)
    shape = shape_of(config, [])
    estimated = shape.kept + 2 * shape.size * (shape.keys + shape.queries)
    assert 2 / 3 < estimated / (kept[1] - kept[0]) < 3 / 2


def test_a_model_whose_weights_are_all_trained_is_planned(capsys, tmp_path) -> None:
    folder = save_model("smollm2", tmp_path / "model")
    weights = sum(p.numel() for p in PretrainedPolicy.new(LMConfig(model=str(folder), lora_rank=0)).parameters())
    for size, dtype in ((4, "float32"), (2, "bfloat16")):
        config = config_for(folder, lora_rank=0, dtype=dtype)
        shape, tokens = shape_of(config, []), Tokens(800, 2000, 60, 30)
        assert shape.trained == shape.weights == weights and (shape.pretrained, shape.adapter) == (True, False)
        memory = memory_of(shape, tokens, config)
        assert (memory["weights"], memory["trained"]) == (0, 4 * size * weights)  # weight, gradient, two moments
        penalised = replace(config, rl=replace(config.rl, beta=0.1))
        assert memory_of(shape, tokens, penalised) == {**memory, "weights": size * weights}  # a second, frozen copy
        assert memory_of(shape, tokens, penalised, sft=True)["weights"] == 0
    write_jsonl(tmp_path / "task.jsonl", long_examples(20, 2))
    options = ["--task", str(tmp_path / "task.jsonl"), "--model", str(folder), "--lora-rank", "0", "--slate-size", "6"]
    assert run(capsys, *options)["model"]["trained"] == weights
    with pytest.raises(KitError, match="lora_targets is for a LoRA adapter"):
        shape_of(config_for(folder, lora_rank=0, lora_targets="q_proj"), [])


@pytest.mark.parametrize("rank", [1, 0])
def test_time_is_that_of_the_counted_operations(tmp_path, rank) -> None:
    folder = save_model("smollm2", tmp_path / "model", **WIDE)
    config = config_for(folder, sft_batch=2, micro=2, lora_rank=rank)
    queries = long_examples(2, 6)
    policy = new_policy([], config)
    tokens = tokens_of(config, Splits(queries, [], []), [])
    shape = shape_of(config, [])
    optimizer = torch.optim.SGD([p for p in policy.model.parameters() if p.requires_grad], lr=0.0)
    sft_step(policy, optimizer, queries, config)  # the first step also compares two ways to compute
    with FlopCounterMode(display=False) as counter:
        sft_step(policy, optimizer, queries, config)
    estimated = seconds_of(shape, tokens, config, sft=True) * RATES["cpu"][0]
    assert 2 / 3 < estimated / counter.get_total_flops() < 3 / 2


def test_more_of_anything_takes_more(tmp_path) -> None:
    folder = save_model("qwen3", tmp_path / "model")
    config = config_for(folder, micro=1)
    shape, few = shape_of(config, []), Tokens(800, 1000, 60, 30)
    least = sum(memory_of(shape, few, config).values())
    for more in ({"group": 16}, {"decoding": "free"}):
        other = replace(config, rl=replace(config.rl, **more))
        assert sum(memory_of(shape, few, other).values()) > least
    assert sum(memory_of(shape, few, replace(config, lm=replace(config.lm, micro=2))).values()) > least
    assert sum(memory_of(shape, few, config, sft=True).values()) < least
    assert sum(memory_of(shape._replace(shared=False), few, config).values()) > 3 * least
    seconds = seconds_of(shape, few, config)
    assert 0 < seconds < seconds_of(shape, few, replace(config, rl=replace(config.rl, group=16))) < 2 * seconds
    assert seconds_of(shape._replace(shared=False), few, config) > 3 * seconds


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("paper-")])
def test_presets_are_the_papers_and_options_win(name) -> None:
    given = parser_of(COMMANDS).parse_args(["train", "--preset", name, "--group", "4", "--model", "mine"])
    config = config_of(given)
    assert (config.rl.group, config.lm.model, config.rl.lam, config.task) == (4, "mine", 1.0, name[len("paper-") :])
    plain = config_of(parser_of(COMMANDS).parse_args(["train", "--preset", name]))
    assert (plain.rl.group, plain.grammar.slate_size, plain.grammar.rank_size) == (8, 10, 5)
    assert plain.lm.dtype == "bfloat16" and "Qwen3-4B" in plain.lm.model and plain.device == "cuda"


def test_warm_starts_of_the_lab_are_a_ladder() -> None:
    """Three presets, each a warm start that is trained longer, the middle one shipped; options win."""
    found = {name: config_of(parser_of(COMMANDS).parse_args(["train", "--preset", name])) for name in LADDER}
    assert list(found) == ["lab-cold", "lab-warm", "lab-trained"] and {c.task for c in found.values()} == {"lab-rec"}
    steps = [c.sft.sft_steps for c in found.values()]
    assert steps == sorted(set(steps)) and [fits_shipped(c) for c in found.values()] == [False, True, False]
    assert found["lab-trained"].rl.lr < found["lab-warm"].rl.lr  # there is less to learn, and more to lose
    given = ["train", "--preset", "lab-trained", "--sft-steps", "7", "--lr", "1e-3"]
    assert (config := config_of(parser_of(COMMANDS).parse_args(given))).sft.sft_steps == 7 and config.rl.lr == 1e-3


def test_a_preset_is_planned_without_the_model_hub(monkeypatch) -> None:
    def no_hub(*args, **options):
        raise OSError("no hub")

    for kind in ("AutoConfig", "AutoTokenizer"):
        monkeypatch.setattr(f"transformers.{kind}.from_pretrained", no_hub)
    config = config_of(parser_of(COMMANDS).parse_args(["train", "--preset", "paper-musique"]))
    splits = Splits(long_examples(4, 80), long_examples(1, 80), [])
    found = plan(config, splits, catalogue(splits))
    assert found["tokens"]["how"].startswith("guessed") and found["model"]["weights"] == 4_022_468_096
    assert found["memory_gb"]["total"] < 80 and found["steps"]["sft"] == 200
    assert "guessed" in format_plan(found) and "not checked" in format_plan(found)
    with pytest.raises(KitError):
        plan(replace(config, lm=replace(config.lm, model="no/such-model")), splits, [])
