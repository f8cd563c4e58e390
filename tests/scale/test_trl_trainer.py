"""TRL with the kit's credit: what reaches its loss, groups over processes, what is refused."""

import json
import random
import re
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fgrpo.config import Config, GrammarConfig, KitError, LMConfig, RLConfig
from fgrpo.credit import zero_variance
from fgrpo.data import Example
from fgrpo.lm.index_labels import IndexLabels
from fgrpo.lm.pretrained import PretrainedPolicy
from fgrpo.loss import policy_loss
from fgrpo.policy import Policy, Prompts, Sampling
from fgrpo.prompt import PHASE_RANK, PHASE_SLATE, parse
from fgrpo.rewards import ndcg, pad, pool_gains, recall
from fgrpo.rollout import Rollouts
from fgrpo.runs.fields import config_with
from fgrpo.runs.policies import load_policy, write_policy
from fgrpo.runs.sft import sft_step
from fgrpo.scale.trl_options import (
    TESTED,
    check_advantages,
    check_options,
    check_trained,
    check_trl,
    example_of_row,
    grpo_options,
    trl_rows,
)
from fgrpo.tasks.jsonl import write_jsonl
from tests.families import examples, policy_of, save_model
from tests.processes import launch

RL = RLConfig(credit="fgrpo", decoding="free", group=8, lr=1e-3, temperature=0.9)
GRAMMAR = GrammarConfig(slate_size=3, rank_size=2)
FILMS = [f"film {n}" for n in range(8)]
SHOWN = [((0,), (0,)), ((1, 2), (2, 1)), ((3, 4, 5), (5,))]


def some_queries(count: int) -> list[Example]:
    rng = random.Random(0)
    return [
        Example(f"q{n}", "", (), tuple(rng.sample(FILMS, 8)), frozenset(rng.sample(range(8), 2))) for n in range(count)
    ]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy that was taught the output language without a grammar, so that it also writes it by itself."""

    def shown(examples: Sequence[Example], config: Config, generators: Sequence[torch.Generator]) -> list[tuple]:
        found = []
        for example, generator in zip(examples, generators, strict=True):
            at = [example.candidates.index(film) for film in FILMS]
            slate, rank = SHOWN[int(torch.randint(3, (), generator=generator))]
            found.append(([at[i] for i in slate], [at[i] for i in rank]))
        return found

    config = config_with(decoding="free", hidden_size=32, layers=1, heads=2, slate_size=3, rank_size=2)
    policy, queries = Policy.tiny(FILMS, config.model), some_queries(16)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
    for number in range(40):
        sft_step(policy, optimizer, queries, config, number, demonstrate=shown)
    write_policy(policy, tmp_path_factory.mktemp("taught"))
    return tmp_path_factory.getbasetemp() / "taught0"


def trainer_of(policy: Policy, rl: RLConfig, folder: Path, queries: list[Example], batch: int, **more):
    from datasets import Dataset
    from trl import GRPOConfig

    from fgrpo.scale.trl import FGRPOTrainer

    options = {
        "output_dir": str(folder), "use_cpu": True, "report_to": [], "gradient_checkpointing": False, "bf16": False,
        "per_device_train_batch_size": batch, "per_device_eval_batch_size": batch, "save_strategy": "no",
        "logging_steps": 1, "disable_tqdm": True, "seed": 1,
    }  # fmt: skip
    args = GRPOConfig(**grpo_options(rl, GRAMMAR, policy.labels, queries, **{**options, **more}))
    rows = trl_rows(queries, policy.labels, GRAMMAR)
    return FGRPOTrainer(
        deepcopy(policy.model), args, Dataset.from_list(rows), labels=policy.labels, rl=rl, grammar=GRAMMAR,
        processing_class=policy.tokenizer,
    )  # fmt: skip


def batch_of(trainer, queries: list[Example], group: int) -> dict:
    """What TRL hands to its loss for these queries."""
    rows = trl_rows(queries, trainer.labels, GRAMMAR)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer._generate_and_score_completions([dict(row) for row in rows for _ in range(group)])


def rollouts_of(policy: Policy, queries: list[Example], batch: dict, group: int) -> Rollouts:
    """The same rollouts for the kit's own loss."""
    ids, mask = batch["completion_ids"], batch["completion_mask"].bool()
    prompts = Prompts(
        batch["prompt_ids"][::group], batch["prompt_mask"][::group].bool(), policy.labels.choices(queries)
    )
    sampling = Sampling(GRAMMAR, constrained=False, temperature=RL.temperature)
    with torch.no_grad():
        logp, _ = policy.logprobs(prompts, ids, mask, sampling)
    return Rollouts(prompts, ids, mask, policy.labels.phases(ids, mask), logp, [], group, sampling)


