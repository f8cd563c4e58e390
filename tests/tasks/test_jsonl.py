"""Examples in and out as JSONL; bad lines are named, and what `data check` accepts can be trained on."""

import json
import re

import pytest

from fgrpo.cli.main import main
from fgrpo.config import Config, KitError
from fgrpo.data import Example
from fgrpo.tasks import load_task
from fgrpo.tasks.jsonl import parse_example, read_jsonl, to_json, write_jsonl
from fgrpo.tasks.reading import Faults

GOOD = {"id": "u1", "query": "q", "history": ["a"], "candidates": ["a", "b", "c"], "relevant": [2]}


def test_round_trip(tmp_path) -> None:
    examples = [
        parse_example(json.dumps({**GOOD, "history_ids": ["1"], "candidate_ids": ["1", "2", "3"], "query": "é\n"}))
    ]
    write_jsonl(tmp_path / "x.jsonl", examples * 2)
    assert read_jsonl(tmp_path / "x.jsonl") == examples * 2
    assert examples[0].candidate_keys == ("1", "2", "3") and parse_example(to_json(examples[0])) == examples[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 7}, "field 'id' must be a string"),
        ({"query": None}, "field 'query' must be a string"),
        ({"history": "a"}, "field 'history' must be a list of strings"),
        ({"candidates": ["a", 1]}, "field 'candidates' must be a list of strings"),
        ({"candidates": []}, "field 'candidates' is empty"),
        ({"relevant": []}, "field 'relevant' is empty"),
        ({"relevant": [3]}, "holds index 3, but the pool has candidates 0 to 2"),
        ({"relevant": [-1]}, "holds index -1"),
        ({"relevant": [True]}, "must be a list of indices"),
        ({"relevant": ["c"]}, "must be a list of indices"),
        ({"candidate_ids": ["1"]}, "'candidate_ids' has 1 entries for 3 items"),
        ({"relevant": [0, 0, 1]}, "holds index 0 more than once: it takes indices, not a 0/1 mask, which would be [2]"),
        ({"relevant": [1, 1, 0]}, "not a 0/1 mask, which would be [0, 1]"),
        ({"relevant": [0, 0, 0, 1, 0, 1]}, "not a 0/1 mask, which would be [3, 5]"),
        ({"relevant": [2, 2, 0]}, "holds index 2 more than once: it takes indices; graded labels go into 'gains'"),
        ({"relevant": [2, 2]}, "holds index 2 more than once: list each index once"),
        ({"relevant": [False, False, True]}, "must be a list of indices into 'candidates'; as such this mask is [2]"),
        ({"relevant": [0.0, 0.5, 1.0]}, "must be a list of indices into 'candidates'; graded labels go into 'gains'"),
        ({"relevant": {"2": 3}}, "must be a list of indices into 'candidates'; graded labels go into 'gains'"),
        ({"relevant": "2"}, "must be a list of indices"),
        ({"relevant": None}, "must be a list of indices"),
        ({"gains": [0, 3]}, "field 'gains' has 2 entries for 3 candidates"),
        ({"gains": {"2": 3}}, "field 'gains' must be a list of numbers, one for each candidate"),
        ({"gains": [0, 0, True]}, "field 'gains' must be a list of numbers"),
        ({"gains": [0, 0, "3"]}, "field 'gains' must be a list of numbers"),
        ({"gains": [0, 0, -1]}, "field 'gains' holds -1: a gain is 0, or from 0.000001 to 1,000,000"),
        ({"gains": [0, float("nan"), 1]}, "field 'gains' holds nan"),
        ({"gains": [0, 0, float("inf")]}, "field 'gains' holds inf"),
        ({"gains": [0, 0, 1e-40]}, "field 'gains' holds 1e-40"),
        ({"gains": [0, 0, 10**4000]}, "field 'gains' holds 10000000000000000000: a gain is"),
        ({"gains": [0, 1, 2]}, "field 'relevant' must be where 'gains' are above 0, [1, 2], or be left out"),
        ({"gains": [0, 0, 0]}, "field 'gains' holds no gain above 0"),
        ({"group": 7}, "field 'group' must be a string"),
        (
            {"candidates": ["c", "b", "c"]},
            "field 'candidates': entries 0 and 2 are the same item; take one out, or tell",
        ),
        ({"candidate_ids": ["1", "2", "2"]}, "field 'candidate_ids': entries 1 and 2 are the same item; take one out"),
        ({"candidates": ["a"], "relevant": [0]}, "field 'candidates' has one entry: the pool needs at least two"),
        ({"candidates": ["a", " ", "c"]}, "field 'candidates': entry 1 is blank"),
        ({"history": ["a", ""]}, "field 'history': entry 1 is blank"),
        ({"candidates": ["a", "\u200b\ufeff", "c"]}, "field 'candidates': entry 1 is blank"),
        ({"candidates": ["a", "\0\u00a0", "c"]}, "field 'candidates': entry 1 is blank"),
        ({"id": " "}, "field 'id' is blank"),
        ({"candidate_ids": ["1", "", "3"]}, "field 'candidate_ids': entry 1 is blank"),
        ({"history_ids": [" "]}, "field 'history_ids': entry 0 is blank"),
        ({"gains": [0, None, 1]}, "a list of numbers, one for each candidate, found null at entry 1"),
        ({"gains": [0, 0, "3"]}, "a list of numbers, one for each candidate, found a string at entry 2"),
        ({"id": [1]}, "field 'id' must be a string, found a list"),
        ({"query": "\t", "history": []}, "field 'query' is blank, without a history"),
        ({"candidates": [{"title": "a"}, "b"]}, "must be a list of strings, found an object at entry 0"),
        ({"candidates": ["a", ["b"], "c"]}, "must be a list of strings, found a list at entry 1"),
        ({"candidates": "a|b|c"}, "field 'candidates' must be a list of strings, found a string"),
        ({"history": None}, "field 'history' must be a list of strings, found null"),
        ({"candidate_ids": [1, 2, 3]}, "field 'candidate_ids' must be a list of strings, found a number at entry 0"),
        ({"relevant": 2}, "field 'relevant' must be a list of indices into 'candidates', found a number"),
        ({"relevant": ["2"]}, "a title or an id is none: give its place there, 0 for the first"),
        ({"relevant": [3]}, "candidates 0 to 2; indices count from 0"),
        (
            {"candidates": ["a", "b"], "relevant": [0, 1]},
            "holds both candidates, and nothing to choose; it takes indices",
        ),
        (
            {"candidates": ["a", "b"], "relevant": [1, 0]},
            "holds both candidates, and nothing to choose; it takes indices",
        ),
        ({"gain": [0, 0, 3]}, "field 'gain' is not known: write 'gains'"),
        ({"Gains": [0, 0, 3]}, "field 'Gains' is not known: write 'gains'"),
        ({"candidateIds": ["1", "2", "3"]}, "field 'candidateIds' is not known: write 'candidate_ids'"),
        ({" group": "u"}, "field ' group' is not known: write 'group'"),
    ],
)
def test_a_broken_line_17_is_named(tmp_path, change, message) -> None:
    path = tmp_path / "x.jsonl"
    lines = [json.dumps(GOOD)] * 16 + [json.dumps({**GOOD, **change})] + [json.dumps(GOOD)] * 3
    path.write_text("\n".join(lines))
    with pytest.raises(KitError) as error:
        read_jsonl(path)
    assert f"{path}, line 17: " in str(error.value) and message in str(error.value)
    bad: list[str] = []
    assert len(read_jsonl(path, bad)) == 19 and len(bad) == 1 and "line 17" in bad[0]


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[1]",
        b'{"id": "\xe9"}',
        b"\xff{}",
        b'{"id": "a',
        b"[" * 100_000,
        b'{"relevant": [' + b"9" * 5000 + b"]}",
        b"nul",
    ],
)
def test_what_is_not_json_is_named(tmp_path, line) -> None:
    (tmp_path / "x.jsonl").write_bytes(line)
    with pytest.raises(KitError, match=r"x\.jsonl, line 1: .+"):
        read_jsonl(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps(GOOD) + ",", r"\(Extra data\), character \d+; JSONL is one object a line, and nothing after it"),
        (json.dumps(GOOD) * 2, r"\(Extra data\), character \d+; JSONL is one object a line"),
        ("{\n" + json.dumps(GOOD)[1:], r"\(it goes on in the next line\); JSONL is one object a line"),
        ("# mine", r"not a JSON object \(Expecting value\), character 1"),
        (str(GOOD), r"\(Expecting property name enclosed in double quotes\), character 2"),
        ('{"id": ' + "[" * 100_000, r"not a JSON object \(nested too deep\)"),
        ('{"id": ' + "9" * 9_000 + "}", r"not a JSON object \(a number of too many digits\)"),
        (json.dumps({"data": [GOOD]}), r"field 'id' must be a string; it is missing, the row has 'data'\. Fix"),
        ("{}", "it is missing, the row has no field"),
        (json.dumps({**GOOD, "query": "\ud83d"}), r"not a JSON object \(not UTF-8 text\)"),
        (json.dumps({"k" * 9_000: 1}), "the row has 'k{199}\\."),
    ],
)
def test_a_line_that_cannot_be_used_says_what_to_do(tmp_path, line, message) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(KitError, match=rf"x\.jsonl, line 2: .*{message}") as error:
        read_jsonl(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n \n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_any_line_end_and_mark_is_read(tmp_path, end, mark) -> None:
    rows = [{**GOOD, "id": f"u{n}", "query": "a\u2028b\x85c"} for n in range(3)]
    text = mark + end.join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "x.jsonl").write_bytes(text.encode())
    assert [e.query for e in read_jsonl(tmp_path / "x.jsonl")] == ["a\u2028b\x85c"] * 3


