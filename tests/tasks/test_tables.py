"""Tables: columns by name, a header told from data, and the encoding of the whole file."""

import csv
import io
import itertools
import json

import pytest

from fgrpo.config import KitError
from fgrpo.tasks.lastfm import load_lastfm
from fgrpo.tasks.movielens import FILMS, RATINGS, load_movielens
from fgrpo.tasks.next_item import names_by_id
from fgrpo.tasks.reading import Notes
from fgrpo.tasks.tables import _number, table

from . import test_lastfm, test_movielens

ROWS = [{"userId": "7", "movieId": "1", "rating": "4.5", "timestamp": "99"},
        {"userId": "8", "movieId": "2", "rating": "3", "timestamp": "98"}]  # fmt: skip
EXPECTED = [["7", "1", "4.5", "99"], ["8", "2", "3", "98"]]


def written(names: list[str], header: bool = True, quoting: int = csv.QUOTE_MINIMAL) -> str:
    text = io.StringIO()
    rows = csv.DictWriter(text, names, restval="x, y", quoting=quoting)
    if header:
        rows.writeheader()
    rows.writerows(ROWS)
    return text.getvalue()


def read(path, text: str | bytes, separator: str = ",") -> list[list[str]]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [cells for _, cells in table(path, RATINGS, separator, Notes())]


@pytest.mark.parametrize("names", list(itertools.permutations(["userId", "movieId", "rating", "timestamp"])))
def test_columns_may_be_in_any_order(tmp_path, names) -> None:
    text = written(list(names))
    assert read(tmp_path / "a.csv", text) == EXPECTED
    assert read(tmp_path / "a.dat", text.replace(",", "::"), "::") == EXPECTED
    assert read(tmp_path / "a.data", text.replace(",", "\t"), "\t") == EXPECTED


@pytest.mark.parametrize(
    "text",
    [
        written(["movieId", "tag", "timestamp", "rating", "userId", "genres"]),
        "\ufeff" + written(["rating", "movieId", "userId", "timestamp"], quoting=csv.QUOTE_ALL),
        written(["userId", "movieId", "rating", "timestamp"], header=False),
        "\ufeff" + written(["userId", "movieId", "rating", "timestamp", "extra"], header=False),
        "\n\n" + written(["userId", "timestamp", "rating", "movieId"]).replace("userId", "User ID"),
        written(["movieId", "userId", "rating", "timestamp"])
        .replace("movieId", "item_id")
        .replace("userId", "USER_ID"),
    ],
)
def test_extra_columns_marks_and_quotes_are_welcome(tmp_path, text) -> None:
    assert read(tmp_path / "a.csv", text) == EXPECTED


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("userId,movieId,stars,timestamp", "'stars'"),
        ("user,film,rating,timestamp", "'user', 'film'"),
        ("userId;movieId;rating;timestamp", "'userId;movieId;rating;timestamp'"),
        ("userId,movieId,rating,rating", "'rating', 'rating'"),
        ("userId,movieId,rating", "'rating'"),
        ("a,b,c,d", "'a', 'b'"),
        ("userId,movieId,rating,1999", "'1999'"),
    ],
)
def test_an_unknown_header_is_refused(tmp_path, header, found) -> None:
    with pytest.raises(
        KitError, match=r"a\.csv, line 1: the header must name each of the columns userId, movieId, "
    ) as e:
        read(tmp_path / "a.csv", f"{header}\n7,1,4.5,99\n")
    assert found in str(e.value) and "\n" not in str(e.value) and ", with ',' between them; " in str(e.value)


def test_a_row_of_another_width_is_named(tmp_path) -> None:
    with pytest.raises(KitError, match=r"a\.csv, line 3: expected 4 columns, found 5"):
        read(tmp_path / "a.csv", written(list(ROWS[0])).replace("8,2,3,98", "8,2,3,98,5"))
    with pytest.raises(KitError, match=r"a\.csv, line 4: expected 4 columns, found 2"):
        read(tmp_path / "a.csv", written(list(ROWS[0])) + "8,2\n")
    with pytest.raises(KitError, match=r"a\.csv, line 6: not CSV \(unexpected end of data\)"):
        read(
            tmp_path / "a.csv", written(list(ROWS[0])) + '8,"2\n' + "9,2,3,98\n" * 2
        )  # an open quote takes all rows below it


