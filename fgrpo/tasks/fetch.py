"""Download real data sets from their official homes: licence first, whole or not at all, outside the repository."""

import hashlib
import http.client
import os
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from ..config import KitError

CHUNK = 1 << 20
TIMEOUT = 30.0
"""seconds without a byte after which a connection counts as cut"""
MOST_BYTES = 2 << 30
"""largest download, and most that an archive may unpack to"""
MOST_MEMBERS = 1000
"""most files and folders in an archive"""


class Source(NamedTuple):
    """A data set: the task that reads it, its licence, its page, and (address, SHA-256 or None) of each file."""

    task: str
    licence: str
    page: str
    files: tuple[tuple[str, str | None], ...]


_GROUPLENS = "https://files.grouplens.org/datasets/"
_MOVIELENS = "MovieLens, terms of GroupLens: for research, no commercial use, cite Harper and Konstan (2015)."
_HOTPOT = "http://curtis.ml.cmu.edu/datasets/hotpot/"
SOURCES = {
    # checksums: those of TensorFlow Datasets (MovieLens), ParlAI (HotpotQA) and several public repositories. Public
    # copies of HotpotQA's dev file disagree, so that none is given.
    "movielens-latest-small": Source("movielens", _MOVIELENS, "https://grouplens.org/datasets/movielens/", (
        (f"{_GROUPLENS}movielens/ml-latest-small.zip", "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436"),
    )),
    "movielens-100k": Source("movielens", _MOVIELENS, "https://grouplens.org/datasets/movielens/100k/", (
        (f"{_GROUPLENS}movielens/ml-100k.zip", "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"),
    )),
    "movielens-1m": Source("movielens", _MOVIELENS, "https://grouplens.org/datasets/movielens/1m/", (
        (f"{_GROUPLENS}movielens/ml-1m.zip", "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20"),
    )),
    "lastfm": Source(
        "lastfm", "LastFM (HetRec 2011): for non-commercial research, cite Cantador, Brusilovsky and Kuflik (2011).",
        "https://grouplens.org/datasets/hetrec-2011/", (
            (f"{_GROUPLENS}hetrec2011/hetrec2011-lastfm-2k.zip",
             "6738f48195667ff03caaab4d32ca9a3133d8cc026b7c3cdaf6ce1010e913c59c"),
        )),
    "hotpotqa": Source("hotpotqa", "HotpotQA (0.6 GB): CC BY-SA 4.0.", "https://hotpotqa.github.io/", (
        (f"{_HOTPOT}hotpot_train_v1.1.json", "26650cf50234ef5fb2e664ed70bbecdfd87815e6bffc257e068efea5cf7cd316"),
        (f"{_HOTPOT}hotpot_dev_distractor_v1.json", None),
    )),
    "musique": Source("musique", "MuSiQue: CC BY 4.0.", "https://github.com/StonyBrookNLP/musique", ()),
}  # fmt: skip