def test_a_line_of_another_encoding_spoils_no_other(tmp_path) -> None:
    lines = [json.dumps({**GOOD, "query": "“é”"}, ensure_ascii=False).encode(code) for code in ("utf-8", "cp1252")]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    bad: list[str] = []
    assert read_jsonl(tmp_path / "x.jsonl", bad)[0].query == "“é”"
    assert bad == [f"{tmp_path / 'x.jsonl'}, line 2: not a JSON object (not UTF-8 text)"]


def test_an_id_belongs_to_one_line(tmp_path, capsys) -> None:
    """Random draws and the slates of decoupled baselines are keyed by it, so that a repeated one gets a number."""
    path, ids = tmp_path / "x.jsonl", ["u", "u#2", "u", "v", "u", *"abcdefg", "v"]
    path.write_text("".join(json.dumps({**GOOD, "id": name, "query": f"q{n}"}) + "\n" for n, name in enumerate(ids)))
    splits, _ = load_task(Config(task=str(path)))
    found = [e.id for part in splits for e in part]
    assert found == ["u", "u#2", "u#3", "v", "u#4", *"abcdefg", "v#2"]
    assert "lines with the id of an earlier line, which get a number (ID#2): 3" in capsys.readouterr().err
    assert main(["data", "check", str(path)]) == 0 and "(ID#2): 3" in capsys.readouterr().out


