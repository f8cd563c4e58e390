"""Text tables with their columns found by name: CSV, or lines split at a separator."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from ..config import KitError
from .files import lines_of, open_text, unreadable
from .reading import Notes

Cells = tuple[str, list[str]]


class Column(NamedTuple):
    """A column of a table. In a header, case, spaces and underscores of its name do not matter."""

    name: str
    number: bool = False
    """its cells are numbers, by which a first row of data is told from a header"""
    other: str = ""
    """another name that is known in a header"""


def table(path: Path, columns: Sequence[Column], separator: str, notes: Notes, parts: int = 0) -> Iterator[Cells]:
    """(where, cells) of each row; the cells are those of `columns`, in this order.

    A table with a header may hold its columns in any order, and more of them. One whose first row is data has them in
    the order given. Whole numbers are written alike (`_number`). A file that is not UTF-8 is read as Latin-1, which
    `notes` remark. `separator`: "," reads CSV with its quotes; any other splits lines, at most into `parts` if that is
    not 0. Raises KitError on a header that lacks a column, on a row with too few or too many cells, and on a number
    that is empty.
    """
    try:
        file, place = open_text(path, newline="" if separator == "," else "\n")
        if place >= 0:
            notes.remarks[f"{path.name} is not UTF-8 and was read as Latin-1; first byte that is not UTF-8"] = place
        with file:
            yield from _chosen(path, _rows(path, file, separator, parts), columns, separator)
    except (OSError, UnicodeDecodeError) as error:  # UnicodeDecodeError: the file has changed since it was opened
        raise unreadable(path, error) from None


def _rows(path: Path, file: TextIO, separator: str, parts: int) -> Iterator[tuple[int, list[str]]]:
    lines = lines_of(path, file)
    if separator == ",":
        reader = csv.reader(lines, strict=True)
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise KitError(
                f"{path}, line {reader.line_num}: not CSV ({error}): double the quotes in a quoted text."
            ) from None
    else:
        for number, line in enumerate(lines, start=1):
            yield number, line.rstrip("\r\n").split(separator, parts - 1)


def _chosen(
    path: Path, rows: Iterator[tuple[int, list[str]]], columns: Sequence[Column], separator: str
) -> Iterator[Cells]:
    places: list[int] = []
    width = 0
    for number, row in rows:
        where = f"{path}, line {number}"
        if not "".join(row).strip():
            continue
        if not places:
            found = _header(where, row, columns, separator)
            places, width = found or list(range(len(columns))), max(len(row), len(columns))
            if found:
                continue
        if len(row) <= max(places) or (len(row) > width and "".join(row[width:]).strip()):
            raise KitError(f"{where}: expected {width} columns, found {len(row)}.")
        cells = [_number(row[p]) if c.number else row[p] for p, c in zip(places, columns, strict=True)]
        if "" in cells and (empty := [c.name for c, cell in zip(columns, cells, strict=True) if c.number and not cell]):
            raise KitError(f"{where}: column {empty[0]} is empty.")
        yield where, cells


def _header(where: str, row: list[str], columns: Sequence[Column], separator: str) -> list[int]:
    """Place of each column in a header; [] if the row is data. Raises KitError on a row that is neither."""
    names = [_plain(cell) for cell in row]
    known = [{_plain(column.name), _plain(column.other or column.name)} for column in columns]
    places = [[n for n, name in enumerate(names) if name in wanted] for wanted in known]
    if all(len(found) == 1 for found in places):
        return [found[0] for found in places]
    numbers = [_is_number(cell) for cell, column in zip(row, columns, strict=False) if column.number]
    if not any(places) and any(numbers):
        return []
    wanted = ", ".join(column.name for column in columns)
    shown = ", ".join(repr(cell[:40]) for cell in row[:8])
    raise KitError(f"{where}: the header must name each of the columns {wanted} once, in any order, "
                   f"with {separator!r} between them; found {shown}.")  # fmt: skip


def _number(cell: str) -> str:
    """The cell without spaces, zeros before it and decimals that are 0: pandas writes ids as `7.0` if one is missing."""
    if cell.isdecimal() and cell[0] != "0":  # nearly all of them
        return cell
    cell = cell.strip()
    whole = re.fullmatch(r"0*([0-9]+)(\.0*)?", cell)
    return whole[1] if whole else cell


def _plain(name: str) -> str:
    return re.sub(r"[\s_\"']", "", name).lower()


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