def test_a_row_keeps_graded_gains() -> None:
    graded = Example("q", "", (), tuple(FILMS), (1, 6), gains=(0, 2, 0, 0, 0, 0, 0.5, 0))
    for example in (graded, replace(graded, gains=())):
        (row,) = trl_rows([example], Policy.tiny(FILMS, Config().model).labels, GRAMMAR)
        assert example_of_row(row) == example


def gradient(model) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None])
    model.zero_grad()
    return found


def test_gradients_by_phase_are_those_of_the_kits_own_loss(tmp_path: Path, taught: Path) -> None:
    policy, queries = load_policy(taught), some_queries(3)
    trainer = trainer_of(policy, RL, tmp_path, queries, 24)
    torch.manual_seed(1)
    batch = batch_of(trainer, queries, 8)
    rollouts = rollouts_of(policy, queries, batch, 8)
    advantages, shape = batch["advantages"], batch["completion_ids"].shape
    assert advantages.shape == shape and shape[0] == 24

    # the paper's credit, by hand
    texts = [policy.labels.text(row[row != policy.pad].tolist()) for row in batch["completion_ids"]]
    pools = [{label: i for i, label in enumerate(policy.labels.candidates(q))} for q in queries for _ in range(8)]
    outputs = [parse(text, pool, GRAMMAR) for text, pool in zip(texts, pools, strict=True)]
    slate_fault, rank_fault = (torch.tensor([bool(o.error) and bool(o.slate) == b for o in outputs]) for b in (0, 1))
    assert slate_fault.any() or rank_fault.any()
    gains = pool_gains(queries).unsqueeze(1)
    slate = recall(pad([o.slate for o in outputs], 3).view(3, 8, -1), gains) - 0.5 * slate_fault.view(3, 8)
    rank = ndcg(pad([o.rank for o in outputs], 2).view(3, 8, -1), gains, 2) - 0.5 * rank_fault.view(3, 8)
    expected = torch.zeros(shape)
    for reward, phase in ((slate, PHASE_SLATE), (rank, PHASE_RANK)):
        centred = (reward - reward.mean(1, keepdim=True)).reshape(24, 1)
        expected += centred * (rollouts.phase == phase)
    assert torch.allclose(advantages, expected, atol=1e-6) and advantages.unique().numel() > 4
    logged = trainer._metrics["train"]
    assert logged["zero_variance/slate"] == [zero_variance(slate).float().mean().item()]
    assert logged["zero_variance/rank"] == [zero_variance(rank).float().mean().item()]
    assert logged["rewards/rank/mean"] == pytest.approx([(rank + 0.5 * rank_fault.view(3, 8)).mean().item()])

    longest = trainer.args.max_completion_length
    assert longest == policy.labels.choices(queries).longest(GRAMMAR)
    for which in (None, PHASE_SLATE, PHASE_RANK):
        chosen = advantages if which is None else advantages * (rollouts.phase == which)
        loss = trainer.compute_loss(trainer.model, {**batch, "advantages": chosen})
        loss.backward()
        own, _ = policy_loss(policy, rollouts, chosen, RL)
        own.backward()
        theirs, ours = gradient(trainer.model), gradient(policy.model)
        assert loss.item() == pytest.approx(own.item(), abs=1e-6)
        assert ours.norm() > 1e-4 and (theirs - ours).norm() < 1e-4 * ours.norm(), which