DOUBTS = {
    "nothing": ([{"relevant": [n % 3]} for n in range(60)], ""),
    "repeated": ([{"query": f"q{n % 40}", "relevant": [n % 3]} for n in range(60)], "of an earlier line.*: 20$"),
    "all relevant": ([{"relevant": [0, 1, 2] if n < 7 else [1]} for n in range(60)], "nothing to choose: 7$"),
    "ids": ([{"candidate_ids": ["1", "2", "3"], "relevant": [n % 3]} for n in range(60)], "known in the other: 60$"),
    "first": ([{"relevant": [0]}] * 60, "in all of which candidate 0 is relevant: .*: 60$"),
    "from 1": ([{"relevant": [1 + n % 2]} for n in range(60)], "in none of which candidate 0 is relevant: .*: 60$"),
    "chance": ([{"relevant": [1 + n % 2]} for n in range(20)], ""),
}


@pytest.mark.parametrize("case", DOUBTS)
def test_what_is_valid_and_may_be_wrong_is_reported(tmp_path, capsys, case) -> None:
    path, (changes, message) = tmp_path / "x.jsonl", DOUBTS[case]
    path.write_text(
        "".join(json.dumps({**GOOD, "query": f"q{n}", "id": f"u{n}", **c}) + "\n" for n, c in enumerate(changes))
    )
    load_task(Config(task=str(path)))
    told = capsys.readouterr().err
    assert main(["data", "check", str(path)]) == 0
    assert ("x.jsonl: lines" in told) == bool(message) and told in capsys.readouterr().out
    assert re.search(message, told.strip())


