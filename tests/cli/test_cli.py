"""The command line: status, one line of error, JSON alone on stdout, and what the commands write."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fgrpo.cli.main import COMMANDS, main
from fgrpo.cli.options import config_of, parser_of
from fgrpo.runs.run import read_config, read_metrics
from fgrpo.runs.trace import read_trace
from fgrpo.study.analysis import format_analysis
from fgrpo.tasks.jsonl import read_jsonl, write_jsonl
from fgrpo.tasks.lab import lab_task

ROOT = Path(__file__).parents[2]
SIZE = ["--hidden-size", "32", "--layers", "1", "--heads", "2"]
SFT = ["--sft-steps", "3", "--sft-batch", "8"]
RL = ["--steps", "3", "--queries", "4", "--group", "4"]
TINY = [*SIZE, *SFT, *RL]


@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def call(capsys, *argv: str) -> tuple[int, str, str]:
    status = main(list(argv))
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize(
    "command",
    [
        "",
        "demo",
        "train",
        "evaluate",
        "compare",
        "analyse",
        "bench",
        "data",
        "data build",
        "data check",
        "data stats",
        "data fetch",
        "data fetch-model",
    ],
)
def test_help(command) -> None:
    out = subprocess.run(
        [sys.executable, "-m", "fgrpo", *command.split(), "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert out.returncode == 0 and out.stdout.startswith("usage: python -m fgrpo") and not out.stderr


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, fgrpo.cli.main as m; m.parser_of(m.COMMANDS); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_train_evaluate_resume(capsys) -> None:
    status, out, err = call(capsys, "train", "--out", "runs/a", "--json", *TINY)
    report = json.loads(out)
    assert status == 0 and err == "" and report["task"] == "lab-rec" and report["queries"] == 1024
    assert len(read_metrics("runs/a")) == 3 and len(read_metrics("runs/a/warm-start")) == 3
    assert all({g.step for g in read_trace(f"runs/{x}/trace.jsonl").groups} == {3} for x in ("a", "a/warm-start"))
    made = json.loads(Path("runs/a/config.json").read_text())["made"]
    assert made["command"].startswith("python -m fgrpo") and made["versions"]["torch"] and made["hardware"]
    status, out, _ = call(capsys, "evaluate", "--checkpoint", "runs/a", "--split", "validation", "--json")
    assert status == 0 and json.loads(out)["metrics"] == report["metrics"]
    status, out, _ = call(capsys, "train", "--out", "runs/a", "--resume", "--json", *TINY)
    assert status == 0 and json.loads(out) == report


def test_a_policy_alone_is_kept_of_an_rl_run(capsys) -> None:
    start = ["--init", str(ROOT / "data/checkpoints/lab-rec"), "--policy-only", "--save-every", "1"]
    status, out, _ = call(capsys, "train", "--out", "runs/a", "--json", *start, *RL)
    (left,) = Path("runs/a/checkpoints").iterdir()
    assert status == 0 and left.name == "step-000003" and not list(left.glob("trainer*"))
    assert {g.step for g in read_trace("runs/a/trace.jsonl").groups} == {1, 2, 3}
    again = call(capsys, "evaluate", "--checkpoint", "runs/a", "--split", "validation", "--json")[1]
    assert json.loads(again) == json.loads(out)


CHOICES = {
    "slate size": ["--slate-size", "3", "--rank-size", "2"],
    "full lists": ["--slate-size", "7", "--rank-size", "7", "--full"],
    "free decoding": ["--decoding", "free"],
    "pool": ["--pool", "30", "--one-relevant"],
    "nested": ["--credit", "nested", "--rankings", "2"],
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_checkpoint_is_measured_as_it_was_trained(capsys, choice) -> None:
    """Grammar, decoding and task come from the run's config.json, from its folder or any checkpoint in it."""
    trained = call(capsys, "train", "--out", "runs/a", "--init", "base", "--json", *SIZE, *RL, *CHOICES[choice])[1]
    for place in ("runs/a", "runs/a/checkpoints/step-000003"):
        argv = ["evaluate", "--checkpoint", place, "--split", "validation", "--json"]
        assert json.loads(call(capsys, *argv)[1]) == json.loads(trained)
    config = read_config("runs/a")
    metrics, (last,) = json.loads(trained)["metrics"], read_metrics("runs/a")[-1:]
    if choice == "slate size":
        assert 0 < metrics["slate_length"] <= 3 and last["slate_length"] <= 3
    if choice == "full lists":
        assert metrics["slate_length"] == last["slate_length"] == 7
    if choice == "free decoding":
        assert metrics["format_error"] > 0.9  # three steps do not teach the grammar, and nothing enforces it
    argv = [
        "trace",
        "--checkpoint",
        "runs/a",
        "--split",
        "validation",
        "--limit",
        "5",
        "--sampled",
        "2",
        "--out",
        "t.jsonl",
    ]
    status, out, err = call(capsys, *argv, "--json")
    assert status == 0 and err == "" and json.loads(out)["queries"] == 5
    found = read_trace("t.jsonl")
    assert found.config == config and found.made["command"].startswith("python")
    assert [len(g.rollouts) for g in found.groups] == [4, 4, 0, 0, 0]
    assert {g.rankings for g in found.groups[:2]} == {config.rl.rankings}
    assert {len(g.example.candidates) for g in found.groups} == {config.pool}
    lists = [r.output for g in found.groups for r in (g.greedy, *g.rollouts) if not r.output.error]
    assert all(len(o.slate) <= config.grammar.slate_size and len(o.rank) <= config.grammar.rank_size for o in lists)