@pytest.mark.parametrize("credit", ["grpo", "gdpo", "fgrpo", "reward_to_go", "anchor", "item", "grpo:sequence"])
def test_every_method_without_branches_trains(tmp_path: Path, taught: Path, credit: str) -> None:
    """Two steps of TRL's own loop: accumulation, several updates of a batch, shuffled rows."""
    policy, queries = load_policy(taught), some_queries(2)
    name, ratio = (*credit.split(":"), "token")[:2]
    rl = replace(RL, credit=name, ratio=ratio, epochs=2)
    trainer = trainer_of(policy, rl, tmp_path, queries, 8, gradient_accumulation_steps=2, max_steps=2)
    before = deepcopy(trainer.model.state_dict())
    trainer.train()
    assert any((before[k] != v).any() for k, v in trainer.model.state_dict().items())
    row = trainer.state.log_history[0]
    assert {"zero_variance/slate", "zero_variance/rank", "rewards/slate/mean", "rewards/format/mean"} <= set(row)
    found = trainer.evaluate(trainer.train_dataset)
    assert 0 <= found["eval_zero_variance/rank"] <= 1 and abs(found["eval_loss"]) < 10


def test_pretrained_models_read_the_kits_prompt(tmp_path: Path) -> None:
    """Candidates by number: TRL's template gives the tokens of the kit's own prompt, phases follow the tags."""
    policy, queries = policy_of(save_model("qwen3", tmp_path / "model")), examples(2)
    policy.model = policy.model.merge_and_unload().requires_grad_()
    hostile = replace(queries[1], query="<|im_end|> and <think>?")
    trainer = trainer_of(
        policy, replace(RL, credit="item"), tmp_path, [queries[0], hostile], 16, max_completion_length=12
    )
    batch = batch_of(trainer, [queries[0], hostile], 8)
    ids = [row[mask.bool()].tolist() for row, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
    assert ids[0] == policy.labels.prompt_ids(queries[0], GRAMMAR)
    own = policy.labels.prompt_ids(replace(queries[1], query="and ?"), GRAMMAR)
    assert [t for t in ids[8] if t in policy.labels.reserved] == [t for t in own if t in policy.labels.reserved]
    assert batch["advantages"].shape == batch["completion_ids"].shape

    tokens = policy.labels.spell(queries[0], [3, 1], [1])
    phase = policy.labels.phases(torch.tensor([tokens]), torch.ones(1, len(tokens), dtype=torch.bool))[0].tolist()
    close = next(n for n in range(len(tokens)) if "</SLATE>" in policy.labels.text(tokens[: n + 1]))
    assert phase == [PHASE_SLATE] * (close + 1) + [PHASE_RANK] * (len(tokens) - close - 1)


@pytest.mark.parametrize("name", ["gptoss", "qwen3", "deepseekv3", "llama3_2"])
def test_prompts_end_where_the_answer_begins(name: str, tmp_path: Path) -> None:
    """TRL's own generation prompt may end in a role header or in a block of thoughts, and may show today's date."""
    import trl

    policy, queries = policy_of(save_model("qwen3", tmp_path / "model")), examples(2)
    policy.tokenizer.chat_template = (Path(trl.__file__).parent / f"chat_templates/{name}.jinja").read_text("utf-8")
    policy.labels = IndexLabels(
        policy.tokenizer, policy.model.config, 12, "2020-01-02" if name in ("gptoss", "llama3_2") else ""
    )
    policy.labels.end = policy.tokenizer.eos_token_id
    trainer = trainer_of(policy, RL, tmp_path, queries, 16, max_completion_length=8)
    batch = batch_of(trainer, queries, 8)
    ids = batch["prompt_ids"][0][batch["prompt_mask"][0].bool()].tolist()
    text = policy.tokenizer.decode(ids)
    assert ids == policy.labels.prompt_ids(queries[0], GRAMMAR)
    ends = {"gptoss": "<|channel|>final<|message|>", "qwen3": "</think>\n\n", "deepseekv3": "Assistant｜>"}
    assert text.endswith(ends.get(name, "assistant<|end_header_id|>\n\n"))
    assert ("2020" in text) == (name in ("gptoss", "llama3_2"))


def frozen(model) -> None:
    for p in model.parameters():
        p.requires_grad_(False)


def another_adapter(model) -> None:
    """A trainable adapter that is not the active one."""
    model.add_adapter("second", model.peft_config["default"])
    frozen(model)
    for n, p in model.named_parameters():
        p.requires_grad_("second" in n)


def frozen_layers(model) -> None:
    """Trainable weights in a layer that the forward pass never reaches."""
    frozen(model)
    model.unused = torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    "change",
    [frozen, another_adapter, frozen_layers, lambda m: m.base_model.disable_adapter_layers(),
     lambda m: m.merge_adapter(), lambda m: m.merge_and_unload()],
    ids=["is_trainable=False", "not active", "not reached", "switched off", "merged", "merged and unloaded"],
)  # fmt: skip
def test_a_model_that_would_not_be_trained_is_refused(change, tmp_path: Path) -> None:
    policy = policy_of(save_model("smollm2", tmp_path / "model"))
    check_trained(policy.model)
    assert all(p.grad is None for p in policy.model.parameters())
    policy.model = change(policy.model) or policy.model
    with pytest.raises(KitError, match=r"training would change no weight .*is_trainable=True"):
        trainer_of(policy, RL, tmp_path, examples(2), 8)


