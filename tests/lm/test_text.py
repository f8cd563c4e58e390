"""Policies that read texts: fed fast as plainly, checkpoints without the table, items that training never saw."""

import copy
import json
from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from torch import Tensor

from fgrpo.__main__ import main
from fgrpo.config import Config, GrammarConfig, KitError, ModelConfig, RLConfig
from fgrpo.data import Example, Splits
from fgrpo.evaluate import greedy
from fgrpo.lm import text
from fgrpo.lm.text import SHARP, TextLabels, TextPolicy
from fgrpo.loss import policy_loss
from fgrpo.policy import Policy, Sampling
from fgrpo.rollout import rollout
from fgrpo.runs.fields import config_with
from fgrpo.runs.policies import load_policy, new_policy, save_policy
from fgrpo.runs.pretrain import pretrain_stage, pretrain_step
from fgrpo.runs.seal import seal
from fgrpo.runs.sft import demonstrations, own_demonstrations, sft_step, teacher
from fgrpo.runs.warm_start import warm_start
from fgrpo.tasks.jsonl import write_jsonl
from fgrpo.tasks.lab import lab_catalogue
from fgrpo.trainer import Stopped, batch_of, make_optimizer, step
from tests.conftest import SMALL

TITLES = [film.title for film in lab_catalogue()]
SAMPLINGS = {
    "constrained": Sampling(GrammarConfig()),
    "filled": Sampling(GrammarConfig(full=True)),
    "free": Sampling(GrammarConfig(), constrained=False),
}


def words(texts, model: str = "") -> Tensor:
    """A stand-in for a sentence encoder: the sum of a random vector for each word."""
    rows = [
        sum(torch.randn(16, generator=torch.Generator().manual_seed(int(sha256(w.encode()).hexdigest()[:12], 16)))
            for w in t.split())
        for t in texts
    ]  # fmt: skip
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


@pytest.fixture(autouse=True)
def encoder(monkeypatch) -> None:
    monkeypatch.setattr(text, "embed", words)


