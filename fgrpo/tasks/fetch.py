"""Download real data sets from their official addresses: licence first, all or nothing, outside the repository.

Or from the Hugging Face Hub by name, with the package `datasets` where it is installed (`hub_data`).
"""

import io
import json
import os
import re
import shutil
import stat
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import pooch
from requests import RequestException

from ..config import KitError

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_BYTES = 2 << 30
"""maximum size of a download, and of everything that an archive unpacks to"""
MAX_MEMBERS = 1000
"""maximum number of files and folders in an archive"""


class Source(NamedTuple):
    """A data set: the task that reads it, its licence, its page, and SHA-256 (None: not known) by address of each file."""

    task: str
    licence: str
    page: str
    files: dict[str, str | None]


_GROUPLENS = "https://files.grouplens.org/datasets/"
_MOVIELENS = "MovieLens, terms of GroupLens: for research, no commercial use, cite Harper and Konstan (2015)."
_LASTFM = "LastFM (HetRec 2011): for non-commercial research, cite Cantador, Brusilovsky and Kuflik (2011)."
_HOTPOT = "http://curtis.ml.cmu.edu/datasets/hotpot/"
SOURCES = {
    # checksums: those of TensorFlow Datasets (MovieLens), ParlAI (HotpotQA) and several public repositories. Public
    # copies of HotpotQA's dev file differ from each other, so none is given for it.
    "movielens-latest-small": Source("movielens", _MOVIELENS, "https://grouplens.org/datasets/movielens/", {
        f"{_GROUPLENS}movielens/ml-latest-small.zip": "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436"}),
    "movielens-100k": Source("movielens", _MOVIELENS, "https://grouplens.org/datasets/movielens/100k/", {
        f"{_GROUPLENS}movielens/ml-100k.zip": "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"}),
    "movielens-1m": Source("movielens", _MOVIELENS, "https://grouplens.org/datasets/movielens/1m/", {
        f"{_GROUPLENS}movielens/ml-1m.zip": "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20"}),
    "lastfm": Source("lastfm-hetrec", _LASTFM, "https://grouplens.org/datasets/hetrec-2011/", {
        f"{_GROUPLENS}hetrec2011/hetrec2011-lastfm-2k.zip":
        "6738f48195667ff03caaab4d32ca9a3133d8cc026b7c3cdaf6ce1010e913c59c"}),
    "hotpotqa": Source("hotpotqa", "HotpotQA (0.6 GB): CC BY-SA 4.0.", "https://hotpotqa.github.io/", {
        f"{_HOTPOT}hotpot_train_v1.1.json": "26650cf50234ef5fb2e664ed70bbecdfd87815e6bffc257e068efea5cf7cd316",
        f"{_HOTPOT}hotpot_dev_distractor_v1.json": None}),
    "musique": Source("musique", "MuSiQue: CC BY 4.0.", "https://github.com/StonyBrookNLP/musique", {}),
}  # fmt: skip