def test_a_loaded_adapter_is_trained_only_if_it_is_trainable(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = save_model("smollm2", tmp_path / "model")
    policy = policy_of(folder)
    policy.model.save_pretrained(tmp_path / "adapter")
    for trainable in (True, False):
        base = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
        policy.model = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=trainable)
        if trainable:
            trainer_of(policy, RL, tmp_path, examples(2), 8)
            continue
        with pytest.raises(KitError, match="training would change no weight"):
            trainer_of(policy, RL, tmp_path, examples(2), 8)


def test_a_folder_that_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    policy = policy_of(save_model("smollm2", tmp_path / "model"))
    policy.model.save_pretrained(tmp_path / "adapter")
    policy.model = str(tmp_path / "adapter")
    with pytest.raises(KitError, match="holds an adapter"):
        trainer_of(policy, RL, tmp_path, examples(2), 8)


def test_groups_over_two_processes_have_the_credit_of_whole_groups(tmp_path: Path, taught: Path) -> None:
    """Groups of 8, 4 rows a process: each process holds half of a group."""
    launch("tests.scale.test_trl_trainer", tmp_path, taught)
    a, b = (json.loads((tmp_path / f"{n}.json").read_text()) for n in range(2))
    assert a["weights"] == b["weights"] and a["logged"] == b["logged"]
    policy, (query,) = load_policy(taught), some_queries(1)
    labels = {label: i for i, label in enumerate(policy.labels.candidates(query))}
    assert a["query"] == b["query"] == query.id
    outputs = [parse(policy.labels.text(row), labels, GRAMMAR) for part in (a, b) for row in part["completions"]]
    assert len({o.slate for o in outputs}) > 1
    gains = pool_gains([query]).unsqueeze(1)
    reward = recall(pad([o.slate for o in outputs], 3).view(1, 8, -1), gains)[0]
    reward -= torch.tensor([0.5 * bool(o.error) for o in outputs])
    found = torch.tensor([row[0] for part in (a, b) for row in part["advantages"]])  # of the first token, `<SLATE>`
    assert torch.allclose(found, reward - reward.mean(), atol=1e-6)


