"""The Hub: what is pushed and what never is, the card, the way back, and what a wrong name, token or file says."""

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import yaml

from fgrpo.cli.main import main
from fgrpo.config import KitError
from fgrpo.runs.hub import local, pinned, pull, push, stage
from fgrpo.runs.policies import checkpoints, load_policy, policy_folder
from fgrpo.runs.run import Run, read_config, read_metrics
from fgrpo.runs.seal import SUMS, check_seal, seal

ROOT = Path(__file__).parents[2]
TINY, ADAPTER = ROOT / "data/checkpoints/lab-rec-fgrpo", ROOT / "data/checkpoints/smollm2-musique-fgrpo"


class Hub(ThreadingHTTPServer):
    """As much of the Hub as its client needs to create a repository, commit to it and download from it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.private: dict[str, bool] = {}
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}  # of a repository: files by path, by commit
        self.uploaded: dict[str, bytes] = {}
        self.refuses = 0  # an HTTP status

    def add(self, name: str, files: dict[str, bytes], private: bool = True) -> str:
        commit = hashlib.sha1(repr((name, sorted(files.items()))).encode()).hexdigest()
        self.private.setdefault(name, private)
        self.commits.setdefault(name, {})[commit] = files
        return commit

    def files(self, name: str) -> dict[str, bytes]:
        return [*self.commits[name].values()][-1]


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None: ...

    def answer(self, value: object = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for k, v in {"Content-Length": str(len(body)), "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(k, v)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def absent(self, what: str) -> None:
        self.answer({"error": what}, 404, {"X-Error-Code": what})

    def do_POST(self) -> None:
        blob = self.rfile.read(int(self.headers["Content-Length"]))
        hub, parts = self.server, self.path.split("?")[0].strip("/").split("/")
        if hub.refuses:
            return self.answer({"error": "no"}, hub.refuses)
        if parts == ["api", "repos", "create"]:
            asked = json.loads(blob)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if name in hub.commits:
                return self.answer({"error": "exists", "url": f"{hub.address}/{name}"}, 409)
            private = asked.get("private") or asked.get("visibility") == "private"
            hub.add(name, {".gitattributes": b""}, bool(private))
            return self.answer({"url": f"{hub.address}/{name}", "name": name})
        if parts == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        name = "/".join(parts[2:4])
        if "preupload" in parts:
            files = json.loads(blob)["files"]
            modes = [{"path": f["path"], "shouldIgnore": False,
                      "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"} for f in files]  # fmt: skip
            return self.answer({"files": modes})
        if parts[-1] == "batch":
            found = [{**o, "actions": {"upload": {"href": f"{hub.address}/lfs/{o['oid']}"}}}
                     for o in json.loads(blob)["objects"]]  # fmt: skip
            return self.answer({"transfer": "basic", "objects": found})
        assert "commit" in parts, self.path
        files = dict(hub.files(name))
        for line in map(json.loads, blob.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.uploaded[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = hub.add(name, files)
        return self.answer({"success": True, "commitOid": commit, "commitUrl": f"{hub.address}/{name}/commit/{commit}"})

    def do_PUT(self) -> None:
        blob = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(blob).hexdigest() == self.path.split("/")[-1]
        self.server.uploaded[self.path.split("/")[-1]] = blob
        self.answer({})

    def do_GET(self) -> None:
        hub, parts = self.server, self.path.split("?")[0].strip("/").split("/")
        if hub.refuses:
            return self.answer({"error": "no"}, hub.refuses)
        api = parts[:2] == ["api", "models"]
        name, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4 if api else 2 :]
        if name not in hub.commits:
            return self.absent("RepoNotFound")
        revision = rest[1] if len(rest) > 1 else "main"
        commit = [*hub.commits[name]][-1] if revision == "main" else revision
        if commit not in hub.commits[name]:
            return self.absent("RevisionNotFound")
        files = hub.commits[name][commit]
        if api and rest[:1] == ["tree"]:
            return self.answer([
                {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()} for n, b in files.items()
            ])  # fmt: skip
        if api:
            return self.answer({"id": name, "modelId": name, "sha": commit, "private": hub.private[name], "tags": [],
                                "downloads": 0, "siblings": [{"rfilename": n} for n in files]})  # fmt: skip
        if "/".join(rest[2:]) not in files:
            return self.absent("EntryNotFound")
        blob = files["/".join(rest[2:])]
        return self.answer(blob, headers={"ETag": f'"{hashlib.sha1(blob).hexdigest()}"', "X-Repo-Commit": commit})

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """An endpoint in place of the Hub, with an empty cache, for the client of this process."""
    from fgrpo.lm import loading

    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    constants = huggingface_hub.constants
    for name, value in {
        "ENDPOINT": server.address, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_TOKEN_PATH": str(tmp_path / "token"),
    }.items():  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    loading._silence.cache_clear()
    yield server
    server.shutdown()
    server.server_close()
    loading._silence.cache_clear()


def cut(folder: Path) -> Path:
    """A run of ours that was trained on a folder of this machine, with what a run leaves beside its policy."""
    shutil.copytree(TINY, folder)
    values = json.loads((folder / "config.json").read_text())
    values |= {"task": str(folder / "clicks.jsonl"), "data": "/home/someone/secret"}
    values["made"]["command"] = f"python -m fgrpo train --task {folder}/clicks.jsonl --out={folder}/x --credit fgrpo"
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "clicks.jsonl").write_text("what users clicked")
    policy = policy_folder(folder)
    for name in ("trainer.safetensors", "trainer.json"):
        (policy / name).write_text("{}")
    seal(policy)
    return folder


def test_a_policy_goes_to_the_hub_and_comes_back(hub: Hub, tmp_path: Path) -> None:
    done = push(TINY, "user/lab-fgrpo", metrics={"ndcg@5": 0.61})
    assert hub.private["user/lab-fgrpo"] and done.private and done.revision in hub.commits["user/lab-fgrpo"]
    assert {*done.files} == {*hub.files("user/lab-fgrpo")} - {".gitattributes"}
    folder = pull("user/lab-fgrpo")
    assert folder.name == done.revision and pinned(folder) == pinned(policy_folder(folder)) == str(done)
    ours, theirs = load_policy(TINY).model.state_dict(), load_policy(folder).model.state_dict()
    assert ours.keys() == theirs.keys() and all((ours[k] == theirs[k]).all() for k in ours)
    assert read_config(folder) == read_config(TINY) and read_metrics(folder) == read_metrics(TINY)
    for name in folder.rglob("*"):
        assert name.is_dir() or name.suffix in (".json", ".safetensors", ".jsonl", ".md") or name.name == SUMS
    # a second version replaces the first, which keeps its name
    run = tmp_path / "next"
    shutil.copytree(TINY, run)
    old = checkpoints(run)[0]
    old.rename(old.with_name("step-000301"))
    again = push(run, "user/lab-fgrpo")
    assert [p.name for p in checkpoints(pull("user/lab-fgrpo"))] == ["step-000301"] and again.revision != done.revision
    assert local(str(done)) == str(folder) and local(str(tmp_path)) == str(tmp_path)
    assert pinned(TINY) == pinned("base") == ""


def test_what_is_private_stays_here(tmp_path: Path) -> None:
    """Traces, data, the optimizer, and paths of this machine."""
    run, out = cut(tmp_path / "run"), tmp_path / "out"
    assert (run / "trace.jsonl").is_file()
    files = stage(run, out, "user/clicks")
    assert [n for n in files if "/" not in n] == ["README.md", "config.json", "metrics.jsonl"]
    policy = policy_folder(out)
    assert {p.name for p in policy.iterdir()} == {p.name for p in policy_folder(TINY).iterdir()}
    check_seal(policy)
    for path in out.rglob("*"):
        if path.is_file():
            text = path.read_bytes()
            assert b"secret" not in text and str(tmp_path).encode() not in text and b"clicked" not in text, path
    config = json.loads((out / "config.json").read_text())
    assert config["task"] == "clicks.jsonl" and config["data"] == ""
    assert config["made"]["command"] == "python -m fgrpo train --task clicks.jsonl --out=x --credit fgrpo"


def test_an_adapter_names_its_base_on_the_hub(hub: Hub) -> None:
    push(ADAPTER, "user/musique", base="HuggingFaceTB/SmolLM2-135M-Instruct", private=False)
    folder = pull("user/musique")
    policy = policy_folder(folder)
    assert policy.name == "step-000010" and not hub.private["user/musique"]
    assert (policy / "adapter_model.safetensors").read_bytes() == (ADAPTER / "adapter_model.safetensors").read_bytes()
    about = json.loads((policy / "policy.json").read_text())
    assert about["model"] == "HuggingFaceTB/SmolLM2-135M-Instruct" and "gguf_file" not in about
    assert read_config(folder).lm.model == about["model"] and not read_config(folder).lm.gguf_file
    assert "smollm2" not in (policy / "adapter_config.json").read_text()
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n" in (folder / "README.md").read_text()


def test_the_card_says_what_it_is_and_how_to_load_it(tmp_path: Path) -> None:
    stage(TINY, tmp_path / "tiny", "user/lab-fgrpo", licence="cc-by-4.0", metrics={"ndcg@5": 0.6123})
    text = (tmp_path / "tiny/README.md").read_text()
    _, front, body = text.split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["license"] == "cc-by-4.0" and about["library_name"] == "fgrpo" and "base_model" not in about
    config, row = read_config(TINY), read_metrics(TINY)[-1]
    for part in (
        "credit `fgrpo`", "slate reward `recall`", "| task | lab-rec |", f"| steps | {row['step']} of 16 queries x 8",
        "- ndcg@5: 0.6123", f"- reward/rank: {row['reward/rank']:.4f}", "--checkpoint hub:user/lab-fgrpo",
        'load_policy(pull("user/lab-fgrpo"))', "arXiv:2605.12995", f"| seed | {config.seed} |",
    ):  # fmt: skip
        assert part in body, part
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    assert all(
        f"{a['family-names']}, {a['given-names']}" in body.replace("\n             ", " ") for a in cff["authors"]
    )
    assert cff["title"] in body and str(cff["year"]) in body
    stage(ADAPTER, tmp_path / "adapter", "user/musique")
    text = (tmp_path / "adapter/README.md").read_text()
    assert "name yours with `--model`" in text and "base_model" not in text and "rank 2" in text
    stage(ROOT / "data/checkpoints/lab-rec", tmp_path / "sft", "user/lab")
    assert "the warm start of RL" in (tmp_path / "sft/README.md").read_text()


def test_the_commands(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "push-checkpoint", str(TINY), "user/lab-fgrpo"]) == 0, capsys.readouterr()
    out = capsys.readouterr().out
    assert (
        "(private)" in out and "use it with: --checkpoint hub:user/lab-fgrpo" in out and hub.private["user/lab-fgrpo"]
    )
    assert main(["evaluate", "--checkpoint", "hub:user/lab-fgrpo", "--limit", "4", "--json"]) == 0
    there = capsys.readouterr()
    assert main(["evaluate", "--checkpoint", str(TINY), "--limit", "4", "--json"]) == 0
    assert json.loads(there.out) == json.loads(capsys.readouterr().out)
    (commit,) = [*hub.commits["user/lab-fgrpo"]][1:]
    assert f"--checkpoint is hub:user/lab-fgrpo@{commit}" in there.err

    train = ["train", "--queries", "2", "--group", "2", "--save-every", "1", "--steps"]
    start = ["--init", "hub:user/lab-fgrpo", "--out", str(tmp_path / "run")]
    assert main([*train, "1", "--lr-decay", "none", *start]) == 0
    made = json.loads((tmp_path / "run/config.json").read_text())["made"]
    assert made["origin"]["hub"] == f"hub:user/lab-fgrpo@{commit}"
    hub.add("user/lab-fgrpo", {**hub.files("user/lab-fgrpo"), "README.md": b"changed"})
    capsys.readouterr()
    assert main([*train, "2", "--lr-decay", "none", *start, "--resume"]) == 2
    assert f"it began from hub:user/lab-fgrpo@{commit}: give the --init" in capsys.readouterr().err
    start[1] += f"@{commit}"
    assert main([*train, "2", "--lr-decay", "none", *start, "--resume"]) == 0
    assert Run(tmp_path / "run", read_config(tmp_path / "run"), resume=True).latest().name == "step-000002"


def test_what_was_pulled_is_checked(hub: Hub) -> None:
    push(TINY, "user/lab")
    files = hub.files("user/lab")
    weights = next(n for n in files if n.endswith("model.safetensors"))
    flipped = bytearray(files[weights])
    flipped[-1] ^= 1
    hub.add("user/flipped", {**files, weights: bytes(flipped)})
    with pytest.raises(KitError, match=r"damaged \('model\.safetensors' differs from SHA256SUMS"):
        pull("user/flipped")
    hub.add("user/unsealed", {n: b for n, b in files.items() if not n.endswith(SUMS)})
    hub.add("user/pickled", {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04."})
    for name in ("user/unsealed", "user/pickled"):
        with pytest.raises(KitError, match=f"hub:{name}: no policy of this kit"):
            pull(name)
    pickle = f"{Path(weights).parent}/optimizer.pt"
    hub.add("user/more", {**files, pickle: b"\x80\x04."})
    assert not [*pull("user/more").rglob("*.pt")]


def test_the_cache_is_used_without_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    push(TINY, "user/lab")
    folder = pull("user/lab")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert pull("user/lab") == pull("user/lab", folder.name) == folder
    with pytest.raises(KitError, match=r"model 'user/other' .*HF_HUB_OFFLINE is set, and the hub's cache has no such"):
        pull("user/other")
    with pytest.raises(KitError, match="user/lab: HF_HUB_OFFLINE is set, so that the Hub is not asked"):
        push(TINY, "user/lab")


def test_a_hub_that_is_not_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(KitError, match=r"^user/lab: the Hub cannot be reached \(.*\)\.$"):
        push(TINY, "user/lab")
    with pytest.raises(KitError, match=r"the model hub cannot be reached \(.*its cache has no such model"):
        pull("user/lab")


def test_what_is_refused_says_why(hub: Hub, tmp_path: Path) -> None:
    hub.add("user/public", {".gitattributes": b""}, private=False)
    hub.add("user/other", {"config.json": b"{}", "model.safetensors": b""})
    shutil.copytree(TINY, tmp_path / "pickled")
    (policy_folder(tmp_path / "pickled") / "model.pt").write_bytes(b"\x80\x04.")
    seal(policy_folder(tmp_path / "pickled"))
    shutil.copytree(TINY, tmp_path / "damaged")
    (policy_folder(tmp_path / "damaged") / "items.json").write_text("[]")
    (tmp_path / "empty").mkdir()
    before = {name: len(found) for name, found in hub.commits.items()}
    for folder, name, reason in (
        (TINY, "lab", "named USER/NAME"),
        (TINY, "user/la b", "named USER/NAME"),
        (TINY, "user/public", "exists on the Hub and is public"),
        (TINY, "user/other", "holds no policy of this kit"),
        (tmp_path / "pickled", "user/a", r"model\.pt: is not safetensors"),
        (tmp_path / "damaged", "user/a", r"damaged \('items\.json' differs"),
        (tmp_path / "empty", "user/a", "no run here"),
        (tmp_path / "nothing", "user/a", "no policy here"),
    ):
        with pytest.raises(KitError, match=reason) as error:
            push(folder, name)
        assert "\n" not in str(error.value)
    assert {name: len(found) for name, found in hub.commits.items()} == before
    push(TINY, "user/public", private=False)
    with pytest.raises(KitError, match="the Hub has no such repository that you may read; if it is private, log in"):
        pull("user/nothing")
    with pytest.raises(KitError, match="the repository has no revision 'v2'"):
        pull("user/public", "v2")
    for status, reason in ((403, "answers 403; log in .* may write there"), (500, r"answers 500\.$")):
        hub.refuses = status
        with pytest.raises(KitError, match=reason):
            push(TINY, "user/lab")
