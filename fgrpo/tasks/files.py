"""Data files on disk: what is no data is named before anything is decoded, and text is decoded as a whole."""

import codecs
import io
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from ..config import KitError

HEAD = 1024
"""bytes at the start of a file from which its kind is recognised"""
LINE_LIMIT = 16 << 20
"""characters after which a line that has not ended counts as broken, so that memory stays bounded"""
LATIN = "iso-8859-1"
NOT_LATIN = re.compile(rb"[\x80-\x9f]|[\xc2-\xf4][\x80-\xbf]")
"""control characters, and what is a whole character in UTF-8: no Latin-1 text holds either"""

KINDS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the data: run `git lfs pull` in the repository it is from"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it first (gunzip)"),
    (b"PK\x03\x04", "is a zip archive or a spreadsheet: unpack it, or save the table as text, first"),
    (b"PK\x05\x06", "is an empty zip archive"),
    (b"BZh", "is compressed with bzip2: unpack it first (bunzip2)"),
    (b"\xfd7zXZ\x00", "is compressed with xz: unpack it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it first (unzstd)"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it first"),
    (b"Rar!\x1a\x07", "is a rar archive: unpack it first"),
    (b"PAR1", "is a Parquet file: write its rows as JSONL or as the official text files first"),
    (b"ARROW1", "is an Arrow file: write its rows as JSONL or as the official text files first"),
    (b"\x89HDF", "is an HDF5 file: write its rows as JSONL or as the official text files first"),
    (b"\x93NUMPY", "is a NumPy array: write its rows as JSONL or as the official text files first"),
    (b"SQLite format 3\x00", "is an SQLite database: write its rows as JSONL or as the official text files first"),
    (b"\xd0\xcf\x11\xe0", "is an Office document (.xls, .doc): save the table as text first"),
    (b"%PDF-", "is a PDF document, not data"),
)
WEB_PAGE = "is a web page saved as data: open its address in a browser to see why, and download the file itself"
UTF16 = "is UTF-16 or UTF-32 text: save it as UTF-8"


def cause(head: bytes) -> str:
    """What a file with this start is, and what to do, where it can be no text table, JSON or JSONL; else ''."""
    if not head:
        return "is empty: download or write it again"
    for start, what in KINDS:
        if head.startswith(start):
            return what
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it first"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        return UTF16
    if b"\0" in head:
        return UTF16 if _is_wide(head) else "is binary, not text"
    text = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<script", b"<!--", b"<?xml", b"<error")):
        return WEB_PAGE
    return ""


def _is_wide(head: bytes) -> bool:
    """Whether bytes are UTF-16 or UTF-32: every other byte of ASCII is 0 there, and no character is."""
    if max(head[0::2].count(0), head[1::2].count(0)) <= len(head) // 8:
        return False
    for code in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        try:
            if "\0" not in codecs.getincrementaldecoder(code)().decode(head):  # the last character may be cut
                return True
        except UnicodeDecodeError:
            continue
    return False


def open_data(path: Path) -> io.BufferedReader:
    """The file, opened for reading bytes. Raises KitError if it cannot be opened or is of a kind that `cause` names."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR):  # a pipe would wait for its writer, and cannot be read twice
            raise KitError(f"{path}: is a pipe or a device, not a file: write the data to a file first.")
        file = path.open("rb")
        why = cause(file.peek(HEAD)[:HEAD])
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise unreadable(path, error) from None
    if why:
        file.close()
        raise KitError(f"{path}: {why}.")
    return file


def open_text(path: Path, newline: str | None = None) -> tuple[TextIO, int]:
    """The file as text, and the first byte that is not UTF-8 (-1: there is none).

    The file is UTF-8, with or without a byte order mark, or else Latin-1 as a whole: it is decoded once to find out,
    in pieces. Raises KitError as `open_data` does, and on a file that is neither: of another encoding, or of two.
    """
    decoder, start, first, other = codecs.getincrementaldecoder("utf-8")(), 0, -1, None
    with open_data(path) as file:
        while True:
            piece = file.read(1 << 20)
            pending = len(decoder.getstate()[0])  # bytes of a character that began in the piece before
            other = other or NOT_LATIN.search(piece)
            try:
                if first < 0:
                    decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                first = start - pending + error.start
            if first >= 0 and other:
                raise KitError(f"{path}: is neither UTF-8 (byte {first:,} is not) nor Latin-1: save it as UTF-8.")
            if not piece:
                break
            start += len(piece)
    return io.TextIOWrapper(open_data(path), encoding="utf-8-sig" if first < 0 else LATIN, newline=newline), first


def lines_of(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a file. Raises KitError on one of more than LINE_LIMIT characters, before the rest of it is read."""
    number = 0
    while line := file.readline(LINE_LIMIT + 1):
        number += 1
        if len(line) > LINE_LIMIT:
            raise KitError(f"{path}, line {number}: longer than {LINE_LIMIT:,} characters.")
        yield line


def layout_of(folder: Path, names: Sequence[str], what: str) -> str:
    """The one of these files that is in the folder. Raises KitError if none is, saying what is there instead, or several."""
    why = contents(folder)
    found = [name for name in names if (folder / name).exists()]
    if len(found) > 1:
        raise KitError(f"{folder}: {' and '.join(found)} are of different data sets: keep one in the folder.")
    if found:
        return found[0]
    raise KitError(f"{folder}: no {what} here ({why}); --data must be the folder of {' or '.join(names)}.")


def matching(folder: Path, patterns: Sequence[str], what: str) -> list[Path]:
    """The files of a folder that match one of the patterns, sorted. Raises KitError if none does, saying what is there."""
    why = contents(folder)
    if found := sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        return found
    raise KitError(f"{folder}: no {what} here ({why}); --data must be a folder with {' or '.join(patterns)}.")


def only(paths: Sequence[Path], what: str) -> Path:
    """The one file of a list. Raises KitError if it holds several."""
    if len(paths) > 1:
        raise KitError(f"{paths[0].parent}: {', '.join(path.name for path in paths)}: keep one {what}.")
    return paths[0]


def contents(folder: Path) -> str:
    """What is in a folder, for a message: its first names. Raises KitError if it is there and cannot be read."""
    try:
        found = sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return "there is no such folder"
    except NotADirectoryError:
        return "it is a file"
    except (OSError, ValueError) as error:
        raise unreadable(folder, error) from None
    more = f" and {len(found) - 5:,} more" if len(found) > 5 else ""
    return f"it holds {', '.join(found[:5])}{more}" if found else "it is empty"


def unreadable(path: Path, error: Exception) -> KitError:
    """The sentence for a file that cannot be opened or decoded."""
    if isinstance(error, IsADirectoryError):
        return KitError(f"{path}: is a folder where a file is expected.")
    if isinstance(error, PermissionError):
        return KitError(f"{path}: cannot be read (no permission: {error.strerror}).")
    if isinstance(error, UnicodeDecodeError):
        return KitError(f"{path}: cannot be read as UTF-8 (byte {error.object[error.start]:#04x}): save it as UTF-8.")
    return KitError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).")