def test_every_layout_is_read_by_name(tmp_path) -> None:
    """A header with two columns swapped gives the same task as the official order: films are not taken for users."""
    expected = load_movielens(test_movielens.write(tmp_path, "latest"))
    rows = list(csv.DictReader((tmp_path / "ratings.csv").open()))
    with (tmp_path / "ratings.csv").open("w", newline="") as file:
        out = csv.DictWriter(file, ["timestamp", "movieId", "userId", "rating"])
        out.writeheader()
        out.writerows(rows)
    films = [line.split(",", 1) for line in (tmp_path / "movies.csv").read_text().splitlines()[1:]]
    lines = ["genres,title,movieId", *(f"Drama,{rest.rsplit(',', 1)[0]},{i}" for i, rest in films)]
    (tmp_path / "movies.csv").write_text("\n".join(lines))
    assert load_movielens(tmp_path) == expected

    expected = load_lastfm(test_lastfm.hetrec(tmp_path))
    lines = (tmp_path / "user_artists.dat").read_text().splitlines()
    (tmp_path / "user_artists.dat").write_text("\n".join("\t".join(line.split("\t")[::-1]) for line in lines))
    lines = (tmp_path / "artists.dat").read_text(encoding="utf-8").splitlines()
    (tmp_path / "artists.dat").write_text(
        "\n".join("\t".join(line.split("\t")[::-1]) for line in lines), encoding="utf-8"
    )
    assert load_lastfm(tmp_path) == expected


@pytest.mark.parametrize("layout", ["1m", "100k"])
def test_files_without_a_header_may_get_one(tmp_path, layout) -> None:
    expected = load_movielens(test_movielens.write(tmp_path, layout))
    name, separator = ("ratings.dat", "::") if layout == "1m" else ("u.data", "\t")
    rows = [line.split(separator) for line in (tmp_path / name).read_text().splitlines()]
    rows = [
        ["MovieID", "UserID", "Timestamp", "Rating"],
        *([film, user, time, stars] for user, film, stars, time in rows),
    ]
    (tmp_path / name).write_text("\n".join(separator.join(row) for row in rows))
    assert load_movielens(tmp_path) == expected