def test_messages_of_many_bad_lines_take_bounded_memory(tmp_path) -> None:
    bad = Faults(f"x.jsonl, line {n}: field '{'k' * (n % 5000)}' is 7" for n in range(20_000))
    assert len(bad) == 20 and bad.total == 20_000 and len(bad.reasons) <= 1001
    path = tmp_path / "x.jsonl"
    path.write_text(rows_of({}) + rows_of({"relevant": [9]}, 50))
    bad = Faults()
    assert len(read_jsonl(path, bad)) == 12 and (len(bad), bad.total) == (20, 50)
    assert str(bad) == "field 'relevant' holds index N, but the pool has candidates N to N: 50"


def test_missing_and_empty_files(tmp_path) -> None:
    with pytest.raises(KitError, match=r"none\.jsonl: cannot be read"):
        read_jsonl(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(KitError, match="no usable example"):
        read_jsonl(tmp_path / "empty.jsonl")


def test_own_jsonl_file_is_a_task(tmp_path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({**GOOD, "id": f"u{n}"}) + "\n" for n in range(20)))
    splits, items = load_task(Config(task=str(path)))
    assert [len(part) for part in splits] == [16, 2, 2] and items == ["a", "b", "c"]
    path.write_text(json.dumps(GOOD))
    with pytest.raises(KitError, match="too few"):
        load_task(Config(task=str(path)))


def test_unknown_task() -> None:
    with pytest.raises(KitError, match="task 'lab' is not known: use lab-rec, movielens"):
        load_task(Config(task="lab"))


def test_graded_gains_and_groups_are_read_and_written(tmp_path) -> None:
    row = {**GOOD, "gains": [0.5, 0, 3], "group": "user 7"}
    del row["relevant"]
    example = parse_example(json.dumps(row))
    assert example.relevant == {0, 2} and example.gains == (0.5, 0.0, 3.0) and example.group == "user 7"
    assert parse_example(json.dumps({**row, "relevant": [2, 0]})) == example
    write_jsonl(tmp_path / "x.jsonl", [example])
    assert read_jsonl(tmp_path / "x.jsonl") == [example]
    assert json.loads(to_json(example)) == {**row, "relevant": [0, 2]}
    plain = json.loads(to_json(parse_example(json.dumps(GOOD))))
    assert plain == GOOD  # nothing is added to a row that has neither


def test_a_trace_keeps_gains_and_group(tmp_path) -> None:
    from fgrpo.prompt import Output
    from fgrpo.runs.trace import Group, from_lists, read_trace, trace_of, write_trace

    example = Example("q", "?", (), ("a", "b", "c"), (0, 2), gains=(1, 0, 4), group="s1")
    group = Group(example, from_lists(Output((0, 2), (2,)), 3))
    write_trace(tmp_path / "trace.jsonl", trace_of("t", Config(), [group]))
    (found,) = read_trace(tmp_path / "trace.jsonl").groups
    assert found.example == example


def rows_of(change: dict, count: int = 12) -> str:
    return "".join(json.dumps({**GOOD, "id": f"u{n}", **change}) + "\n" for n in range(count))


VALID = {
    "good": ({}, True), "ids": ({"candidates": ["a", "a", "b"], "candidate_ids": ["1", "2", "3"]}, True),
    "gains": ({"gains": [0, 0, 5]}, True), "extra field": ({"note": 1}, True), "no history": ({"history": []}, True),
    "duplicates": ({"candidates": ["a", "b", "b"]}, False), "pool of one": ({"candidates": ["a"], "relevant": [0]}, False),
    "blank": ({"candidates": ["a", "\t", "b"]}, False), "number": ({"id": 1}, False),
    "mask": ({"relevant": [0, 0, 1]}, False),
}  # fmt: skip


@pytest.mark.parametrize("name", ["x.jsonl", "x.JSONL", "x.ndjson", "x.txt"])
@pytest.mark.parametrize("case", VALID)
def test_check_and_training_agree(tmp_path, monkeypatch, capsys, config, name, case) -> None:
    from dataclasses import replace

    from fgrpo.policy import Policy

    monkeypatch.chdir(tmp_path)
    change, valid = VALID[case]
    (tmp_path / name).write_text(rows_of(change))
    assert main(["data", "check", name]) == (0 if valid else 2)
    err = capsys.readouterr().err
    assert "Traceback" not in err and (valid or "12 bad lines (" in err)
    if not valid:
        with pytest.raises(KitError, match=r"line 1: field "):
            load_task(Config(task=name))
        return
    splits, items = load_task(replace(config, task=name))
    Policy.tiny(items, config.model).encode(splits.train)  # which refuses a pool that holds an item twice