def made(features: str = "both", spread: float = 0.3) -> TextPolicy:
    """Small, with weights large enough that its choices are not all alike."""
    counts = {title: n for n, title in enumerate(TITLES)}
    config = ModelConfig(**SMALL, features=features)
    policy = TextPolicy.new({title: title for title in TITLES}, counts, config, seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.model.parameters():
            p.add_(spread * torch.randn(p.shape, generator=generator))
    return policy


def gradient(policy: Policy, r, advantages) -> Tensor:
    policy.model.zero_grad()
    policy_loss(policy, r, advantages, RLConfig())[0].backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("features", ["text", "both"])
@pytest.mark.parametrize("keep", [True, False])
def test_rollouts_and_gradients_are_those_of_the_plain_way(name, features, keep, queries) -> None:
    policy = made(features)
    plain = copy.deepcopy(policy)
    plain.share = False
    queries, found = [replace(queries[0], history=()), *queries[1:]], []
    for p in (policy, plain):
        r = rollout(p, queries, SAMPLINGS[name], 4, 7, keep_prompts=keep)
        signs = torch.randn(r.logprobs.shape, generator=torch.Generator().manual_seed(1))
        found.append((r, gradient(p, r, 1 + signs)))
    (fast, own), (slow, wanted) = found
    assert policy.share and not plain.share
    assert torch.equal(fast.completions, slow.completions) and (fast.logprobs - slow.logprobs).abs().max() < 1e-4
    assert (own - wanted).norm() < 1e-4 * wanted.norm()


def test_the_prior_is_the_cosine_with_the_history_and_the_count(queries) -> None:
    """Without the decoder (all vectors are 0) the first choice follows the formula in the module's docstring."""
    policy = made(spread=0.0)
    items = policy.model.items
    with torch.no_grad():
        for p in (items.tokens, items.project, items.ids):
            p.zero_()
    centred = torch.nn.functional.normalize(words(TITLES) - words(TITLES).mean(0), dim=-1)
    place, count = {t: n for n, t in enumerate(TITLES)}, torch.log1p(torch.arange(300.0))
    for e in queries:
        read, pool = (centred[[place[t] for t in titles]] for titles in (e.history, e.candidates))
        mean = torch.nn.functional.normalize(read.mean(0), dim=-1)
        worth = (count - count.mean())[[place[t] for t in e.candidates]]
        expected = 0.5 * SHARP * pool @ mean + worth
        prompts = policy.encode([e])
        logits = policy.grow(prompts.ids, prompts.mask, prompts.choices.tokens).logits[0, : len(e.candidates)]
        assert torch.allclose(logits, expected, atol=1e-4)


def test_an_item_that_training_never_saw_is_read_by_its_text() -> None:
    policy = made("text")
    with torch.no_grad():
        policy.model.prior.bias[0] = 50.0  # by the cosine alone
    example = Example(
        "new", "Which?", ("Wholly Unknown",), ("Quite Other", "Wholly Unknown", *TITLES[:6]), frozenset([1])
    )
    assert greedy(policy, [example], Sampling(GrammarConfig(3, 1)))[0].rank == (1,)
    assert len(policy.model.items.texts) == len(policy.labels.texts) > len(TITLES)


def test_what_was_met_can_be_forgotten_and_kept_off_the_disk(queries, monkeypatch) -> None:
    policy, sampling = made(), Sampling(GrammarConfig())
    before = greedy(policy, queries, sampling)
    monkeypatch.setattr(text, "embed", None)
    monkeypatch.setattr(text, "encoder", lambda name: words)
    policy.keep = False
    policy.forget()
    assert len(policy.model.items.texts) == len(policy.labels.texts) == 0
    assert greedy(policy, queries, sampling) == before
    assert 0 < len(policy.labels.texts) < len(TITLES)


def test_a_query_without_history_is_read_in_its_place() -> None:
    policy = made("text")
    with torch.no_grad():
        policy.model.prior.bias[0] = 50.0
    example = Example("q", TITLES[7], (), tuple(TITLES[:10]), frozenset([7]))
    assert greedy(policy, [example], Sampling(GrammarConfig(3, 1)))[0].rank == (7,)


def test_items_are_known_by_key_and_text_and_one_twice_in_a_pool_is_refused() -> None:
    labels = TextLabels(["7", "8"])
    same = Example("e", "q", (), ("Up", "Up"), frozenset([0]), candidate_ids=("7", "9"))
    assert len(set(labels.candidates(same))) == 2 and labels.rows == [0, -1]
    with pytest.raises(KitError, match="an item is in the pool twice"):
        labels.candidates(replace(same, candidate_ids=()))


@pytest.mark.parametrize("features", ["text", "both"])
def test_a_checkpoint_holds_the_projection_and_no_table_of_texts(features, queries, tmp_path) -> None:
    policy = made(features)
    save_policy(policy, tmp_path)
    again = load_policy(tmp_path)
    assert isinstance(again, TextPolicy) and len(again.model.items.texts) == 0
    assert greedy(again, queries, Sampling(GrammarConfig())) == greedy(policy, queries, Sampling(GrammarConfig()))
    assert (features == "both") == (TITLES[0] in (tmp_path / "items.json").read_text())
    tables = [x for name, x in again.model.state_dict().items() if name in again.saved and len(TITLES) in x.shape]
    assert len(tables) == (2 if features == "both" else 0)  # id vectors and worth


def test_another_encoder_is_refused(queries, monkeypatch) -> None:
    policy = made("text")
    monkeypatch.setattr(text, "embed", lambda texts, model: torch.ones(len(texts), 7))
    with pytest.raises(KitError, match="gives 7 numbers, not the 16"):
        policy.encode([replace(queries[0], history=("A new title",))])


@pytest.mark.parametrize(
    ("file", "blob"), [("text.json", b"{}"), ("items.json", b'["a", "a"]'), ("model.safetensors", b"x")]
)
def test_a_damaged_checkpoint_is_refused(file, blob, tmp_path) -> None:
    made("text").save(tmp_path)
    (tmp_path / file).write_bytes(blob)
    seal(tmp_path)
    with pytest.raises(KitError, match=r"damaged|twice"):
        load_policy(tmp_path)


def test_training_steps_change_every_weight(lab: Splits, config: Config) -> None:
    config = replace(config, model=replace(config.model, features="both"), sft=replace(config.sft, pretrain=2))
    policy = new_policy(TITLES, config, 0, lab._replace(train=lab.train[:64], validation=[], test=[]))
    before = copy.deepcopy(policy.model.state_dict())
    optimizer = make_optimizer(policy, pretrain_stage(config))
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    losses = [pretrain_step(policy, optimizer, batch_of(lab.train, 32, 0, 0), config, n)["loss"] for n in range(8)]
    assert losses[-1] < losses[0] - 0.1
    sft_step(policy, optimizer, lab.train[:8], config)
    step(policy, optimizer, lab.train[:4], config)
    unchanged = [n for n, x in policy.model.state_dict().items() if n in policy.saved and torch.equal(x, before[n])]
    assert unchanged == ["items.centre"]


def test_ranked_demonstrations_follow_the_policys_own_order(queries) -> None:
    config, policy = config_with(demonstrations="ranked"), made()
    generators = [torch.Generator().manual_seed(n) for n in range(len(queries))]
    shown = own_demonstrations(policy)(queries, config, generators)
    for e, (slate, rank) in zip(queries, shown, strict=True):
        prompts = policy.encode([e])
        order = (
            policy.grow(prompts.ids, prompts.mask, prompts.choices.tokens)
            .logits[0, : len(e.candidates)]
            .argsort(descending=True)
        )
        others = [i for i in order.tolist() if i not in e.relevant]
        assert (
            set(slate[: len(e.relevant)]) == e.relevant
            and list(slate[len(e.relevant) :]) == others[: 10 - len(e.relevant)]
        )
        assert rank == slate[:5]
    assert teacher(policy, config_with()) is None and teacher(policy, config, demonstrations) is demonstrations


def test_a_warm_start_that_is_killed_resumes_with_the_same_weights(lab: Splits, config: Config, tmp_path) -> None:
    """Pre-training and warm start, stopped in each of them."""
    sft = replace(config.sft, pretrain=4, demonstrations="ranked")
    config = replace(config, sft=sft, model=replace(config.model, features="both"))
    splits = lab._replace(train=lab.train[:64], validation=lab.validation[:2], test=[])
    whole = warm_start(config, splits, TITLES, tmp_path / "whole", quiet=True)
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(len(asked) + 1 in (3, 8))  # in pre-training, then in the warm start
        return asked[-1]

    for resume in (False, True):
        with pytest.raises(Stopped):
            warm_start(config, splits, TITLES, tmp_path / "parts", True, resume, stop)
    parts = warm_start(config, splits, TITLES, tmp_path / "parts", quiet=True, resume=True)
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_the_command_line_trains_resumes_measures_and_traces_it(lab: Splits, tmp_path, capsys, monkeypatch) -> None:
    task, out = tmp_path / "films.jsonl", tmp_path / "run"
    write_jsonl(task, lab.train[:40])
    small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    options = ["--task", str(task), "--features", "both", "--pretrain", "3", "--sft-steps", "3", "--sft-batch", "8",
               "--demonstrations", "ranked", "--steps", "2", "--queries", "2", "--group", "2", *small]  # fmt: skip
    assert main(["train", *options, "--out", str(out), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)["metrics"]
    assert main(["train", *options, "--out", str(out), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == first
    assert (out / "warm-start" / "pretrain" / "metrics.jsonl").read_text().count("\n") == 3
    assert main(["evaluate", "--checkpoint", str(out), "--split", "validation", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == first
    assert main(["trace", "--checkpoint", str(out), "--out", str(tmp_path / "t.jsonl"), "--sampled", "2"]) == 0
    fresh = [*options[:-3], "--init", "base", "--out", str(tmp_path / "cold"), *small]
    del fresh[fresh.index("--sft-steps") : fresh.index("--steps")]
    assert main(["train", *fresh]) == 2  # pre-training belongs to the warm start, which --init base leaves out
    assert "--pretrain is for the warm start" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "x", "--pretrain", "3"], "--pretrain is for policies with a token for each item"),
        (["--model", "x", "--features", "text"], "--features is for the tiny policy"),
        (["--encoder", "x"], "--encoder is for policies that read texts: add --features text or both"),
        (["--features", "words"], "features 'words' is not known"),
        (["--preset", "reads", "--model", "x"], "--preset reads is for the tiny policy"),
    ],
)
def test_options_without_effect_are_refused(options, message, tmp_path, capsys) -> None:
    assert main(["train", *options, "--out", str(tmp_path / "x")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "x").exists()