def fetch(name: str, source: Source, out: Path | None = None, yes: bool = False) -> Path:
    """The folder of a data set, downloaded unless it is there. A cut download goes on when called again.

    Raises KitError if the licence is not accepted, if a file cannot be had whole, has another checksum or is an archive
    that cannot be unpacked safely, or if `out` lies in the kit's repository or holds something else.
    """
    if not source.files:
        raise KitError(f"{source.licence} It has no direct download: get the archive by hand from {source.page}, unpack it "
                       f"and name the folder with --task {source.task} --data FOLDER.")  # fmt: skip
    out = outside_repository(out or cache_folder(name))
    mark = out / ".fetched"
    if mark.is_file() and mark.read_text(encoding="utf-8").strip() == name:
        print(f"{name} is there already.")
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise KitError(f"{out}: is there already and was not fetched as {name}; name another folder with --out.")
    _ask(source, yes)
    staging = out.with_name(f"{out.name}.part")
    unpacked = staging / "unpacked"
    try:
        shutil.rmtree(unpacked, ignore_errors=True)
        staging.mkdir(parents=True, exist_ok=True)
        for url, digest in source.files:
            _verified(url, digest, staging / PurePosixPath(url).name)
        unpacked.mkdir()
        for url, _ in source.files:
            path = staging / PurePosixPath(url).name
            if path.suffix in (".zip", ".tgz", ".gz", ".tar"):
                unpack(path, unpacked)
            else:
                path.replace(unpacked / path.name)
        inside = list(unpacked.iterdir())
        whole = inside[0] if len(inside) == 1 and inside[0].is_dir() else unpacked
        (whole / ".fetched").write_text(f"{name}\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        whole.replace(out)
        shutil.rmtree(staging)
    except OSError as error:
        raise KitError(f"{error.filename or out}: cannot be written ({error.strerror or error}).") from None
    return out


def cache_folder(name: str) -> Path:
    """Where downloads go by default: `$XDG_CACHE_HOME/fgrpo/NAME`, in ~/.cache where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fgrpo" / name


def outside_repository(folder: Path) -> Path:
    """The folder, absolute. Raises KitError if it lies in the kit's repository: others' data must not be committed."""
    root, folder = Path(__file__).resolve().parent.parent, folder.expanduser().resolve()
    if (root / ".git").exists() and folder.is_relative_to(root):
        raise KitError(f"{folder}: lies in the repository, where data and models of others must not stand; use --out.")
    return folder


def _ask(source: Source, yes: bool) -> None:
    print(f"{source.licence} See {source.page}")
    if yes:
        return
    if not sys.stdin.isatty():
        raise KitError("the licence must be accepted: there is no terminal to ask at, so pass --yes.")
    try:
        answer = input("Accept and download? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise KitError("not accepted; nothing was downloaded.")


def _verified(url: str, digest: str | None, path: Path) -> None:
    """Have a file whole and with its checksum; a wrong one is removed, so that the next call begins anew."""
    if not path.exists():
        download(url, path)
    found = sha256(path)
    if digest is None:
        print(f"{path.name}: no SHA-256 is known to compare with; it is {found}")
    elif found != digest:
        path.unlink()
        raise KitError(f"{url}: the file has SHA-256 {found}, not {digest}; it was removed.")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, path: Path) -> None:
    """Download to `path`, by way of `path`.part, which a later call goes on with if the server can.

    Raises KitError if the server cannot be reached or refuses, and if the connection ends before the file does.
    """
    part = path.with_name(f"{path.name}.part")
    have = part.stat().st_size if part.exists() else 0
    size, total, cut = have, None, ""
    try:
        with urlopen(Request(url, headers={"Range": f"bytes={have}-"} if have else {}), timeout=TIMEOUT) as reply:
            resumed = reply.status == 206 and reply.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            size = have if resumed else 0
            length = reply.headers.get("Content-Length", "")
            total = size + int(length) if length.isdecimal() else None
            bar = tqdm(total=total, initial=size, desc=path.name, unit="B", unit_scale=True, disable=None)
            with part.open("ab" if resumed else "wb") as file, bar:
                while size <= MOST_BYTES and (piece := reply.read(CHUNK)):
                    file.write(piece)
                    size += len(piece)
                    bar.update(len(piece))
    except HTTPError as error:
        if error.code != 416 or not have:
            raise KitError(f"{url}: the server answers {error.code} ({error.reason}).") from None
        if error.headers.get("Content-Range") != f"bytes */{have}":  # the part is no beginning of the file
            part.unlink()
            return download(url, path)
    except URLError as error:
        raise KitError(
            f"{url}: cannot be reached ({getattr(error.reason, 'strerror', None) or error.reason})."
        ) from None
    except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
        cut = f" ({error})"
    if size > MOST_BYTES:
        part.unlink()
        raise KitError(f"{url}: is larger than {MOST_BYTES:,} bytes; it was removed.")
    if cut or (total is not None and size != total):
        of = f" of {total:,}" if total else ""
        raise KitError(f"{url}: the connection was cut{cut} after {size:,}{of} bytes; call again to go on.")
    part.replace(path)
    return None


class _Member(NamedTuple):
    name: str
    kind: str  # file, folder, or whatever else
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar file. Nothing is written outside the folder, no link is made, size and number are limited.

    Raises KitError on an archive that breaks one of these rules, and, after removing it, on one that is damaged.
    """
    left = MOST_BYTES
    try:
        for number, member in enumerate(_members(archive)):
            parts = PurePosixPath(member.name.replace("\\", "/")).parts
            if not parts or parts[0].startswith("/") or ":" in parts[0] or ".." in parts:
                raise KitError(f"{archive}: {member.name!r} would be written outside the folder.")
            if member.kind not in ("file", "folder"):
                raise KitError(f"{archive}: {member.name!r} is neither a file nor a folder.")
            if number >= MOST_MEMBERS:
                raise KitError(f"{archive}: holds more than {MOST_MEMBERS} files.")
            target = folder.joinpath(*parts)
            if member.kind == "folder":
                target.mkdir(parents=True, exist_ok=True)
            elif (source := member.open()) and parts[0] != "__MACOSX":
                target.parent.mkdir(parents=True, exist_ok=True)
                with source, target.open("wb") as file:
                    while piece := source.read(CHUNK):
                        left -= len(piece)
                        if left < 0:
                            raise KitError(f"{archive}: unpacks to more than {MOST_BYTES:,} bytes.")
                        file.write(piece)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        archive.unlink()
        raise KitError(f"{archive}: is damaged ({error}); it was removed, call again to download it anew.") from None


def _members(archive: Path) -> Iterator[_Member]:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
                kind = "folder" if info.is_dir() else "file" if plain else "link"
                yield _Member(info.filename, kind, partial(zipped.open, info))
    else:
        with tarfile.open(archive) as tar:
            for entry in tar:
                kind = "folder" if entry.isdir() else "file" if entry.isreg() else "link"
                opened: Any = partial(tar.extractfile, entry)
                yield _Member(entry.name, kind, opened)