def test_a_file_that_is_too_short_to_train_on_is_refused_by_both(tmp_path, capsys) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(rows_of({}, 9))
    with pytest.raises(KitError, match="9 examples are too few to split 8:1:1"):
        load_task(Config(task=str(path)))
    assert main(["data", "check", str(path)]) == 2
    out, err = capsys.readouterr()
    assert "9 good lines, 0 bad" in out and "9 examples are too few" in err
    path.write_text(rows_of({}, 9) + rows_of({"id": 1}, 3))
    with pytest.raises(KitError, match=r"too few .* \(3 bad lines: field 'id' must be a string, found a number: 3\)"):
        load_task(Config(task=str(path)), bad=[])


def test_the_reasons_of_a_file_without_a_good_line_are_kept(tmp_path, capsys) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(rows_of({"id": 1}, 3) + rows_of({"relevant": [7]}, 4) + rows_of({"relevant": [9]}, 4) + "{\n")
    assert main(["data", "check", str(path)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[0] == f"{path}, line 1: field 'id' must be a string, found a number" and len(err) == 13
    counts = ("field 'relevant' holds index N, but the pool has candidates N to N: 8; field 'id' must be a string, "
              "found a number: 3; not a JSON object (")  # fmt: skip
    assert err[-1].startswith(f"fgrpo: {path}: no usable example in the file; 12 bad lines ({counts}")
    for argv in (["train", "--out", str(tmp_path / "run")], ["data", "stats"]):
        assert main([*argv, "--task", str(path), "--skip-bad"]) == 2
        (err,) = capsys.readouterr().err.splitlines()
        assert counts in err and f"the first is {path}, line 1: field 'id' must be a string" in err
    assert not (tmp_path / "run").exists()


def test_a_json_array_is_not_jsonl(tmp_path) -> None:
    (tmp_path / "y.json").write_text(json.dumps([GOOD] * 12))
    with pytest.raises(KitError, match=r"line 1: a JSON array; JSONL is one object a line"):
        load_task(Config(task=str(tmp_path / "y.json")))
    (tmp_path / "x.json").write_text(json.dumps([GOOD] * 12, indent=1))
    with pytest.raises(KitError, match=r"x\.json: is a JSON array; JSONL is one object a line"):
        load_task(Config(task=str(tmp_path / "x.json")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool": 50}, "--pool is for lab-rec, games, beir, trec and has no effect on TASK"),
        ({"one_relevant": True}, "--one-relevant is for lab-rec"),
        ({"negatives": "popular"}, "--negatives is for movielens-loo, lastfm.* and has no effect on TASK"),
        ({"has_gt": False}, "--no-has-gt is for games and has no effect on TASK"),
        ({"pool": 5, "one_relevant": True}, "--one-relevant is for lab-rec"),
    ],
)
def test_what_has_no_effect_on_a_task_is_refused(tmp_path, fields, message) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(rows_of({}))
    for task in (str(path), "movielens", "lastfm-hetrec", "musique"):
        with pytest.raises(KitError, match=message.replace("TASK", ".*")):
            load_task(Config(task=task, data="" if task == str(path) else "nowhere", **fields))
    assert load_task(Config(task=str(path), pool=20))[0].train  # the default is no choice


def test_data_and_skip_bad_where_they_do_nothing(tmp_path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(rows_of({}))
    for task in ("lab-rec", str(path)):
        with pytest.raises(KitError, match="--data is for the real data sets"):
            load_task(Config(task=task, data="somewhere"))
    for task in ("movielens", "movielens-loo", "lastfm", "lastfm-sdpo", "lastfm-hetrec", "games", "games-bpr"):
        with pytest.raises(KitError, match=f"--skip-bad is for JSONL, HotpotQA and MuSiQue; of {task} every row"):
            load_task(Config(task=task, data="somewhere"), bad=[])