def test_another_task_or_part_of_one_may_be_measured(capsys) -> None:
    lab = str(ROOT / "data/checkpoints/lab-rec")
    out = call(capsys, "evaluate", "--checkpoint", lab, "--split", "all", "--limit", "7", "--json")[1]
    assert json.loads(out)["queries"] == 7
    write_jsonl("mine.jsonl", lab_task().test[:20])
    out = call(capsys, "evaluate", "--checkpoint", lab, "--task", "mine.jsonl", "--json")[1]
    assert json.loads(out)["task"] == "mine.jsonl" and json.loads(out)["queries"] == 2


def test_compare_gives_the_documented_json_and_files(capsys) -> None:
    argv = ["--credits", "grpo,fgrpo", "--seeds", "2", "--baselines", "random,attributes", "--limit", "64", "--jobs", "1",
            "--preference", "dpo,s_dpo", "--out", "runs/c", "--json", *TINY]  # fmt: skip
    status, out, err = call(capsys, "compare", *argv)
    report = json.loads(out)
    assert status == 0 and err == "" and set(report) == {"task", "rows", "check", "tokens", "seconds"}
    rows = {(r["method"], r["metric"]): r for r in report["rows"]}
    assert list(dict.fromkeys(m for m, _ in rows)) == [
        "random", "attributes", "sft_full", "sft_once", "sft_more", "dpo", "s_dpo", "sft", "grpo", "fgrpo"
    ]  # fmt: skip
    assert [line.split(" by ")[0] for line in report["check"]] == [
        f"{method} differs from {row}" for row in ("sft_full", "sft_more") for method in ("grpo", "fgrpo")
    ]
    for row in report["rows"]:
        assert {"method", "metric", "mean", "low", "high", "diff", "diff_low", "diff_high", "detectable", "verdict",
                "seeds"} <= set(row)  # fmt: skip
        assert row["low"] - 1e-9 <= row["mean"] <= row["high"] + 1e-9 and row["starts"] == 2
    assert rows["grpo", "ndcg@5"]["diff"] == 0 and rows["fgrpo", "ndcg@5"]["verdict"]
    assert rows["fgrpo", "ndcg@5"]["seeds"] == 2 and rows["dpo", "ndcg@5"]["seeds"] == 0
    made, header, *lines = Path("runs/c/comparison.csv").read_text().splitlines()
    assert json.loads(made[2:])["command"].startswith("python -m fgrpo")
    assert header.startswith("setting,method,metric,mean,low")
    assert len(lines) == len(report["rows"])
    files = {p.name for p in Path("runs/c").iterdir()}
    assert {"comparison.csv", "manipulation.csv", "comparison.png", "learning.png", "errors.png", "grpo-seed0",
            "fgrpo-seed1", "warm-start", "warm-start-seed1", "sft_once-start1", "sft_more-start0",
            "dpo-start1"} <= files  # fmt: skip