def test_values_that_cannot_be_are_named(tmp_path) -> None:
    test_movielens.write(tmp_path, "latest")
    for row, message in [
        ("1,1,978300760,5", "rating 978300760 must be from 0 to 5"),
        ("1,1,-1,5", "rating -1 must be from 0 to 5"),
        ("1,1,4,-5", "time -5 at least 0"),
        ("1,1,4,2001-09-09", "rating and time must be numbers, found '4' and '2001-09-09'"),
        ("1,1,,5", "column rating is empty"),
    ]:
        (tmp_path / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n{row}\n")
        with pytest.raises(KitError, match=rf"ratings\.csv, line 2: .*{message}"):
            load_movielens(tmp_path)
    test_lastfm.llara(tmp_path)
    (tmp_path / "id2name.txt").write_text("name::id\nA::70001\n")
    with pytest.raises(KitError, match=r"artist '\d+' is not in id2name"):
        load_lastfm(tmp_path)


TITLES = ["Amélie (2001)", "Misérables, Les (1995)", "Plain (1990)", "千と千尋の神隠し (2001)"]


def names(path, encoding: str, titles: list[str], separator: str = "::") -> tuple[list[str], dict[str, int]]:
    notes = Notes()
    path.write_bytes("".join(f"{n}{separator}{t}\n" for n, t in enumerate(titles, start=1)).encode(encoding))
    return list(names_by_id(path, FILMS, separator, notes).values()), notes.remarks


@pytest.mark.parametrize(
    ("name", "separator"), [("movies.dat", "::"), ("u.item", "|"), ("artists.dat", "\t"), ("a.csv", ",")]
)
def test_utf8_comes_before_latin_1_whatever_the_name(tmp_path, name, separator) -> None:
    titles = [t.replace(",", "") for t in TITLES]
    for encoding in ("utf-8", "utf-8-sig"):
        assert names(tmp_path / name, encoding, titles, separator) == (titles, {})
    found, remarks = names(tmp_path / name, "iso-8859-1", titles[:3], separator)
    place = len(f"1{separator}Am")
    assert found == titles[:3]
    assert remarks == {f"{name} is not UTF-8 and was read as Latin-1; first byte that is not UTF-8": place}


def test_a_file_has_one_encoding(tmp_path) -> None:
    """Not one per line: a character at the edge of a piece is whole, and one bad byte at the end of 3 MB is found."""
    long = "é" * 700_000
    assert names(tmp_path / "a.dat", "utf-8", ["x" + long, "Amélie"]) == (["x" + long, "Amélie"], {})
    (tmp_path / "a.dat").write_bytes(b"1::" + b"x" * 1_400_000 + b"\n2::Am\xe9lie\n")
    notes = Notes()
    found = list(names_by_id(tmp_path / "a.dat", FILMS, "::", notes).values())
    assert found[1] == "Amélie" and list(notes.remarks.values()) == [1_400_009]


@pytest.mark.parametrize(
    "blob",
    [
        "“Amélie”…".encode("cp1252"), "千と千尋の神隠し".encode("cp932"), "Амели".encode("koi8-r") + b"\x95",
        "Amélie".encode() + b"\nAm\xe9lie", b"Am\xe9lie" + b" " * (2 << 20) + "Amélie".encode(),
    ],
)  # fmt: skip
def test_what_is_neither_utf8_nor_latin_1_is_refused(tmp_path, blob) -> None:
    """Read as Latin-1 it would give garbled names, silently: another encoding, or two in one file."""
    (tmp_path / "a.dat").write_bytes(b"1::" + blob.replace(b"\n", b"\n2::") + b"\n")
    with pytest.raises(
        KitError, match=r"a\.dat: is neither UTF-8 \(byte \d+ is not\) nor Latin-1: save it as UTF-8\.$"
    ):
        list(names_by_id(tmp_path / "a.dat", FILMS, "::", Notes()))


def test_a_file_that_changes_while_it_is_read_is_one_sentence(tmp_path, monkeypatch) -> None:
    changed = io.TextIOWrapper(
        io.BytesIO(b"1,2,3,4\n1,2,\xff,4\n"), encoding="utf-8"
    )  # it was UTF-8 when it was opened
    monkeypatch.setattr("fgrpo.tasks.tables.open_text", lambda path, newline: (changed, -1))
    with pytest.raises(KitError, match=r"a\.csv: cannot be read as UTF-8 \(byte 0xff\): save it as UTF-8\."):
        list(table(tmp_path / "a.csv", RATINGS, ",", Notes()))


@pytest.mark.parametrize(
    ("films", "ratings", "message"),
    [
        ("", ",1,4,5", r"ratings\.csv, line 162: column userId is empty"),
        ("", "1, ,4,5", r"ratings\.csv, line 162: column movieId is empty"),
        (",Nothing,Drama\n", "1,1,4,5", r"movies\.csv, line 62: column movieId is empty"),
        ("77, ,Drama\n", "1,1,4,5", r"movies\.csv, line 62: id '77' has no title"),
        ("77,A,Drama\n 77 ,B,Drama\n", "1,1,4,5", r"movies\.csv, line 63: id '77' appears twice"),
        ("", f"1,{'9' * 5000},4,5", r"ratings\.csv, line 162: film '9{39} is not in the list of films"),
    ],
)
def test_blank_cells_are_named_and_long_ones_cut(tmp_path, films, ratings, message) -> None:
    test_movielens.write(tmp_path, "latest")
    for name, more in (("movies.csv", films), ("ratings.csv", ratings)):
        with (tmp_path / name).open("a", encoding="utf-8") as file:
            file.write(more)
    with pytest.raises(KitError, match=message) as error:
        load_movielens(tmp_path)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("how", ["{}.0", " {} ", "0{}", "{}."])
@pytest.mark.parametrize("name", ["ratings.csv", "movies.csv"])
def test_a_number_is_the_same_however_it_is_written(tmp_path, name, how) -> None:
    """pandas writes ids as `7.0` if one is missing; half of a user's rows would be another user's."""
    expected = load_movielens(test_movielens.write(tmp_path, "latest"))
    head, *lines = (tmp_path / name).read_text().splitlines()
    rows = [line.split(",", 2) for line in lines]  # the first two cells of a rating, and the first of a film, are ids
    ids = 2 if name == "ratings.csv" else 1
    odd = [[how.format(cell) if i < ids else cell for i, cell in enumerate(row)] for row in rows[::2]]
    rows[::2] = odd
    (tmp_path / name).write_text("\n".join([head, *(",".join(row) for row in rows)]))
    assert load_movielens(tmp_path) == expected


def test_a_number_that_is_not_whole_is_left_alone() -> None:
    cells = ["0", "00", "100", "1.50", "0.5", "10.0", "1e3", "A07", "007", "", "-1", "0.0", "1.0.0", "."]
    expected = ["0", "0", "100", "1.50", "0.5", "10", "1e3", "A07", "7", "", "-1", "0", "1.0.0", "."]
    assert list(map(_number, cells)) == expected


def test_the_encoding_is_reported(tmp_path, capsys) -> None:
    from fgrpo.cli.main import main

    test_movielens.write(tmp_path, "1m")
    assert main(["data", "stats", "--task", "movielens", "--data", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert "movies.dat is not UTF-8 and was read as Latin-1" in err
    assert any("read as Latin-1" in what for what in json.loads(out)["remarks"])
