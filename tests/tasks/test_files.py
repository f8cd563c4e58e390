"""What is no data is named before anything is decoded, by every loader in the same words."""

import gzip
import io
import json
import os
import re
import zipfile

import pytest

from fgrpo.config import Config, KitError
from fgrpo.runs.trace import read_trace
from fgrpo.tasks import load_task
from fgrpo.tasks.files import HEAD, LINE_LIMIT, cause, unreadable
from fgrpo.tasks.jsonl import read_jsonl
from fgrpo.tasks.lastfm import load_lastfm
from fgrpo.tasks.movielens import load_movielens
from fgrpo.tasks.multihop import load_hotpotqa, load_musique

from . import test_jsonl, test_lastfm, test_movielens, test_multihop

ROW = json.dumps(test_jsonl.GOOD).encode() + b"\n"


def zipped() -> bytes:
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w") as archive:
        archive.writestr("a.jsonl", ROW)
    return blob.getvalue()


CAUSES = {
    "is a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "is compressed with gzip": gzip.compress(ROW),
    "is a zip archive": zipped(),
    "is compressed with bzip2": b"BZh91AY&SY\x0b",
    "is compressed with xz": b"\xfd7zXZ\x00\x00\x04",
    "is compressed with zstd": b"\x28\xb5\x2f\xfd\x24",
    "is a tar archive": b"a.jsonl".ljust(257, b"\0") + b"ustar\x0000",
    "is a Parquet file": b"PAR1\x15\x04\x15",
    "is a web page": b"\n\n<!DOCTYPE html>\n<html><head><title>404</title>",
    "is a web page saved as data": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "is an Office document": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500),
    "is UTF-16": "id\n".encode("utf-16"),
    "is UTF-16 or UTF-32": ROW.decode().encode("utf-16-be"),
    "is UTF-16 or UTF-32 text": ROW.decode().encode("utf-32"),
    "is binary, not text": b"\x00\x01\x02\x03\xff\xfe\x80\x91" * 20,
    "is empty": b"",
}


def readers(folder):
    """Every kind of data file: the file that is broken, and what reads it."""
    test_movielens.write(folder, "latest")
    test_lastfm.hetrec(folder)
    (folder / "llara").mkdir()
    test_lastfm.llara(folder / "llara")
    rows = [test_multihop.hotpot(n) for n in range(20)]
    test_multihop.array(folder / "hotpot.json", rows)
    test_multihop.lines(folder / "musique.jsonl", [test_multihop.musique(n) for n in range(20)])
    (folder / "own.jsonl").write_bytes(ROW * 20)
    return {
        "ratings.csv": lambda: load_movielens(folder), "movies.csv": lambda: load_movielens(folder),
        "artists.dat": lambda: load_lastfm(folder), "user_artists.dat": lambda: load_lastfm(folder),
        "llara/id2name.txt": lambda: load_lastfm(folder / "llara"), "llara/val.jsonl": lambda: load_lastfm(folder / "llara"),
        "llara/train_sessions.jsonl": lambda: load_lastfm(folder / "llara"),
        "hotpot.json": lambda: load_hotpotqa(folder / "hotpot.json"),
        "musique.jsonl": lambda: load_musique(folder / "musique.jsonl"),
        "own.jsonl": lambda: read_jsonl(folder / "own.jsonl"),
    }  # fmt: skip


def test_every_loader_names_the_cause(tmp_path) -> None:
    for name, load in readers(tmp_path).items():
        path = tmp_path / name
        whole = path.read_bytes()
        load()
        for what, blob in CAUSES.items():
            path.write_bytes(blob)
            with pytest.raises(KitError) as error:
                load()
            assert str(error.value).startswith(f"{path}: {what}") and "\n" not in str(error.value), name
        path.unlink()
        path.mkdir()
        may_be_folder = name in ("hotpot.json", "musique.jsonl")
        with pytest.raises(
            KitError, match="no file .* here" if may_be_folder else "is a folder where a file is expected"
        ):
            load()
        path.rmdir()
        path.write_bytes(whole)


def test_data_are_taken_for_nothing_else() -> None:
    for text in ("[", "{", "1::<html> (1995)", "\ufeff1,2", "userId", "BZ", "é" * HEAD, "PK", "\t\n"):
        assert cause(text.encode()) == "", text
    assert cause("é".encode("iso-8859-1") * HEAD) == ""
    for code in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        for text in ('{"id": "a"}\n', '{"id": "映画 😀"}\n' * 99):
            assert cause(text.encode(code)[:HEAD]).startswith("is UTF-16 or UTF-32"), (code, text)
    for blob in (b"\x40" + bytes(7) + b'{"a": 1}', b"\x80\x04\x95" + bytes(9) + b"}", ROW + bytes(90), bytes(HEAD)):
        assert cause(blob) == "is binary, not text", blob