def test_analyse_finds_the_biased_method(capsys) -> None:
    call(capsys, "train", "--sft", "--policy-only", "--out", "p", "--json", *SIZE, *SFT, "--hidden-size", "16")
    argv = ["--checkpoint", "p", "--pools", "1", "--batches", "1", "--groups", "2", "--credits", "grpo,fgrpo"]
    status, out, err = call(capsys, "analyse", "--json", "--out", "o/oracle.csv", *argv)
    report = json.loads(out)
    assert status == 0 and err == "" and set(report) == {"rows", "separability", "interference"}
    exact = {r["method"]: r for r in report["rows"] if r["exact"] and r["group"] == 3}
    assert exact["grpo"]["angle"] < 0.1 < exact["fgrpo"]["angle_slate"]
    assert Path("o/oracle.png").stat().st_size and Path("o/oracle.csv").read_text().startswith('# {"command"')
    text = format_analysis(report["rows"], report["separability"], report["interference"])
    assert "Angles in degrees" in text and "fgrpo" in text
    assert "'who' is not known" in call(capsys, "analyse", *argv, "--credits", "who")[2]
    assert json.loads(Path("o/oracle.csv").read_text().splitlines()[0][2:])["config"]["model"]["hidden_size"] == 16


def test_analyse_counts_wrong_signs(capsys) -> None:
    argv = ["--signs", "--pools", "3", "--groups", "3,8", "--credits", "grpo,nested", "--out", "signs.csv"]
    status, out, err = call(capsys, "analyse", "--json", *argv)
    rows = json.loads(out)["rows"]
    assert status == 0 and err == "" and {r["queries"] for r in rows} == {3}
    cases = [(r["method"], r["group"], r["phase"]) for r in rows]
    assert cases == [(m, g, p) for m, g in (("grpo", 3), ("grpo", 8), ("nested", 8)) for p in ("slate", "rank")]
    assert all(0 <= r["wrong_low"] <= r["wrong"] <= r["wrong_high"] < 1 for r in rows)
    assert Path("signs.csv").read_text().startswith('# {"command"') and not Path("signs.png").exists()
    assert "opposite sign" in call(capsys, "analyse", *argv)[1]


def test_results_do_not_depend_on_the_number_of_jobs(capsys) -> None:
    reports = []
    for jobs in ("1", "2"):
        argv = ["--seeds", "1", "--credits", "grpo,fgrpo", "--baselines", "random", "--limit", "64", "--jobs", jobs,
                "--no-sft-more", "--out", f"runs/{jobs}", "--json", *TINY]  # fmt: skip
        reports.append(json.loads(call(capsys, "compare", *argv)[1])["rows"])
    for row in [*reports[0], *reports[1]]:
        del row["seconds"]
    assert reports[0] == reports[1]


def test_build_writes_the_lab_as_files_to_look_at(capsys) -> None:
    assert call(capsys, "data", "build", "--out", "lab")[0] == 0
    names = ("catalogue", "test", "train", "validation")
    assert sorted(p.name for p in Path("lab").iterdir()) == [f"{name}.jsonl" for name in names]
    assert read_jsonl("lab/test.jsonl") == lab_task().test
    assert call(capsys, "data", "build", "--out", "one", "--one-relevant")[0] == 0
    status, out, _ = call(capsys, "data", "check", "one/train.jsonl")
    assert status == 0 and "1000 good lines, 0 bad" in out and "1 to 1 relevant" in out


