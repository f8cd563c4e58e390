"""Whatever a file holds, it is read right or refused in one sentence: no traceback, no silent wrong read.

Some hundreds of cases each by default. In full: `FGRPO_FUZZ=20000 python -m pytest tests/test_fuzz.py`.
"""

import contextlib
import dataclasses
import io
import json
import os
import resource
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from app.library import Library
from app.show import Chosen, show, training
from fgrpo.config import CONCERNS, Config, GrammarConfig, KitError, ModelConfig
from fgrpo.data import Example, Splits
from fgrpo.policy import Policy
from fgrpo.prompt import ERRORS, Output, completion_text, parse
from fgrpo.runs.fields import config_with, with_fields
from fgrpo.runs.policies import load_policy
from fgrpo.runs.run import Run, read_config, read_metrics
from fgrpo.runs.seal import SUMS
from fgrpo.runs.trace import credit_of, parse_trace, read_trace, trace_of, trace_policy, write_trace
from fgrpo.study.experiments import parse_vary
from fgrpo.tasks.jsonl import parse_example, read_jsonl, to_json, to_row
from fgrpo.trainer import fit, make_optimizer, rl_stage

CASES = int(os.environ.get("FGRPO_FUZZ", "300"))
fuzz = settings(
    max_examples=CASES, derandomize=CASES < 1000, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)

NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([10**400, -(10**400), 2**63, 2**62, 10**9, -1, 0, True, 1e308])
)
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(["", "\ud800", "\u2028", "\x85", "\x00", "é", "<SLATE>", "i1"]))
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
JSON = st.recursive(LEAVES, lambda x: st.lists(x, max_size=4) | st.dictionaries(TEXTS, x, max_size=4), max_leaves=8)


def paths(value: Any, here: tuple = ()) -> list[tuple]:
    """Where in a JSON value something stands."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(p for key, x in inner for p in paths(x, (*here, key)))]


@st.composite
def altered(draw: st.DrawFn, row: Any) -> Any:
    """A JSON value with up to three places in it replaced, taken out, or doubled."""
    row = json.loads(json.dumps(row))
    for _ in range(draw(st.integers(0, 3))):
        *there, last = draw(st.sampled_from(paths(row)[1:] or [(None,)]))
        if last is None:
            break
        around = row
        for key in there:
            around = around[key]
        what = draw(st.sampled_from(["replace", "delete", "double", "near"]))
        if what == "replace":
            around[last] = draw(JSON)
        elif what == "delete":
            del around[last]
        elif what == "double" and isinstance(around, list):
            around.insert(last, around[last])
        elif isinstance(around[last], int):
            around[last] += draw(st.integers(-2, 2))
    return row


@st.composite
def damaged(draw: st.DrawFn, blob: bytes) -> bytes:
    """Bytes with bits flipped, cut short, or with something put in."""
    changed_bytes = bytearray(blob)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(changed_bytes) - 1)))
        what = draw(st.sampled_from(["flip", "flip", "cut", "insert"]))
        if what == "flip" and changed_bytes:
            changed_bytes[place] ^= 1 << draw(st.integers(0, 7))
        elif what == "cut":
            del changed_bytes[place:]
        else:
            changed_bytes[place:place] = draw(
                st.binary(max_size=4) | st.sampled_from([b"\n", b"\xed\xa0\x80", b"\\ud800"])
            )
    return bytes(changed_bytes)


def plain(text: str) -> dict[str, Any]:
    """JSON by the standard library alone, a field that stands twice refused."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


# --- task files -------------------------------------------------------------------------------------------------------

ROW = {"id": "u1", "query": "Which?", "history": ["a", "b"], "candidates": ["c", "d", "e"], "relevant": [0, 2],
       "history_ids": ["1", "2"], "candidate_ids": ["3", "4", "5"]}  # fmt: skip


def check_example(line: bytes) -> None:
    try:
        found = parse_example(line)
    except KitError as error:
        assert "\n" not in str(error)
        return
    row = plain(line.decode("utf-8-sig"))
    assert (found.id, found.query) == (row["id"], row["query"])
    assert [list(x) for x in (found.history, found.candidates)] == [row["history"], row["candidates"]]
    assert [list(x) for x in (found.history_ids, found.candidate_ids)] == [
        row.get(name) or [] for name in ("history_ids", "candidate_ids")
    ]
    assert found.relevant == set(row["relevant"]) and max(found.relevant) < len(found.candidates)
    assert parse_example(to_json(found).encode()) == found


@fuzz
@given(altered(ROW) | JSON, st.booleans())
def test_a_row_of_a_task_is_read_right_or_refused(row: Any, ascii_only: bool) -> None:
    check_example(json.dumps(row, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))