def test_the_example_of_the_rooms_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny model, a CPU and without vLLM; its DeepSpeed configuration is one that accelerate reads."""
    from accelerate.commands.config.config_args import load_config_from_file

    readme = (Path(__file__).parents[2] / "fgrpo/scale/README.md").read_text()
    script, yaml = (readme.split(f"```{kind}\n")[1].split("```")[0] for kind in ("python", "yaml"))
    save_model("qwen3", tmp_path / "model")
    write_jsonl(tmp_path / "task.jsonl", examples(10))
    for old, new in {
        'task="musique", data="DIR"': 'task="task.jsonl", slate_size=4, rank_size=2, passage_tokens=8',
        "Qwen/Qwen3-4B-Instruct-2507": "model",
        '"bf16": True, "use_vllm": True, "vllm_mode": "colocate"': '"bf16": False, "use_cpu": True, "report_to": []',
        '"max_steps": 200': '"max_steps": 1',
    }.items():  # fmt: skip
        assert old in script
        script = script.replace(old, new)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "grpo.py", "exec"), {})
    policy = PretrainedPolicy.new(LMConfig(model="runs/trl/policy"))
    assert policy.labels.end == policy.tokenizer.eos_token_id
    (tmp_path / "zero2.yaml").write_text(yaml)
    read = load_config_from_file(str(tmp_path / "zero2.yaml"))
    assert read.distributed_type == "DEEPSPEED" and read.deepspeed_config["zero_stage"] == 2


def options(rl: RLConfig = RL, **more) -> SimpleNamespace:
    labels = SimpleNamespace(choices=lambda examples: SimpleNamespace(longest=lambda grammar: 20))
    plain = {"use_vllm": False, "vllm_importance_sampling_correction": True, "off_policy_mask_threshold": None,
             "multi_objective_aggregation": "sum_then_normalize", "remove_unused_columns": False}  # fmt: skip
    return SimpleNamespace(**{**plain, **grpo_options(rl, GRAMMAR, labels, [], **more)})  # type: ignore[arg-type]


VLLM = {"use_vllm": True, "vllm_importance_sampling_mode": "sequence_mask"}


@pytest.mark.parametrize(
    ("rl", "more", "reason"),
    [
        (replace(RL, credit="nested", rankings=2), {}, "cannot do: use the kit's own trainer"),
        (replace(RL, decoding="constrained"), {}, "decoding 'free'"),
        (replace(RL, ratio="phase"), {}, "not by phase"),
        (replace(RL, rank_noise=1.0), {}, "reward noise"),
        (RL, {"importance_sampling_level": "sequence"}, "averages the phases of 'fgrpo' into one"),
        (replace(RL, credit="item"), {"importance_sampling_level": "sequence"}, "averages the phases of 'item'"),
        (RL, VLLM, "choose 'token_truncate'"),
        (RL, {"loss_type": "grpo"}, "own length"),
        (RL, {"loss_type": "luspo"}, "whole completions"),
        (RL, {"scale_rewards": "group"}, "would be ignored"),
        (RL, {"multi_objective_aggregation": "normalize_then_sum"}, "credit 'gdpo' does that"),
        (RL, {"off_policy_mask_threshold": 0.1}, "off_policy_mask_threshold"),
        (RL, {"remove_unused_columns": True}, "leave it False"),
        (RL, {"beta": 0.1}, "GRPOConfig has beta 0.1, but RLConfig has 0.0"),
        (RL, {"num_generations": 4}, "num_generations 4"),
        (replace(RL, ratio="sequence"), {}, "averages the phases"),
    ],
)
def test_what_undoes_the_credit_is_refused_with_the_reason(rl: RLConfig, more: dict, reason: str) -> None:
    with pytest.raises(KitError, match=reason) as error:
        check_options(options(rl, **more), rl)
    assert "\n" not in str(error.value)


def test_what_fits_is_not_refused() -> None:
    check_options(options(), RL)
    joint = replace(RL, credit="grpo", ratio="sequence")
    check_options(options(joint), joint)
    check_options(options(use_vllm=True), RL)


def test_what_trl_lacks_is_named() -> None:
    """Not its version counts, but what the trainer relies on."""
    from trl import GRPOConfig, GRPOTrainer

    check_trl(GRPOTrainer, GRPOConfig)

    class Renamed(GRPOTrainer):
        _tokenize_prompts = None

    class Other(GRPOTrainer):
        def _generate_and_score_completions(self, batch):
            return batch

    class NoScale:
        def __init__(self, use_vllm=False, loss_type=""): ...

    for trainer, config, what in (
        (Renamed, GRPOConfig, r"lacks GRPOTrainer\._tokenize_prompts, on which"),
        (Other, GRPOConfig, r"lacks GRPOTrainer\._generate_and_score_completions with the argument 'inputs'"),
        (GRPOTrainer, NoScale, "lacks the option 'vllm_importance_sampling_correction' of GRPOConfig"),
    ):
        with pytest.raises(KitError, match=f"^TRL [0-9.]+.* {what}.*pip install 'trl{re.escape(TESTED)}'"):
            check_trl(trainer, config)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            lambda loss, model, inputs: loss(model, {**inputs, "advantages": inputs["advantages"].unsqueeze(1)}),
            "per token",
        ),
        (lambda loss, model, inputs: loss(model, {**inputs, "advantages": inputs["advantages"].mean(1)}), "per token"),
        (lambda loss, model, inputs: torch.zeros((), requires_grad=True), "per token"),
        (lambda loss, model, inputs: inputs["completions"], "be asked .*completions"),
    ],
    ids=["over the batch", "by completion", "no gradient", "another batch"],
)
def test_a_loss_that_takes_no_advantage_per_token_is_refused(change, what: str, tmp_path: Path, taught: Path) -> None:
    trainer = trainer_of(load_policy(taught), RL, tmp_path, some_queries(2), 8)
    before = deepcopy({k: dict(v) for k, v in trainer._metrics.items()}), vars(trainer).keys()
    check_advantages(trainer)
    assert ({k: dict(v) for k, v in trainer._metrics.items()}, vars(trainer).keys()) == before  # leaves no trace
    changed = type("Changed", (type(trainer),), {
        "compute_loss": lambda self, model, inputs, **more: change(super(type(self), self).compute_loss, model, inputs)
    })  # fmt: skip
    trainer.__class__ = changed
    with pytest.raises(KitError, match=f"^TRL .* lacks a loss .*{what}"):
        check_advantages(trainer)


def test_the_tested_versions_are_those_that_pip_installs() -> None:
    extras = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert extras.count(f'"trl{TESTED}"') == 2


def test_async_grpo_is_refused(tmp_path: Path) -> None:
    from trl.experimental.async_grpo import AsyncGRPOConfig

    from fgrpo.scale.trl import FGRPOTrainer

    args = AsyncGRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[])
    with pytest.raises(KitError, match=r"args is a AsyncGRPOConfig, .*AsyncGRPO is not covered"):
        FGRPOTrainer("model", args, [], labels=None, rl=RL)  # type: ignore[arg-type]


def worker(folder: Path, taught: Path) -> None:
    """One of two processes: a batch of one query whose group lies on both, then a step of TRL's loop."""
    torch.set_num_threads(1)
    policy, queries = load_policy(taught), some_queries(1)
    trainer = trainer_of(policy, RL, folder / "run", queries, 4, max_steps=1)
    seen: list[dict] = []
    whole = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda rows: seen.append({**whole(rows), "rows": rows}) or seen[-1]
    prepare = trainer._prepare_inputs
    trainer._prepare_inputs = lambda rows: {k: v for k, v in prepare(rows).items() if k != "rows"}
    trainer.train()
    logged = {k: v for k, v in trainer.state.log_history[0].items() if "zero_variance" in k or "reward" in k}
    mask = seen[0]["completion_mask"].bool()
    (folder / f"{trainer.accelerator.process_index}.json").write_text(json.dumps({
        "completions": [row[m].tolist() for row, m in zip(seen[0]["completion_ids"], mask, strict=True)],
        "advantages": seen[0]["advantages"].tolist(), "query": seen[0]["rows"][0]["query"], "logged": logged,
        "weights": sum(p.double().sum().item() for p in trainer.model.parameters()),
    }))  # fmt: skip


if __name__ == "__main__":
    worker(Path(sys.argv[1]), Path(sys.argv[2]))