GOOD = '{"id": "a", "query": "q", "history": [], "candidates": ["a", "b"], "relevant": [0]}\n'
NO_RELEVANT = GOOD.replace("[0]", "[]")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train"], "--out"),
        (["train", "--out", "x", "--task", "nope"], "task 'nope' is not known"),
        (["train", "--out", "x", "--task", "none.jsonl"], "none.jsonl: cannot be read (No such file or directory)"),
        (["train", "--out", "x", "--task", "broken.jsonl"], "broken.jsonl, line 17: field 'relevant' is empty"),
        (["train", "--out", "x", "--task", "small.jsonl", *TINY], "smaller than slate_size 10"),
        (["train", "--out", "x", "--task", "movielens", "--data", "nowhere"], "no MovieLens here"),
        (["train", "--out", "x", "--lr", "fast"], "invalid float value: 'fast'"),
        (["train", "--out", "x", "--lr", "nan"], "lr nan must be at least 1e-12"),
        (["train", "--out", "x", "--group", "1"], "group 1 must be at least 2"),
        (["train", "--out", "x", "--slate-reward", "mrr"], "slate_reward 'mrr' is not known; choose from recall"),
        (["train", "--out", "x", "--rank-size", "20"], "larger than slate_size"),
        (["train", "--out", "x", "--credit", "who"], "credit 'who' is not known"),
        (
            ["evaluate", "--checkpoint", str(ROOT / "data/checkpoints/lab-rec"), "--device", "abacus"],
            "device 'abacus' cannot",
        ),
        (["compare", "--ratio", "sequence"], "averages the phases"),
        (["compare", "--credits", ""], "name at least one method"),
        (["compare", "--init", "nowhere"], "no policy here"),
        (["compare", "--credits", "grpo:scale=std"], "credit 'grpo:scale=std' is not known"),
        (["compare", "--vary", "lam=a,b"], "values of 'lam' must be of type float"),
        (["compare", "--baselines", "zero_shot"], "baseline 'zero_shot' needs a model, so it runs from Python"),
        (["analyse", "--checkpoint", "nowhere"], "nowhere: no policy here"),
        (["evaluate", "--checkpoint", "nowhere"], "nowhere: no policy here"),
        (["evaluate", "--checkpoint", "."], "no run here"),
        (["evaluate", "--checkpoint", "base"], "name it with --model"),
        (["evaluate", "--checkpoint", "x", "--slate-size", "3"], "unrecognized arguments: --slate-size"),
        (["trace", "--checkpoint", "nowhere", "--out", "t.jsonl"], "nowhere: no policy here"),
        (["compare", "--seeds", "0"], "'0' must be whole numbers above 0"),
        (["demo", "--jobs", "-3"], "'-3' must be whole numbers above 0"),
        (["train", "--out", "x", "--save-every", "1,2"], "'1,2' must be one whole number"),
        (["bench", "--prompt", "a,b"], "'a,b' must be whole numbers"),
        (["bench", "--prompt", "20"], "prompt 20 must be at least 67 for a pool of 64"),
        (["bench", "--completion", "400"], "completion 400 must be from 15 to 74"),
        (["bench", "--peers", "verl"], "the one peer is trl"),
        (["data", "check", "broken.jsonl"], "1 bad lines"),
        (["data", "build", "--out", "/proc/none"], "cannot be written"),
        (["dance"], "invalid choice: 'dance'"),
        (["train", "--out", "x", "--task", "lastfm", "--data", "nowhere"], "nowhere: no LastFM here"),
        (["train", "--out", "x", "--task", "musique", "--data", "nowhere"], "nowhere: cannot be read (No such file"),
        (["train", "--out", "x", "--task", "hotpotqa", "--data", "."], "no file hotpot_train*.json*"),
        (["data", "stats", "--task", "hotpotqa"], "task hotpotqa needs its data: name the folder or file with --data"),
        (["data", "stats", "--task", "broken.jsonl"], "broken.jsonl, line 17: field 'relevant' is empty"),
        (["data", "fetch", "netflix"], "invalid choice: 'netflix'"),
        (["data", "fetch-model", "gpt"], "invalid choice: 'gpt'"),
    ],
)
def test_bad_input_gets_one_clear_line_and_status_2(capsys, argv, message) -> None:
    Path("broken.jsonl").write_text(GOOD * 16 + NO_RELEVANT + GOOD * 3)
    Path("small.jsonl").write_text(GOOD * 20)
    status, out, err = call(capsys, *argv)
    assert status == 2 and message in err and (out == "" or argv[:2] == ["data", "check"])
    lines = [line for line in err.splitlines() if line.startswith("fgrpo: ")]
    assert len(lines) == 1 and "Traceback" not in err


def test_a_call_that_failed_before_training_may_be_repeated(capsys) -> None:
    argv = ["train", "--out", "runs/a", "--json", *TINY]
    assert call(capsys, *argv, "--device", "abacus")[0] == 2
    assert call(capsys, *argv)[0] == 0
    assert "already holds a run" in call(capsys, *argv)[2]


def test_another_task_is_measured_with_its_own_pools(capsys, lab) -> None:
    """--pool of the run's lab task is no choice for the file that --task names."""
    from fgrpo.tasks.jsonl import write_jsonl

    write_jsonl("x.ndjson", lab.test[:20])
    argv = ["train", "--out", "runs/a", "--init", "base", "--json", "--pool", "30", "--one-relevant", *SIZE, *RL]
    assert call(capsys, *argv)[0] == 0
    status, out, err = call(capsys, "evaluate", "--checkpoint", "runs/a", "--task", "x.ndjson", "--json")
    assert (status, err) == (0, "") and json.loads(out)["queries"] == 2
    for option in (["--pool", "30"], ["--one-relevant"], ["--data", "somewhere"]):
        status, out, err = call(capsys, "train", "--task", "x.ndjson", "--out", "runs/b", *option, *TINY)
        assert status == 2 and option[0] in err and err.count("\n") == 1 and not Path("runs/b").exists()


