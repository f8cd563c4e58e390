"""Traces: what is written is read back whole, credit of a trace is that of the rollouts, and bad lines are named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fgrpo.config import Config, KitError
from fgrpo.credit import CREDITS, assign_credit, with_credit
from fgrpo.data import Example
from fgrpo.policy import Sampling
from fgrpo.prompt import Output
from fgrpo.rewards import score
from fgrpo.rollout import rollout
from fgrpo.runs.trace import Group, credit_of, from_lists, parse_trace, read_trace, trace_of, trace_policy, write_trace
from fgrpo.tasks.jsonl import write_jsonl


def traced(policy, queries, config: Config) -> list[Group]:
    return trace_policy(policy, queries, config, 4, step=3)


@pytest.fixture
def nested(config: Config) -> Config:
    return replace(config, rl=replace(config.rl, credit="nested", rankings=2))


@pytest.mark.parametrize("decoding", ["constrained", "free"])
def test_a_trace_is_read_back_as_it_was_written(policy, queries, config, decoding, tmp_path) -> None:
    config = replace(config, rl=replace(config.rl, decoding=decoding))
    groups = traced(policy, queries, config)
    write_trace(tmp_path / "t.jsonl", trace_of("mine", config, groups))
    found = read_trace(tmp_path / "t.jsonl")
    assert found.name == "mine" and found.config == config and not found.notes and len(found.groups) == 6
    for a, b in zip(groups, found.groups, strict=True):
        assert (a.example, a.rankings, a.step) == (b.example, b.rankings, b.step)
        for x, y in zip([a.greedy, *a.rollouts], [b.greedy, *b.rollouts], strict=True):
            assert (x.output, x.tokens, x.items, x.phases) == (y.output, y.tokens, y.items, y.phases)
            for name in ("logprobs", "entropy"):
                torch.testing.assert_close(
                    torch.tensor(getattr(x, name)), torch.tensor(getattr(y, name)), atol=1e-4, rtol=0
                )
    assert len(found.groups[0].rollouts) == config.rl.group and not found.groups[5].rollouts
    assert any(r.logprobs and min(r.logprobs) < -0.5 and max(r.entropy) > 0.5 for r in found.groups[0].rollouts)


@pytest.mark.parametrize("method", list(CREDITS))
@pytest.mark.parametrize("reward", ["recall", "f1"])
def test_credit_of_a_trace_is_that_of_the_rollouts(policy, queries, nested, method, reward, tmp_path) -> None:
    nested = replace(nested, rl=replace(nested.rl, slate_reward=reward, lam=0.5))
    write_trace(tmp_path / "t.jsonl", trace_of("x", nested, traced(policy, queries, nested)))
    config = replace(nested, rl=with_credit(nested.rl, method))
    sampling = Sampling(config.grammar)
    r = rollout(policy, queries[:4], sampling, config.rl.group, 0, step=3, rankings=2)
    wanted_rewards = score(r, queries[:4], config.rl)
    if method == "gdpo":  # normalised over the batch, which in a trace is the group
        pytest.skip("gdpo divides by the spread of the batch")
    wanted = assign_credit(wanted_rewards, r, config.rl)
    for number, group in enumerate(read_trace(tmp_path / "t.jsonl").groups[:4]):
        rewards, advantages = credit_of(group, config)
        torch.testing.assert_close(rewards.slate[0], wanted_rewards.slate[number])
        torch.testing.assert_close(rewards.rank[0], wanted_rewards.rank[number])
        for row in range(config.rl.group):
            length = len(group.rollouts[row].tokens)
            own = wanted[number * config.rl.group + row][:length]
            torch.testing.assert_close(advantages[row][:length], own)
            assert not advantages[row][length:].any()


def test_nested_needs_rankings_of_one_slate(policy, queries, config) -> None:
    groups = traced(policy, queries, config)
    with pytest.raises(KitError, match="one ranking per slate"):
        credit_of(groups[0], replace(config, rl=with_credit(config.rl, "nested")))
    with pytest.raises(KitError, match="fewer than two"):
        credit_of(groups[5], config)


@pytest.mark.parametrize("method", list(CREDITS))
@pytest.mark.parametrize("sizes", [{"slate_size": 10_000}, {"slate_size": 10_000, "rank_size": 10_000}])
def test_a_size_counts_up_to_the_pool(policy, queries, nested, method, sizes) -> None:
    """Credit under the sizes of a header that no list fills is that under the pool's size: memory follows the lists."""
    group, pool = traced(policy, queries[:4], nested)[0], len(queries[0].candidates)
    config = replace(nested, rl=with_credit(nested.rl, method))
    credits = [
        credit_of(group, replace(config, grammar=replace(config.grammar, **dict.fromkeys(sizes, size))))
        for size in (10_000, pool)
    ]
    for a, b in zip(credits[0], credits[1], strict=True):
        for x, y in ((a, b),) if isinstance(a, torch.Tensor) else zip(vars(a).values(), vars(b).values(), strict=True):
            assert torch.equal(x, y)
    assert credits[0][0].items.shape[-1] <= pool and credits[0][1].any()


@pytest.mark.parametrize(("rollouts", "pool", "longest"), [(64, 600, 501), (2, 30_000, 3_000), (3, 3_000, 3_000)])
def test_credit_that_would_take_too_much_memory_is_refused(rollouts, pool, longest) -> None:
    example = Example("a", "?", (), ("x",) * pool, frozenset({0}))
    group = Group(example, None, (from_lists(Output(tuple(range(longest)), (0,)), pool),) * rollouts)
    with pytest.raises(
        KitError, match=rf"too much memory: {rollouts} rollouts .* lists of up to {longest:,} of {pool:,}"
    ):
        credit_of(group, Config())


