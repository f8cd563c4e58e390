"""Pretrained models as policies: every family samples, learns and repeats its log-probabilities; adapters alone move."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from fgrpo.cli.main import main
from fgrpo.config import Config, GrammarConfig, KitError, LMConfig, RLConfig
from fgrpo.credit import assign_credit
from fgrpo.lm.pretrained import PretrainedPolicy, give_memory_back, memory_kept
from fgrpo.loss import policy_loss, shared_log_ratio
from fgrpo.policy import Policy, Sampling
from fgrpo.prompt import PHASE_RANK, PHASE_SLATE
from fgrpo.rewards import score
from fgrpo.rollout import Rollouts, rollout
from fgrpo.runs.fields import config_with
from fgrpo.runs.policies import load_policy, new_policy, save_policy
from fgrpo.runs.run import Run, read_metrics
from fgrpo.runs.seal import seal
from fgrpo.runs.sft import sft_stage, sft_step
from fgrpo.runs.trace import read_trace
from fgrpo.tasks.jsonl import read_jsonl, write_jsonl
from fgrpo.trainer import fit, make_optimizer, rl_stage, step, update
from tests.families import FAMILIES, examples, policy_of, save_model

SAMPLING = Sampling(GrammarConfig(slate_size=6, rank_size=3), temperature=4.0)  # random models are very sure of theirs
TINY = {"slate_size": 6, "rank_size": 3, "queries": 3, "group": 4, "steps": 4, "sft_steps": 4, "sft_batch": 3,
        "lora_rank": 4, "lora_alpha": 8, "passage_tokens": 12, "lr": 1e-3, "temperature": 4.0}  # fmt: skip
SHARED = [name for name in FAMILIES if name != "qwen3_5"]


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in FAMILIES:
        save_model(name, folder / name)
    return folder


@pytest.fixture
def model(models) -> str:
    return str(models / "smollm2")


def sampled(policy: Policy, group: int = 4, sampling: Sampling = SAMPLING, **options) -> Rollouts:
    return rollout(policy, examples(), sampling, group, 0, **options)


def gradient(policy: Policy, r: Rollouts, advantages: torch.Tensor, shared: bool, config: RLConfig | None = None):
    kept, policy.share = policy.share, policy.share and shared
    policy.model.zero_grad(set_to_none=True)
    loss, _ = policy_loss(policy, r, advantages, config or RLConfig())
    loss.backward()
    policy.share = kept
    return loss.item(), {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}


def error(a: dict, b: dict) -> float:
    whole = torch.cat([g.flatten() for g in b.values()]).norm()
    assert a.keys() == b.keys() and whole > 0
    return max(float((a[n] - b[n]).norm() / torch.maximum(b[n].norm(), 1e-3 * whole)) for n in b)


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in policy.model.named_parameters()}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_samples_and_learns(models, name, capsys) -> None:
    policy = policy_of(models / name)
    r = sampled(policy)
    assert policy.share == (name in SHARED)
    assert not any(o.error for o in r.outputs) and len({len(o.slate) for o in r.outputs}) > 1
    assert any(max(o.slate) > 8 for o in sampled(policy, 32).outputs)  # labels of two digits are written
    end = {"q": "<|im_end|>", "l": "</s>", "s": "<|im_end|>", "g": "<end_of_turn>"}[name[0]]
    assert policy.tokenizer.convert_ids_to_tokens(policy.end) == end
    for shared in (True, False):
        logp, entropy = policy.logprobs(r.prompts, r.completions, r.mask, r.sampling, shared)
        assert (logp - r.logprobs).abs().max() < 1e-4 and (entropy > -1e-6).all()
    for b in (0, 5):  # one row by itself: neighbours and padding change nothing
        one, n = policy.encode([examples()[b // 4]], SAMPLING.grammar), int(r.mask[b].sum())
        logp, _ = policy.logprobs(one, r.completions[b : b + 1, :n], r.mask[b : b + 1, :n], r.sampling, shared=False)
        assert (logp[0] - r.logprobs[b, :n]).abs().max() < 1e-4
    advantages = (1 + torch.randn(r.logprobs.shape, generator=torch.Generator().manual_seed(1))) * r.mask
    (loss, shared), (plain_loss, plain) = (gradient(policy, r, advantages, way) for way in (True, False))
    assert abs(loss - plain_loss) < 1e-4 and error(shared, plain) < 1e-3
    config, before = config_with(**TINY), weights(policy)
    optimizer = make_optimizer(policy, sft_stage(config))
    losses = [sft_step(policy, optimizer, examples(), config)["loss"] for _ in range(3)]
    assert losses[-1] < losses[0]
    step(policy, make_optimizer(policy, rl_stage(config)), examples(), config)
    moved = {n for n, w in weights(policy).items() if not torch.equal(w, before[n])}
    assert moved and moved == {n for n in before if "lora" in n}


def test_forced_tokens_are_free_and_the_distribution_is_the_full_one_renormalised(models) -> None:
    """By hand at every token of a row: softmax over what the automaton allows, from logits of the whole vocabulary."""
    policy = policy_of(models / "smollm2")
    r = sampled(policy)
    logits = policy.completion_logits(r.prompts, r.completions, r.mask, r.group, shared=False)
    assert logits.shape[-1] == len(policy.tokenizer)
    choices = r.prompts.choices.repeat(r.group)
    for b in (0, 3, 11):
        progress = replace(choices, pools=choices.pools[b : b + 1]).progress(SAMPLING.grammar, True)
        for t in range(int(r.mask[b].sum())):
            allowed = choices.columns[progress.allowed()[0]].tolist()
            token = int(r.completions[b, t])
            by_hand = (logits[b, t, allowed] / SAMPLING.temperature).log_softmax(0)[allowed.index(token)].item()
            assert r.logprobs[b, t].item() == pytest.approx(by_hand, abs=1e-4)
            assert len(allowed) > 1 or r.logprobs[b, t] == 0
            progress.append(torch.tensor([0]), torch.tensor([token]))


def test_forced_tokens_take_no_step_and_the_prompt_is_encoded_once(models, monkeypatch) -> None:
    policy, fed = policy_of(models / "smollm2"), []
    inner = policy.model.get_base_model()
    forward = inner.forward
    monkeypatch.setattr(inner, "forward", lambda **k: fed.append(k["input_ids"].shape[1]) or forward(**k))
    r = sampled(policy, sampling=Sampling(GrammarConfig(slate_size=6, rank_size=3, full=True)))
    length = int(r.mask.sum(1).max())
    prompt, *steps = fed
    spelling = r.prompts.choices.spelling
    begun = len(spelling.tags[0]) + 1
    assert prompt == r.prompts.ids.shape[1] + begun  # the opening tag and the space before a number
    assert len(steps) < 0.6 * (length - begun)


@pytest.mark.parametrize("constrained", [True, False])
def test_kept_and_recomputed_prompts_give_the_plain_gradients(models, constrained, monkeypatch) -> None:
    policy = policy_of(models / "gemma3")
    r = sampled(policy, sampling=replace(SAMPLING, constrained=constrained), keep_prompts=True)
    assert r.tree is not None and r.tree.logits.requires_grad
    runs = []
    monkeypatch.setattr(
        "fgrpo.lm.pretrained.checkpoint",
        lambda *a, _real=torch.utils.checkpoint.checkpoint, **k: runs.append(1) or _real(*a, **k),
    )
    advantages = (1 + torch.randn(r.logprobs.shape, generator=torch.Generator().manual_seed(1))) * r.mask
    _, kept = gradient(policy, r, advantages, True)
    assert not runs
    _, plain = gradient(policy, r, advantages, False)
    _, short = gradient(policy, r, advantages, True)  # the tree is spent: encoded anew, and kept, since it is short
    assert not runs and error(short, plain) < 1e-3
    monkeypatch.setattr("fgrpo.lm.pretrained.RECOMPUTE_FROM", 0)
    _, again = gradient(policy, r, advantages, True)  # layer by layer
    assert len(runs) == 2 and error(kept, plain) < 1e-3 and error(again, plain) < 1e-3


@pytest.mark.parametrize("name", ["smollm2", "gemma2"])
def test_micro_batches_are_the_same_step(models, name) -> None:
    config = config_with(**TINY, beta=0.1, credit="fgrpo")
    gradients, logs = [], []
    for micro in (0, 1, 2):
        policy = policy_of(models / name)
        optimizer = torch.optim.SGD([p for p in policy.model.parameters() if p.requires_grad], lr=0.0)
        some = replace(config, lm=replace(config.lm, micro=micro))
        r = sampled(policy, micro=micro)
        advantages = assign_credit(score(r, examples(), config.rl), r, config.rl)
        loss, found = policy_loss(policy, r, advantages, config.rl)
        assert loss.item() == pytest.approx(found["loss"], abs=1e-6)
        update(policy, optimizer, loss, 1e9)
        gradients.append({n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None})
        logs.append(found["loss"])
        losses = [sft_step(policy, optimizer, examples(), some)["loss"]]
        logs.append(losses[0])
    assert error(gradients[1], gradients[0]) < 1e-3 and error(gradients[2], gradients[0]) < 1e-3
    assert logs[2:4] == pytest.approx(logs[:2], abs=1e-5) and logs[4:] == pytest.approx(logs[:2], abs=1e-5)


def test_joined_rollouts_hold_the_rows_of_their_parts(models) -> None:
    policy = policy_of(models / "smollm2")
    parts = [rollout(policy, [e], SAMPLING, 3, n) for n, e in enumerate(examples())]
    whole = Rollouts.join(parts, policy.encode(examples(), SAMPLING.grammar), policy.pad)
    logp, _ = policy.logprobs(whole.prompts, whole.completions, whole.mask, SAMPLING)
    assert (logp - whole.logprobs).abs().max() < 1e-4
    assert whole.parts == tuple(parts)
    for n, part in enumerate(parts):
        rows, width = slice(3 * n, 3 * n + 3), part.mask.shape[1]
        for name in ("completions", "mask", "phase", "logprobs", "words"):
            assert torch.equal(getattr(whole, name)[rows, :width], getattr(part, name)), name
        assert not whole.mask[rows, width:].any() and whole.outputs[rows] == part.outputs


def test_credit_and_ratio_by_item_follow_labels_of_several_tokens(models) -> None:
    policy = policy_of(models / "smollm2")
    r = sampled(policy)
    config = RLConfig(credit="item", group=4)
    rewards = score(r, examples(), config)
    advantages = assign_credit(rewards, r, config)
    labels, ratio = policy.labels, shared_log_ratio(torch.randn(r.logprobs.shape) * r.mask, r, "item")
    for b, output in enumerate(r.outputs):
        spelling, at = r.prompts.choices.spelling, 0
        words = [spelling.tags[0], *((spelling.later if n else spelling.first)[i] for n, i in enumerate(output.slate)),
                 *spelling.tags[1:3], *((spelling.later if n else spelling.first)[i] for n, i in enumerate(output.rank)),
                 *spelling.tags[3:]]  # fmt: skip
        place = 0
        for word in words:
            here = slice(at, at + len(word))
            assert ratio[b, here].max() - ratio[b, here].min() < 1e-6
            if word in (spelling.first + spelling.later) and at < int((r.phase[b] == PHASE_SLATE).sum()):
                q, g = divmod(b, 4)
                mean = rewards.items[q, :, place].mean()
                assert torch.allclose(advantages[b, here], rewards.items[q, g, place] - mean, atol=1e-6)
                place += 1
            at += len(word)
        assert at == int(r.mask[b].sum()) and place == len(output.slate)
    assert r.longest == labels.choices(examples()).longest(SAMPLING.grammar) > r.completions.shape[1] - 1


@pytest.mark.parametrize("shared", [True, False])
def test_given_slates_and_shared_slates(models, shared) -> None:
    policy = policy_of(models / "smollm2")
    policy.share = shared
    whole = rollout(policy, examples(), SAMPLING)
    assert rollout(policy, examples(), SAMPLING, slates=[o.slate for o in whole.outputs]).outputs == whole.outputs
    r = rollout(policy, examples(), SAMPLING, 6, 0, rankings=3)
    logp, _ = policy.logprobs(r.prompts, r.completions, r.mask, r.sampling, shared=False)
    assert (logp - r.logprobs).abs().max() < 1e-4
    slates = [o.slate for o in r.outputs]
    assert all(slates[i] == slates[i - i % 3] for i in range(len(slates))) and not any(o.error for o in r.outputs)
    assert any(len({o.rank for o in r.outputs[i : i + 3]}) > 1 for i in range(0, len(slates), 3))


def test_free_decoding_is_parsed_and_its_logprobs_repeat(models) -> None:
    policy = policy_of(models / "qwen3")
    free = replace(SAMPLING, constrained=False)
    r = sampled(policy, sampling=free)
    logp, _ = policy.logprobs(r.prompts, r.completions, r.mask, free)
    assert (logp - r.logprobs).abs().max() < 1e-4 and all(o.error for o in r.outputs)  # random weights
    ids, mask = policy.spell(examples(), [((4, 11), (11,))] * 3)  # what a trained model would write
    assert [policy.labels.text(row[m].tolist()) for row, m in zip(ids, mask, strict=True)] == [
        "<SLATE> 5, 12 </SLATE> <RANK> 12 </RANK>"
    ] * 3
    assert set(policy.labels.phases(ids, mask)[0].tolist()) == {PHASE_SLATE, PHASE_RANK}
    assert shared_log_ratio(r.logprobs, r, "item").shape == r.logprobs.shape


def run_to_end(
    model: str, folder: Path, sft: bool = False, resume: bool = False, start: Policy | None = None, **more
) -> Run:
    config = config_with(**{**TINY, "model": model, **more})
    run = Run(folder, config, resume=resume, save_every=2)
    fit(
        start or new_policy([], config, config.seed),
        examples(6),
        config,
        run,
        sft_stage(config) if sft else None,
        quiet=True,
    )
    return run


@pytest.mark.parametrize(("sft", "beta"), [(True, 0.0), (False, 0.0), (False, 0.1)])
def test_resumed_run_is_bit_identical_and_holds_the_adapter_only(model, tmp_path, sft, beta, monkeypatch) -> None:
    whole = run_to_end(model, tmp_path / "whole", sft, beta=beta, epochs=2)
    logged = Run.log

    def stop(self, row):
        if row["step"] == 4:
            raise KeyboardInterrupt
        logged(self, row)

    monkeypatch.setattr(Run, "log", stop)
    with pytest.raises(KeyboardInterrupt):
        run_to_end(model, tmp_path / "cut", sft, beta=beta, epochs=2)
    monkeypatch.setattr(Run, "log", logged)
    cut = run_to_end(model, tmp_path / "cut", sft, resume=True, beta=beta, epochs=2)
    for file in ("adapter_model.safetensors", "trainer.safetensors"):
        a, b = (load_file(run.latest() / file) for run in (whole, cut))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), file
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(run.folder)] for run in (whole, cut)
    ]
    assert rows[0] == rows[1]
    files = {p.name for p in whole.latest().iterdir()}
    assert files == {
        "SHA256SUMS",
        "adapter_model.safetensors",
        "adapter_config.json",
        "policy.json",
        "trainer.safetensors",
        "trainer.json",
    }
    assert json.loads((whole.latest() / "policy.json").read_text())["model"] == model
    assert json.loads((whole.folder / "config.json").read_text())["lm"]["lora_rank"] == 4


def test_the_reference_is_the_same_model_as_it_began(model, tmp_path) -> None:
    """RL from the model as it comes: adapter off; from an SFT adapter: a frozen copy of it. No second model."""
    sft = run_to_end(model, tmp_path / "sft", sft=True)
    fresh, tuned = PretrainedPolicy.new(config_with(**TINY, model=model).lm), load_policy(sft.latest())
    for name, policy in (("fresh", fresh), ("tuned", tuned)):
        r = sampled(policy)
        count = sum(p.numel() for p in policy.model.parameters())
        policy.save(tmp_path / name)
        reference = policy.reference(tmp_path / name)
        assert (reference.frozen is None) == (name == "fresh")
        adapter = sum(t.numel() for t in load_file(tmp_path / name / "adapter_model.safetensors").values())
        assert sum(p.numel() for p in policy.model.parameters()) - count in (0, adapter)
        trainable = {n for n, p in policy.model.named_parameters() if p.requires_grad}
        before, _ = policy.logprobs(r.prompts, r.completions, r.mask, SAMPLING)
        with torch.no_grad():
            for n, p in policy.model.named_parameters():
                if n in trainable:
                    p.add_(0.3)
        after, _ = policy.logprobs(r.prompts, r.completions, r.mask, SAMPLING)
        kept, _ = reference.logprobs(r.prompts, r.completions, r.mask, SAMPLING)
        assert torch.equal(kept, before) and not kept.requires_grad and (after - before).abs().max() > 1e-3
        drawn = sampled(reference)  # rollouts are those of the start, too
        assert drawn.outputs == r.outputs and torch.equal(drawn.logprobs, r.logprobs)
        assert sampled(policy).outputs != r.outputs
        assert {n for n, p in policy.model.named_parameters() if p.requires_grad} == trainable
        assert all("default" in n for n in trainable)


def test_a_saved_policy_is_the_same_and_finds_its_base(model, models, tmp_path, monkeypatch) -> None:
    policy = policy_of(Path(model))
    save_policy(policy, tmp_path / "p")
    a, b = (sampled(p) for p in (policy, load_policy(tmp_path / "p")))
    assert a.outputs == b.outputs and torch.equal(a.logprobs, b.logprobs)
    (tmp_path / "moved").symlink_to(model)
    values = json.loads((tmp_path / "p/policy.json").read_text())
    (tmp_path / "p/policy.json").write_text(json.dumps({**values, "model": "gone"}))
    with pytest.raises(KitError, match=r"'policy\.json' differs from SHA256SUMS"):
        load_policy(tmp_path / "p")
    seal(tmp_path / "p")
    with pytest.raises(KitError, match="base model cannot be loaded; if it is elsewhere, name it with --model"):
        load_policy(tmp_path / "p")
    again = load_policy(tmp_path / "p", lm=LMConfig(model=str(tmp_path / "moved")))
    assert torch.equal(sampled(again).logprobs, a.logprobs)
    with pytest.raises(KitError, match="fits another model"):
        load_policy(tmp_path / "p", lm=LMConfig(model=str(models / "qwen3_5")))
    for file in ("adapter_model.safetensors", "policy.json"):
        path = tmp_path / "p" / file
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(KitError, match="damaged") as caught:
            load_policy(tmp_path / "p", lm=LMConfig(model=model))
        assert "\n" not in str(caught.value)
        path.write_bytes(whole)


def test_wrong_options_are_said(model) -> None:
    with pytest.raises(KitError, match="lora_targets 'nothing'"):
        PretrainedPolicy.new(LMConfig(model=model, lora_targets="nothing"))
    with pytest.raises(KitError, match="name the folder that holds it"):
        LMConfig(gguf_file="x.gguf")
    named = PretrainedPolicy.new(LMConfig(model=model, lora_targets="q_proj,v_proj", dtype="bfloat16"))
    assert {n.split(".lora")[0].split(".")[-1] for n in weights(named) if "lora" in n} == {"q_proj", "v_proj"}
    assert {str(p.dtype) for p in named.model.parameters()} == {"torch.bfloat16", "torch.float32"}
    r = sampled(named)
    logp, _ = named.logprobs(r.prompts, r.completions, r.mask, r.sampling, shared=False)
    assert (logp - r.logprobs).abs().max() < 0.1 and not any(o.error for o in r.outputs)


def test_the_command_line_trains_evaluates_and_compares(model, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl("task.jsonl", [replace(e, id=f"{e.id}-{n}") for n in range(5) for e in examples(4)])

    def options(*without: str) -> list[str]:
        kept = {name: value for name, value in TINY.items() if not name.startswith(without or ("-",))}
        flags = [f for name, value in kept.items() for f in (f"--{name.replace('_', '-')}", str(value))]
        return ["--task", "task.jsonl", "--model", model, "--json", *flags]

    argv = options()

    def call(*more: str) -> dict:
        assert main([*more]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    call("train", "--sft", "--out", "sft", *options("steps", "lr"))
    report = call("train", "--init", "sft", "--out", "rl", *argv)
    assert call("train", "--init", "base", "--out", "raw", *options("sft"))["queries"] == 2
    assert len(read_metrics("rl")) == 4 and json.loads(Path("rl/config.json").read_text())["lm"]["micro"] == 1
    untuned = ["--checkpoint", "base", "--task", "task.jsonl", "--model", model]
    assert call("evaluate", *untuned, "--split", "all", "--json")["queries"] == 20
    for checkpoint, name in ((untuned, "base"), (["--checkpoint", "rl"], "rl")):
        made = call("trace", *checkpoint, "--split", "all", "--sampled", "1", "--out", f"{name}.jsonl", "--json")
        assert made["queries"] == 20
    base, trained = (read_trace(f"{name}.jsonl").groups for name in ("base", "rl"))
    assert [g.example for g in base] == read_jsonl("task.jsonl") and base[0].greedy != trained[0].greedy
    assert main(["evaluate", "--checkpoint", "base", "--task", "task.jsonl"]) == 2
    assert "name it with --model" in capsys.readouterr().err
    assert call("evaluate", "--checkpoint", "rl", "--split", "validation", "--json")["metrics"] == report["metrics"]
    rows = call("compare", "--credits", "grpo,fgrpo", "--seeds", "1", "--out", "c", "--baselines", "random", *argv)[
        "rows"
    ]
    assert {"sft", "grpo", "fgrpo", "random"} <= {r["method"] for r in rows}
    assert main(["evaluate", "--checkpoint", "rl", "--model", "nowhere"]) == 2
    assert main(["trace", "--checkpoint", "rl", "--model", "nowhere", "--out", "t.jsonl"]) == 2
    assert "its base model cannot be loaded" in capsys.readouterr().err


def test_old_configurations_are_still_read() -> None:
    values = Config().to_dict()
    del values["lm"]
    assert Config.from_dict(values) == Config()


def test_statistics_in_tokens_say_what_was_cut(models, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl("x.jsonl", [replace(e, id=f"{e.id}-{n}") for n in range(5) for e in examples()])
    argv = ["data", "stats", "--task", "x.jsonl", "--json", "--model", str(models / "smollm2"), "--passage-tokens"]
    found = {}
    for budget in ("4", "60"):
        assert main([*argv, budget]) == 0
        found[budget] = json.loads(capsys.readouterr().out)["splits"]["train"]
    labels = policy_of(models / "smollm2", passage_tokens=60).labels
    lengths = [len(labels.prompt_ids(e)) for e in examples()]
    assert found["60"]["tokens"]["max"] == max(lengths) and found["60"]["tokens cut"]["max"] == 0
    short, cut = found["4"]["tokens"], found["4"]["tokens cut"]
    assert found["4"]["passages cut"]["min"] >= 12 and cut["min"] > 12  # the query is whole
    assert abs(short["max"] + cut["max"] - found["60"]["tokens"]["max"]) <= 13  # a cut may part what merged


def test_freed_memory_is_kept_while_decoding_and_returned_after_it(monkeypatch) -> None:
    told: list[tuple] = []
    libc = SimpleNamespace(mallopt=lambda *x: told.append(x), malloc_trim=lambda x: told.append(("trim", x)))
    with memory_kept():
        assert not told  # nothing is touched before a pretrained model was loaded
    monkeypatch.setattr("fgrpo.lm.pretrained._returned", [libc])
    with pytest.raises(ZeroDivisionError), memory_kept():
        assert told == [(-3, 2**25)]
        raise ZeroDivisionError
    assert told == [(-3, 2**25), (-3, 2**20), ("trim", 0)]


def test_another_c_library_is_left_alone(monkeypatch) -> None:
    kept: list = []
    monkeypatch.setattr("fgrpo.lm.pretrained._returned", kept)
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(mallopt=lambda *_: 1))  # without malloc_trim
    give_memory_back()
    assert not kept