def test_skip_bad_counts_and_goes_on(capsys) -> None:
    good = GOOD.replace('["a", "b"]', json.dumps([f"c{n}" for n in range(12)]))
    Path("x.jsonl").write_text(good * 16 + NO_RELEVANT + good * 10)
    status, out, err = call(capsys, "train", "--task", "x.jsonl", "--out", "runs/x", "--json", "--skip-bad", *TINY)
    assert status == 0 and json.loads(out)["queries"] == 3
    assert err.startswith("x.jsonl, line 17: field 'relevant' is empty")
    assert err.endswith("skipped 1 broken lines of x.jsonl\n")


def test_stats_counts_what_a_task_holds(capsys) -> None:
    row = {"id": "a", "query": "Which?", "history": ["x y"], "candidates": ["one", "two", "two"], "relevant": [0],
           "candidate_ids": ["one", "two", "2"], "group": "u1"}  # fmt: skip
    rows = [
        {**row, "candidates": ["one", "two", "three"][: 2 + n // 8], "history": ["x y"] * n, "candidate_ids": None}
        for n in range(18)
    ]
    Path("x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [row, *rows, row]) + NO_RELEVANT)
    status, out, err = call(capsys, "data", "stats", "--task", "x.jsonl", "--skip-bad", "--json")
    found = json.loads(out)
    assert status == 0 and err.endswith("skipped 1 broken lines of x.jsonl\n") and found["items"] == 5
    train = found["splits"]["train"]
    assert (
        train["examples"] == 16
        and train["duplicates"] == train["groups"] == 1
        and found["splits"]["test"]["duplicates"] == 1
    )
    assert train["history"] == {"min": 0, "median": 6.5, "p95": 14, "max": 14}
    assert train["pool"]["max"] == 3 and train["relevant"] == {"min": 1, "median": 1, "p95": 1, "max": 1}
    assert train["words"]["max"] == 1 + 2 * 14 + 3 and train["characters"]["max"] == len("Which?") + 3 * 14 + len(
        "onetwothree"
    )
    status, out, _ = call(capsys, "data", "stats", "--task", "x.jsonl", "--skip-bad")
    assert status == 0 and "train: 16 examples in 1 groups (users, sessions), 1 pools with a text twice" in out
    status, out, _ = call(capsys, "data", "stats")
    assert status == 0 and "300 items in the catalogue" in out and "test: 2,048 examples, 0 pools" in out
    assert "train: 16,384 examples" in out and "a stream without end, of which a sample is counted" in out


def test_stats_says_what_was_left_out(capsys) -> None:
    row = {"question": "q?", "supporting_facts": [["A", 0]]}
    rows = [row | {"_id": str(n), "context": [[t, ["s."]] for t in ("A", f"B{n}", f"C{n}")]} for n in range(20)]
    rows[3]["supporting_facts"] = [["D", 0]]
    Path("wiki.json").write_text(json.dumps(rows))
    argv = ["data", "stats", "--task", "hotpotqa", "--data", "wiki.json"]
    status, out, err = call(capsys, *argv, "--json")
    short = {
        f"wiki.json: {split} pools of fewer than 20 passages, as the split has only 5 titles": 2
        for split in ("validation", "test")
    }
    assert status == 0 and err == "wiki.json: 20 rows read, 1 left out (a supporting passage is absent: 1)\n" + "".join(
        f"{what}: {count}\n" for what, count in short.items()
    )
    assert json.loads(out)["remarks"] == short
    assert json.loads(out)["files"] == {"wiki.json": {"read": 20, "dropped": {"a supporting passage is absent": 1}}}
    assert "20 rows read, 1 left out (a supporting passage is absent)" in call(capsys, *argv)[1]


def test_token_columns_stand_where_tokens_can_be_counted(lab) -> None:
    from fgrpo.tasks.stats import format_statistics, statistics

    def count(example):
        return len(example.query), len(example.relevant), 7

    with_tokens, without = statistics(lab, None, count), statistics(lab)
    test = with_tokens["splits"]["test"]
    assert test["tokens"]["max"] == len(lab.test[0].query) and test["passages cut"] == test["relevant"]
    assert test["tokens cut"]["min"] == 7 and "tokens cut" in format_statistics(with_tokens)
    assert "tokens" not in without["splits"]["test"] and "tokens" not in format_statistics(without)


def test_every_field_of_a_run_reaches_its_configuration() -> None:
    """`model` is a concern and a field of another one, `sft` a concern and a flag."""
    args = parser_of(COMMANDS).parse_args(["train", "--out", "x", "--sft", "--model", "some/folder", "--lam", "0.5"])
    found = config_of(args)
    assert (found.lm.model, found.rl.lam, found.sft.sft_batch) == ("some/folder", 0.5, 16)