def test_later_steps_are_added_and_repeated_ones_replaced(policy, queries, config, tmp_path) -> None:
    path = tmp_path / "t.jsonl"
    for step in (25, 50, 75, 50):
        groups = trace_policy(policy, queries[:2], config, 2, step=step)
        write_trace(path, trace_of("run", config, groups), more=True)
    assert [g.step for g in read_trace(path).groups] == [25, 25, 50, 50]


def test_a_file_that_is_no_trace_is_not_added_to(policy, queries, config, tmp_path) -> None:
    (tmp_path / "t.jsonl").write_text("header\nnot a group\n")
    groups = trace_policy(policy, queries[:2], config, 2, step=2)
    with pytest.raises(KitError, match=r"t\.jsonl: not a JSON object .* move it away"):
        write_trace(tmp_path / "t.jsonl", trace_of("run", config, groups), more=True)


def test_a_file_of_examples_is_a_trace_without_rollouts(queries, tmp_path) -> None:
    write_jsonl(tmp_path / "x.jsonl", queries)
    assert [g.example for g in read_trace(tmp_path / "x.jsonl").groups] == queries


def lines(policy, queries, config, tmp_path: Path) -> list[bytes]:
    write_trace(tmp_path / "t.jsonl", trace_of("mine", config, traced(policy, queries[:4], config)))
    return (tmp_path / "t.jsonl").read_bytes().splitlines(keepends=True)


def test_a_last_line_cut_short_is_noted_and_left_out(policy, queries, config, tmp_path) -> None:
    whole = lines(policy, queries, config, tmp_path)
    found = parse_trace([*whole[:3], whole[3][:200]], "t.jsonl")
    assert len(found.groups) == 2
    assert found.notes == ("t.jsonl, line 4: the last line is cut short and was left out; 2 queries are read.",)
    (tmp_path / "t.jsonl").write_bytes(b"".join(whole[:2]) + b"{\r" + whole[2])  # a lone \r ends no line
    with pytest.raises(KitError, match="line 3: not a JSON object"):
        read_trace(tmp_path / "t.jsonl")
    with pytest.raises(KitError, match="line 3: not a JSON object"):
        parse_trace([*whole[:2], whole[2][:200] + b"\n", whole[3]], "t.jsonl")


ROLLOUT = {"slate": [0, 1], "rank": [1], "tokens": ["a", "b"], "items": [0, -1], "phases": [1, 2]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slate": [0, 0]}, "'greedy.slate' must hold distinct indices into the 2 candidates"),
        ({"slate": [0, 2]}, "'greedy.slate' must hold distinct indices"),
        ({"slate": [0, True]}, "'greedy.slate' must be a list of indices"),
        ({"rank": [1], "slate": [0]}, "'greedy.rank' must hold candidates of the slate"),
        ({"error": "malformed"}, "be empty with an error only"),
        ({"error": "unlucky"}, "'greedy.error' must be one of malformed"),
        ({"error": ["x"]}, "'greedy.error' must be one of malformed"),
        ({"items": [0]}, "'greedy.items' has 1 entries for 2 tokens"),
        ({"items": [0, 5]}, "'items' must be candidates or -1"),
        ({"phases": [1, 0]}, "'phases' 1 (slate) or 2 (rank)"),
        ({"logprobs": [0.0, float("nan")]}, "'greedy.logprobs' must be a list of numbers"),
        ({"tokens": "ab"}, "'greedy.tokens' must be a list of strings"),
    ],
)
def test_a_bad_field_is_named(change, message) -> None:
    example = {"id": "a", "query": "q", "history": [], "candidates": ["x", "y"], "relevant": [0]}
    good = {"query": example, "greedy": ROLLOUT}
    assert parse_trace([json.dumps(good).encode()], "t").groups[0].greedy.items == (0, -1)
    bad = {"query": example, "greedy": {**ROLLOUT, **change}}
    with pytest.raises(KitError) as error:
        parse_trace([json.dumps({"trace": 1}).encode() + b"\n", json.dumps(bad).encode()], "t.jsonl")
    assert str(error.value).startswith("t.jsonl, line 2: ") and message in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"trace": 2}, "written by a newer kit (format 2, this one reads 1)"),
        ({"trace": "x"}, "field 'trace' must be the version"),
        ({"trace": 1, "config": {"rl": {"lam": -1.0}}}, "lam -1.0 must be at least 0.0"),
        ({"trace": 1}, "no query in the file"),
        ({"rollouts": []}, "field 'query' must be an object"),
        ([], "expected a JSON object, found list"),
    ],
)
def test_a_bad_header_is_named(line, message) -> None:
    with pytest.raises(KitError) as error:
        parse_trace([json.dumps(line).encode()], "t.jsonl")
    assert message in str(error.value)


def test_an_ill_formed_ranking_keeps_its_slate_in_the_file(tmp_path) -> None:
    example = Example("a", "?", (), tuple("abcd"), frozenset({0}))
    rollouts = tuple(from_lists(o, 4) for o in (Output((0, 2), (2,)), Output((0, 2), (), "out_of_slate")))
    group = Group(example, rollouts[1], rollouts)
    write_trace(tmp_path / "t.jsonl", trace_of("t", Config(), [group]))
    (found,) = read_trace(tmp_path / "t.jsonl").groups
    assert found == group and found.rollouts[1].output == Output((0, 2), (), "out_of_slate")
    rewards, advantages = credit_of(found, Config())
    assert rewards.slate.tolist() == [[1, 1]] and rewards.rank_format.tolist() == [[0, -0.5]]
    assert (advantages[:, :4] == 0).all() and advantages[1].min() < 0  # the ranker alone is to blame