def fetch(name: str, source: Source, out: Path | None = None, yes: bool = False) -> Path:
    """The folder of a data set, downloaded unless it exists. Called again after a failure, it keeps complete files.

    Raises KitError if the licence is not accepted, if a file cannot be downloaded completely, has another checksum or is
    an archive that cannot be unpacked safely, or if `out` is in the kit's repository or holds something else.
    """
    if not source.files:
        raise KitError(f"{source.licence} It has no direct download: get the archive by hand from {source.page}, unpack it "
                       f"and name the folder with --task {source.task} --data FOLDER.")  # fmt: skip
    out = outside_repository(out or cache_folder(name))
    mark = out / ".fetched"
    if mark.is_file() and mark.read_text(encoding="utf-8").strip() == name:
        print(f"{name} is already there.")
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise KitError(f"{out}: exists and was not fetched as {name}; name another folder with --out.")
    print(f"{source.licence} See {source.page}")
    if not yes:
        if not sys.stdin.isatty():
            raise KitError("the licence must be accepted: there is no terminal to ask at, so pass --yes.")
        print("Accept and download? [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise KitError("not accepted; nothing was downloaded.")
    staging = out.with_name(f"{out.name}.part")
    whole = staging / "unpacked"
    try:
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir(parents=True)
        for path in [download(url, digest, staging) for url, digest in source.files.items()]:
            if path.suffix in (".zip", ".gz"):
                unpack(path, whole)
            else:
                path.replace(whole / path.name)
        inside = list(whole.iterdir())
        if len(inside) == 1 and inside[0].is_dir():  # an archive of one folder: that folder is the data set
            whole = inside[0]
        (whole / ".fetched").write_text(f"{name}\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        whole.replace(out)
        shutil.rmtree(staging)
    except OSError as error:
        raise KitError(f"{error.filename or out}: cannot be written ({error.strerror or error}).") from None
    return out


HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
"""ORG/NAME, perhaps with :CONFIG and @REVISION"""
HUB_CONFIGS = {"hotpotqa": "distractor", "musique": None}
"""tasks whose rows the Hub has in a schema that is read here, and the configuration that is taken if none is named"""


def hub_data(task: str, data: str) -> str:
    """`data` itself if it is a path; of the name of a data set on the Hub the path that its rows are written to.

    It is a folder in the cache with train.jsonl and dev.jsonl, or if there is one split its file. Once written it is used
    again; a commit as @REVISION says which version it is. Code that comes with a data set is never run.

    Raises KitError if `datasets` is not installed, or cannot load it.
    """
    found = HUB_NAME.fullmatch(data)
    if task not in HUB_CONFIGS or Path(data).exists() or not found:
        return data
    name, config, revision = found["name"], found["config"] or HUB_CONFIGS[task], found["revision"]
    out = cache_folder("hub") / "@".join(
        filter(None, (name.replace("/", "--"), config, revision and re.sub("/", "-", revision)))
    )
    if out.is_dir():
        return str(out if (out / "dev.jsonl").is_file() else out / "train.jsonl")
    here = f"{data}: there is no such file or folder here, and as a data set of the Hub"
    try:
        from datasets import load_dataset
    except ImportError:
        raise KitError(f"{here} it needs package 'datasets', which is not installed: pip install datasets.") from None
    try:
        parts = load_dataset(name, name=config, revision=revision)
    except Exception as error:  # its readers raise a dozen kinds
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise KitError(f"{here} it cannot be loaded ({reason or type(error).__name__}).") from None
    dev = next((part for part in ("validation", "dev", "test") if part in parts), "")
    if "train" not in parts:
        raise KitError(f"{here} it has no split 'train' ({', '.join(parts)}).")
    staging = out.with_name(f".{out.name}-{os.getpid()}")
    try:
        staging.mkdir(parents=True)
        for part, file in (("train", "train.jsonl"), *([(dev, "dev.jsonl")] if dev else [])):
            with (staging / file).open("w", encoding="utf-8") as opened:
                opened.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in parts[part])
        try:
            staging.replace(out)
        except OSError:  # another process was faster
            if not out.is_dir():
                raise
    except OSError as error:
        raise KitError(f"{error.filename or out}: cannot be written ({error.strerror or error}).") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    licence = getattr(getattr(parts["train"], "info", None), "license", "") or "see its page"
    print(f"{name} of the Hub (licence: {licence}) is in {out}", file=sys.stderr)
    return hub_data(task, data)


def cache_folder(name: str) -> Path:
    """Where downloads go by default: `$XDG_CACHE_HOME/fgrpo/NAME`, or `~/.cache/fgrpo/NAME` if that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fgrpo" / name


def outside_repository(folder: Path) -> Path:
    """The folder, absolute. Raises KitError if it is in the kit's repository: others' data must not be committed."""
    root, folder = Path(__file__).resolve().parents[2], folder.expanduser().resolve()
    if (root / ".git").exists() and folder.is_relative_to(root):
        raise KitError(f"{folder}: is in the repository, where data and models of others must not be; use --out.")
    return folder


class _LimitedFile(io.BufferedWriter):
    def write(self, piece: "Buffer") -> int:
        if self.tell() + memoryview(piece).nbytes > MAX_BYTES:
            raise KitError(f"is larger than {MAX_BYTES:,} bytes; it was removed.")
        return super().write(piece)


def download(url: str, digest: str | None, folder: Path) -> Path:
    """The path of a file in the folder, downloaded unless it is there with this SHA-256. A failure leaves no file.

    Raises KitError if the server cannot be reached, refuses or cuts the connection, if the file is too large, and if its
    checksum differs.
    """

    def limited(url: str, path: str, _: object) -> None:
        with _LimitedFile(io.FileIO(path, "wb")) as file:
            pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=1 << 20)(url, file, None)

    pooch.get_logger().setLevel("WARNING")
    try:
        path = Path(pooch.retrieve(url, digest, PurePosixPath(url).name, folder, downloader=limited))
    except RequestException as error:
        if error.response is not None:
            why = f"{error.response.status_code} ({error.response.reason})"
            raise KitError(f"{url}: the server answers {why}.") from None
        cause: BaseException = error
        while inner := cause.__cause__ or cause.__context__:  # requests wraps the error that a person can read
            cause = inner
        failure = getattr(cause, "strerror", None) or cause
        raise KitError(f"{url}: the download failed ({failure}); call again to repeat it.") from None
    except ValueError:
        raise KitError(f"{url}: the file does not have the SHA-256 {digest}; it was removed.") from None
    except KitError as error:
        raise KitError(f"{url}: {error}") from None
    path.chmod(0o644)  # pooch's files can be read by their owner alone
    if digest is None:
        print(f"{path.name}: no SHA-256 is known to compare with; it is {pooch.file_hash(path)}")
    return path


def _members(archive: zipfile.ZipFile | tarfile.TarFile) -> Iterable[zipfile.ZipInfo | tarfile.TarInfo]:
    return archive.infolist() if isinstance(archive, zipfile.ZipFile) else archive


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar file. Nothing is written outside the folder, no link is made, size and number are limited.

    Raises KitError on an archive that breaks one of these rules and, after removing it, on one that is damaged. Both
    readers write at most the size that a member declares, so it is enough to add up the declared sizes.
    """
    total = 0
    kept: list = []  # of ZipInfo, or of TarInfo
    try:
        with zipfile.ZipFile(archive) if archive.suffix == ".zip" else tarfile.open(archive) as opened:
            for number, member in enumerate(_members(opened)):
                if isinstance(member, zipfile.ZipInfo):
                    name, size, mode = member.filename, member.file_size, stat.S_IFMT(member.external_attr >> 16)
                    plain = member.is_dir() or mode in (0, stat.S_IFREG)
                else:
                    name, size, plain = member.name, member.size, member.isdir() or member.isreg()
                parts = PurePosixPath(name.replace("\\", "/")).parts
                total += size
                if not parts or parts[0].startswith("/") or ":" in parts[0] or ".." in parts:
                    raise KitError(f"{archive}: {name!r} would be written outside the folder.")
                if not plain:
                    raise KitError(f"{archive}: {name!r} is neither a file nor a folder.")
                if total > MAX_BYTES:
                    raise KitError(f"{archive}: unpacks to more than {MAX_BYTES:,} bytes.")
                if number >= MAX_MEMBERS:
                    raise KitError(f"{archive}: holds more than {MAX_MEMBERS} files.")
                if parts[0] != "__MACOSX":
                    kept.append(member)
            if isinstance(opened, tarfile.TarFile):
                opened.extraction_filter = getattr(tarfile, "data_filter", None)  # tar's own rules, besides ours
            opened.extractall(folder, kept)
    except (OSError, KitError):
        raise
    except Exception as error:  # the readers raise a dozen kinds on damaged bytes
        archive.unlink()
        raise KitError(f"{archive}: is damaged ({error}); it was removed, call again to download it again.") from None