def test_a_file_in_place_of_a_folder_and_the_reverse(tmp_path) -> None:
    test_movielens.write(tmp_path, "latest")
    for task, word in (("movielens", "MovieLens"), ("lastfm", "LastFM"), ("lastfm-llara", "lastfm-llara")):
        with pytest.raises(
            KitError, match=rf"ratings\.csv: no {word} here \(it is a file\); --data must be the folder of "
        ):
            load_task(Config(task=task, data=str(tmp_path / "ratings.csv")))
        with pytest.raises(KitError, match=rf"no {word} here \(there is no such folder\)"):
            load_task(Config(task=task, data=str(tmp_path / "nowhere")))
    (tmp_path / "up").mkdir()
    (tmp_path / "up/ml-latest-small.zip").write_bytes(zipped())
    with pytest.raises(KitError, match=r"no MovieLens here \(it holds ml-latest-small\.zip\)"):
        load_movielens(tmp_path / "up")
    with pytest.raises(KitError, match=r"no file .*train.* here \(it holds ml-latest-small\.zip\)"):
        load_musique(tmp_path / "up")
    (tmp_path / "own.jsonl").mkdir()
    with pytest.raises(KitError, match="is a folder where a file is expected"):
        load_task(Config(task=str(tmp_path / "own.jsonl")))


def test_a_permission_is_called_a_permission(tmp_path, monkeypatch) -> None:
    """Tests may run as a user who may read everything, so the system's answer is made here."""

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    loads = readers(tmp_path)
    monkeypatch.setattr("pathlib.Path.open", refuse)
    for name, load in loads.items():
        with pytest.raises(KitError, match=r"cannot be read \(no permission: Permission denied\)"):
            load()
        assert name
    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(KitError, match="no permission"):
        load_movielens(tmp_path / "nowhere")
    assert "damaged" not in str(unreadable(tmp_path, PermissionError(13, "Permission denied")))


def test_what_is_no_regular_file_is_refused_before_it_is_read(tmp_path) -> None:
    """A pipe without a writer would wait for ever, /dev/zero has no end, and a table is read twice."""
    loads = readers(tmp_path)
    for name, load in loads.items():
        path = tmp_path / name
        whole = path.read_bytes()
        path.unlink()
        for make in (lambda p: os.mkfifo(p), lambda p: p.symlink_to("/dev/zero"), lambda p: p.symlink_to("/dev/null")):
            make(path)
            with pytest.raises(KitError, match=rf"{path}: is a pipe or a device, not a file"):
                load()
            path.unlink()
        path.symlink_to(path)
        with pytest.raises(KitError, match=r"cannot be read \((Too many levels|No such file).*\)|no .* here"):
            load()
        path.unlink()
        path.write_bytes(whole)
    for task in ("movielens", "hotpotqa", "lastfm-llara"):
        with pytest.raises(KitError, match="null byte"):
            load_task(Config(task=task, data="a\0b"))


def test_a_folder_of_two_data_sets_is_refused(tmp_path) -> None:
    test_movielens.write(test_movielens.write(tmp_path, "latest"), "1m")
    with pytest.raises(KitError, match=r"ratings\.csv and ratings\.dat are of different data sets: keep one"):
        load_movielens(tmp_path)
    test_lastfm.llara(test_lastfm.hetrec(tmp_path))
    with pytest.raises(KitError, match="holds several data sets: name one with --task lastfm-hetrec or lastfm-llara"):
        load_task(Config(task="lastfm", data=str(tmp_path)))
    sizes = [len(load_task(Config(task=t, data=str(tmp_path)))[0].test) for t in ("lastfm-hetrec", "lastfm-llara")]
    assert sizes == [3, 3]


def test_a_trace_names_the_cause_too(tmp_path) -> None:
    for what, blob in CAUSES.items():
        (tmp_path / "trace.jsonl").write_bytes(blob)
        with pytest.raises(KitError, match=rf"trace\.jsonl: {re.escape(what)}"):
            read_trace(tmp_path / "trace.jsonl")


def test_a_line_without_end_is_stopped(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_bytes(ROW + b"x" * (LINE_LIMIT + 10))
    with pytest.raises(KitError, match=r"a\.jsonl, line 2: longer than 16,777,216 characters"):
        read_jsonl(tmp_path / "a.jsonl", [])
    test_movielens.write(tmp_path, "latest")
    (tmp_path / "movies.csv").write_bytes(b"movieId,title\n1," + b"x" * (LINE_LIMIT + 10))
    with pytest.raises(KitError, match=r"movies\.csv, line 2: longer than"):
        load_movielens(tmp_path)