@fuzz
@given(damaged(json.dumps(ROW).encode()) | st.binary(max_size=40))
def test_a_damaged_line_of_a_task_is_read_right_or_refused(line: bytes) -> None:
    check_example(line)


@fuzz
@given(damaged(3 * (json.dumps(ROW).encode() + b"\n")))
def test_a_damaged_file_of_a_task_is_read_right_or_refused(blob: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "task.jsonl"
        path.write_bytes(blob)
        bad: list[str] = []
        with contextlib.suppress(KitError):
            found = read_jsonl(path, bad)
            assert len(found) + len(bad) == sum(bool(line.strip()) for line in blob.split(b"\n"))
        if bad:
            with pytest.raises(KitError, match=r"task\.jsonl"):
                read_jsonl(path)


# --- what a policy writes ---------------------------------------------------------------------------------------------

LABELS = st.lists(st.text(st.characters(exclude_characters="<>,"), min_size=1, max_size=3) | st.sampled_from(["1", "i2"]),
                  min_size=1, max_size=8, unique=True)  # fmt: skip
PIECES = st.sampled_from(["<SLATE>", "</SLATE>", "<RANK>", "</RANK>", " ", ",", "\n", "1", "i2", "i3", "\u0661", "<"])


@fuzz
@given(st.lists(PIECES | st.text(max_size=3), max_size=24).map("".join), LABELS, st.integers(1, 6), st.integers(1, 6))
def test_the_parser_reads_any_text(text: str, labels: list[str], slate: int, rank: int) -> None:
    of = {label: i for i, label in enumerate(labels)}
    grammar = GrammarConfig(max(slate, rank), min(slate, rank))
    found = parse(text, of, grammar)
    assert found.error in ERRORS
    if found.error:
        assert not found.slate and not found.rank
        return
    written = completion_text(found.slate, found.rank, labels).removesuffix("<eos>")
    assert "".join(text.replace(",", " ").split()) == "".join(written.split())  # nothing read that is not there
    assert 1 <= len(found.rank) <= grammar.rank_size and len(found.slate) <= grammar.slate_size
    assert set(found.rank) <= set(found.slate) and len(set(found.slate)) == len(found.slate)


@fuzz
@given(LABELS, st.data())
def test_what_is_written_well_is_read_as_it_was_meant(labels: list[str], data: st.DataObject) -> None:
    assume(all(label.split() == [label] for label in labels))
    slate = data.draw(st.permutations(range(len(labels))).map(lambda x: tuple(x[: 1 + x[0]])))
    rank = data.draw(st.permutations(slate).map(lambda x: tuple(x[: 1 + x[0] % len(x)])))
    text = completion_text(slate, rank, labels).removesuffix("<eos>")
    of = {label: i for i, label in enumerate(labels)}
    assert parse(text, of, GrammarConfig(len(slate), len(rank))) == Output(slate, rank)
    if len(slate) > len(rank):
        assert parse(text, of, GrammarConfig(len(slate) - 1, len(rank))).error == "too_long"


# --- configurations ---------------------------------------------------------------------------------------------------

NAMES = [f.name for kind in (Config, *CONCERNS.values()) for f in dataclasses.fields(kind)]


def same(given_values: Any, found: Any) -> bool:
    """Whether every value that was given is the value found, of the same type but for whole numbers."""
    if isinstance(given_values, dict):
        return all(same(value, found[name]) for name, value in given_values.items())
    return given_values == found and isinstance(given_values, bool) == isinstance(found, bool)


@fuzz
@given(altered(Config().to_dict()) | JSON)
def test_a_configuration_is_read_right_or_refused(values: Any) -> None:
    try:
        found = Config.from_dict(values)
    except KitError as error:
        assert "\n" not in str(error)
        return
    assert same(values, found.to_dict()) and Config.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    torch.Generator().manual_seed(found.seed * 1_000_003)


@fuzz
@given(st.dictionaries(st.sampled_from(NAMES), LEAVES | st.integers(0, 20), max_size=4))
def test_flat_options_are_read_right_or_refused(values: dict[str, Any]) -> None:
    try:
        found = config_with(**values).to_dict()
    except KitError:
        return
    flat = {**found, **{name: value for concern in CONCERNS for name, value in found[concern].items()}}
    assert same(values, flat)


@fuzz
@given(
    st.dictionaries(
        st.sampled_from(NAMES) | TEXTS, LEAVES.map(str) | st.sampled_from(["1", "nan", "1e999"]), max_size=2
    )
)
def test_options_as_text_are_read_right_or_refused(texts: dict[str, str]) -> None:
    with contextlib.suppress(KitError):
        vary = parse_vary([f"{name}={text}" for name, text in texts.items()])
        found = with_fields(Config(), **{name: values[0] for name, values in vary.items()})
        assert Config.from_dict(found.to_dict()) == found


# --- traces -----------------------------------------------------------------------------------------------------------


@cache
def trace_lines() -> tuple[bytes, ...]:
    """A trace of two queries with two rollouts each, as a file."""
    config = config_with(group=2, slate_size=3, rank_size=2, credit="grpo")
    policy = Policy.tiny(list("abcdef"), ModelConfig(8, 1, 2))
    rows = [Example(f"u{n}", "\u2028?", ("e", "f"), tuple("abcd"), frozenset({n})) for n in range(2)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.jsonl"
        write_trace(path, trace_of("a", config, trace_policy(policy, rows, config, 1, step=3)))
        return tuple(path.read_bytes().splitlines(keepends=True))


def check_trace(lines: list[bytes]) -> None:
    try:
        found = parse_trace(lines, "file")
    except KitError as error:
        assert str(error).startswith("file") and "\n" not in str(error)
        return
    written = [line for line in lines if line.strip()]
    rows = [plain(line.decode("utf-8-sig")) for line in written[: len(written) - len(found.notes)]]
    rows = [row for row in rows if "trace" not in row]
    assert len(rows) == len(found.groups)
    for row, group in zip(rows, found.groups, strict=True):
        assert group.example == parse_example(
            json.dumps(row.get("query") if "query" in row and "candidates" not in row else row)
        )
        for stored, read in zip(row.get("rollouts", []), group.rollouts, strict=True):
            assert (stored.get("slate", []), stored.get("rank", [])) == (
                list(read.output.slate),
                list(read.output.rank),
            )
            assert list(read.logprobs) == (stored.get("logprobs", []) if stored.get("tokens") else [])
        with contextlib.suppress(KitError):
            rewards, advantages = credit_of(group, found.config)
            assert rewards.slate.isfinite().all() and advantages.isfinite().all()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.jsonl"
        write_trace(path, found)
        again = read_trace(path)
        assert [g.example for g in again.groups] == [g.example for g in found.groups]
        write_trace(
            path, dataclasses.replace(found, groups=[dataclasses.replace(found.groups[0], step=10**6)]), more=True
        )
        assert len(read_trace(path).groups) >= 1


@fuzz
@given(st.data())
def test_a_trace_with_altered_fields_is_read_right_or_refused(data: st.DataObject) -> None:
    header, first, *rest = trace_lines()
    some = [json.dumps(data.draw(altered(json.loads(x)))).encode() + b"\n" for x in (header, first)]
    check_trace([*some, *rest])


SIZES = st.sampled_from([0, 1, 2, 3, 7, 10**9, 2**62, 2**63])


@fuzz
@given(st.dictionaries(st.sampled_from(["slate_size", "rank_size", "hidden_size", "layers", "group", "rankings", "pool",
                                        "queries", "micro", "lora_rank"]), SIZES, max_size=4))  # fmt: skip
def test_the_sizes_in_a_header_allocate_nothing(sizes: dict[str, int]) -> None:
    header, *rest = trace_lines()
    row = json.loads(header)
    row["config"] |= {name: value for name, value in sizes.items() if name == "pool"}
    for concern in row["config"].values():
        if isinstance(concern, dict):
            concern |= {name: value for name, value in sizes.items() if name in concern}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check_trace([json.dumps(row).encode() + b"\n", *rest])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # 50 MB on Linux


@settings(fuzz, max_examples=max(100, CASES // 5))
@given(st.data())
def test_the_app_shows_an_altered_trace_or_says_why_not(data: st.DataObject) -> None:
    header, first, *rest = trace_lines()
    some = [json.dumps(data.draw(altered(json.loads(x)))).encode() + b"\n" for x in (header, first)]
    with TemporaryDirectory() as folder:
        (Path(folder) / "t.jsonl").write_bytes(b"".join([*some, *rest]))
        credit = data.draw(st.sampled_from(["item", "fgrpo", "nested", "gdpo"]))
        chosen = Chosen("mine", credit=credit, colour="entropy", a="mine", b="mine")
        page = show(Library(folder), chosen, {"mine": str(Path(folder) / "t.jsonl")})
    assert page.problems or page.html["query"]
    assert not any("cannot be shown" in str(problem) for problem in page.problems), page.problems


METRICS = {"step": 3, "loss": 0.5, "reward/slate": 0.25, "reward/rank": 0.5, "tokens": 100}


@settings(fuzz, max_examples=max(20, CASES // 40))
@given(st.lists(altered(METRICS), min_size=1, max_size=3))
def test_the_app_draws_altered_metrics_or_says_why_not(rows: list[Any]) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name) / "run"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(Config().to_dict()))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        shown = training(Library(name), "runs/run")
    assert shown and "cannot be shown" not in shown


@fuzz
@given(st.data())
def test_a_damaged_trace_is_read_right_or_refused(data: st.DataObject) -> None:
    check_trace(list(io.BytesIO(data.draw(damaged(b"".join(trace_lines()))))))


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two steps of the smallest policy there is."""
    config = config_with(queries=2, group=2, steps=2, hidden_size=8, layers=1, heads=2, slate_size=2, rank_size=1)
    rows = [Example(f"u{n}", "?", ("d",), tuple("abc"), frozenset({n})) for n in range(2)]
    found = Run(tmp_path_factory.mktemp("runs") / "a", config, save_every=2)
    fit(Policy.tiny(list("abcd"), config.model), rows, config, found, quiet=True)
    return found


@cache
def newborn() -> Policy:
    """What a run without a checkpoint would begin with."""
    return Policy.tiny(list("abcd"), ModelConfig(8, 1, 2), seed=7)


def state_of(run: Run) -> tuple[Any, ...]:
    """All that a run goes on from."""
    policy, optimizer, done = run.restore(newborn(), lambda p: make_optimizer(p, rl_stage(run.config)))
    moments = [x for fields in optimizer.state_dict()["state"].values() for x in fields.values()]
    tensors = [*policy.model.state_dict().values(), *moments]
    return policy.labels.items, policy.tokenizer.get_vocab(), policy.model.config.to_dict(), done, tensors


def same_state(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    apart = [{k: v for k, v in x[2].items() if k != "_name_or_path"} for x in (a, b)]
    equal = len(a[4]) == len(b[4]) and all(torch.equal(x, y) for x, y in zip(a[4], b[4], strict=True))
    return equal and a[:2] == b[:2] and a[3] == b[3] and apart[0] == apart[1]


@contextlib.contextmanager
def with_file(path: Path, blob: bytes | None) -> Any:
    """While open, a file holds something else, or is gone."""
    kept = path.read_bytes()
    if blob is None:
        path.unlink()
    else:
        path.write_bytes(blob)
    try:
        yield
    finally:
        path.write_bytes(kept)


@fuzz
@given(data=st.data())
def test_a_damaged_checkpoint_is_read_to_the_bit_or_refused(run: Run, data: st.DataObject) -> None:
    folder = run.latest()
    files = sorted(folder.iterdir())
    assert {SUMS, "model.safetensors", "trainer.safetensors", "trainer.json", "items.json"} <= {p.name for p in files}
    path = data.draw(st.sampled_from(files))
    blob = data.draw(damaged(path.read_bytes()) | st.none() if path.name != SUMS else damaged(path.read_bytes()))
    wanted = reference(run)
    with with_file(path, blob):
        for read in (lambda: load_policy(folder), lambda: state_of(run)):
            try:
                found = read()
            except KitError as error:
                assert folder.name in str(error) and "\n" not in str(error)
            else:
                if isinstance(found, Policy):
                    weights = found.model.state_dict().values()
                    assert all(torch.equal(a, b) for a, b in zip(weights, wanted[4], strict=False))
                else:
                    assert same_state(found, wanted)


@cache
def reference(run: Run) -> tuple[Any, ...]:
    return state_of(run)


@settings(fuzz, max_examples=max(100, CASES // 20))
@given(data=st.data())
def test_a_damaged_checkpoint_without_sums_raises_nothing_else(run: Run, tmp_path_factory, data: st.DataObject) -> None:
    """As those before the sums, which may be read wrong: a bit of a weight is a weight."""
    with TemporaryDirectory() as name:
        folder = Path(name) / "step-000002"
        shutil.copytree(run.latest(), folder)
        (folder / SUMS).unlink()
        path = data.draw(st.sampled_from(sorted(folder.iterdir())))
        path.write_bytes(data.draw(damaged(path.read_bytes())))
        with contextlib.suppress(KitError):
            load_policy(folder)


@fuzz
@given(data=st.data())
def test_damaged_files_of_a_run_are_read_right_or_refused(run: Run, data: st.DataObject) -> None:
    with with_file(run.folder / "config.json", data.draw(damaged((run.folder / "config.json").read_bytes()))):
        try:
            found = read_config(run.folder)
        except KitError:
            pass
        else:
            stored = json.loads((run.folder / "config.json").read_bytes())
            stored.pop("made", None)
            assert same(stored, found.to_dict())
    with with_file(run.metrics, data.draw(damaged(run.metrics.read_bytes()))):
        lines = list(io.BytesIO(run.metrics.read_bytes()))
        try:
            rows = read_metrics(run.folder)
        except KitError as error:
            assert "metrics.jsonl, line" in str(error)
        else:
            assert rows == [json.loads(line) for line in lines[: len(rows)]] and len(lines) - len(rows) in (0, 1)


def test_rows_of_the_lab_are_read_as_they_are_written(lab: Splits) -> None:
    for example in lab.test[:20]:
        assert parse_example(json.dumps(to_row(example) | {"history": list(example.history)})) == example
