"""MovieLens in its three official layouts: hand-written files here, the real one where it is at hand."""

from collections import Counter
from pathlib import Path

import pytest

from fgrpo.baselines.rankers import popularity
from fgrpo.cli.main import main
from fgrpo.config import KitError
from fgrpo.tasks.movielens import MIN_RATING, load_movielens, load_movielens_loo, readable_title
from fgrpo.tasks.next_item import HISTORY
from fgrpo.tasks.reading import Notes, catalogue

REAL = Path(__file__).parents[3] / "shared/data/movielens/ml-latest-small"
FILMS = [(str(n), f"Film {n % 40}, The (19{50 + n % 40})") for n in range(1, 61)]  # titles 1 and 41 are the same


def events() -> list[tuple[int, str, float, int]]:
    """20 users; user u starts at time 1000 u and rates 8 films, listed by film and not by time."""
    rows = []
    for user in range(1, 21):
        for n in range(8):
            film = 1 + (user * 7 + n * 11) % 60
            rows.append((user, str(film), 2.5 if n == 3 else 4.0, 100_000 - 1000 * user + n))
    return sorted(rows, key=lambda r: (r[0], int(r[1])))


def write(folder: Path, layout: str) -> Path:
    if layout == "latest":
        (folder / "movies.csv").write_text(
            "movieId,title,genres\n" + "".join(f'{i},"{t}",Drama\n' for i, t in FILMS), encoding="utf-8"
        )
        (folder / "ratings.csv").write_text(
            "userId,movieId,rating,timestamp\n" + "".join(f"{u},{i},{r},{t}\n" for u, i, r, t in events())
        )
    elif layout == "1m":
        (folder / "movies.dat").write_bytes("".join(f"{i}::{t} é::Drama\n" for i, t in FILMS).encode("iso-8859-1"))
        (folder / "ratings.dat").write_text("".join(f"{u}::{i}::{r}::{t}\n" for u, i, r, t in events()))
    else:
        (folder / "u.item").write_bytes(
            "".join(f"{i}|{t} é|01-Jan-1995||url|0|1\n" for i, t in FILMS).encode("iso-8859-1")
        )
        (folder / "u.data").write_text("".join(f"{u}\t{i}\t{r}\t{t}\n" for u, i, r, t in events()))
    return folder


@pytest.mark.parametrize("layout", ["latest", "1m", "100k"])
def test_each_official_layout_follows_the_protocol(tmp_path, layout) -> None:
    splits = load_movielens(write(tmp_path, layout))
    by_user: dict[str, list[tuple[int, str]]] = {}
    for user, film, rating, time in events():
        if rating >= MIN_RATING:
            by_user.setdefault(str(user), []).append((time, film))
    order = sorted(by_user, key=lambda u: min(by_user[u]))
    assert order[0] == "20"  # the user with the highest number rated first
    users = [list(dict.fromkeys(e.id.split("-")[0] for e in part)) for part in splits]
    assert users == [order[:16], order[16:18], order[18:]]
    for part in splits[1:]:
        for e in part:
            sequence = [film for _, film in sorted(by_user[e.id.split("-")[0]])]
            (positive,) = e.relevant
            assert e.candidate_ids[positive] == sequence[-1] and list(e.history_ids) == sequence[:-1][-HISTORY:]
    for e in (e for part in splits for e in part):
        assert len(e.candidates) == len(set(e.candidate_ids)) == 20
        assert not set(e.candidate_ids) & set(e.history_ids)
    assert "The Film 1 (1951)" in {t.removesuffix(" é") for part in splits for e in part for t in e.candidates}


def test_candidates_are_fixed_by_seed(tmp_path) -> None:
    write(tmp_path, "latest")
    notes = Notes()
    assert load_movielens(tmp_path) == load_movielens(tmp_path, notes) != load_movielens(tmp_path, seed=1)
    assert notes.to_dict() == {"ratings.csv": {"read": 160, "dropped": {"rating below 3": 20}}}


def test_a_film_rated_again_is_no_second_film(tmp_path) -> None:
    """Else the answer would be in the history: two files were joined, or the same rows written twice."""
    expected = load_movielens(write(tmp_path, "latest"))
    with (tmp_path / "ratings.csv").open("a") as file:
        file.write("".join(f"{u},{i},{r},{t}\n" for u, i, r, t in events()))
    notes = Notes()
    splits = load_movielens(tmp_path, notes)
    assert notes.to_dict()["ratings.csv"]["dropped"] == {"rating below 3": 40, "film rated again by the same user": 140}
    assert [[(e.id, e.history_ids) for e in part] for part in splits] == [
        [(e.id, e.history_ids) for e in part] for part in expected
    ]


def test_negatives_that_the_user_likes_are_counted(tmp_path, capsys) -> None:
    """The protocol draws them from all films but history and positive; `data stats` says how many pools have one."""
    notes = Notes()
    splits = load_movielens(write(tmp_path, "latest"), notes)
    liked: dict[str, set[str]] = {}
    for user, film, rating, _ in events():
        if rating >= MIN_RATING:
            liked.setdefault(str(user), set()).add(film)
    for name, part in splits._asdict().items():
        mixed = 0
        for e in part:
            (positive,) = e.relevant
            negatives = set(e.candidate_ids) - {e.candidate_ids[positive]}
            mixed += bool(negatives & liked[e.group])
            assert e.group == e.id.split("-")[0]
        what = f"ratings.csv: {name} pools where a negative is another rating of 3 or more of the same user, of {len(part)}"
        assert notes.remarks[what] == mixed
    assert sum(notes.remarks.values()) > 10
    assert main(["data", "stats", "--task", "movielens", "--data", str(tmp_path)]) == 0
    assert f"{next(iter(notes.remarks))}: {next(iter(notes.remarks.values()))}" in capsys.readouterr().out


def test_nobody_left_says_why(tmp_path) -> None:
    write(tmp_path, "latest")
    rows = "".join(f"{n},1,2.0,5\n" for n in range(30))
    (tmp_path / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n{rows}")
    with pytest.raises(KitError, match=r"too few .*30 rows read, 30 left out \(rating below 3: 30\)"):
        load_movielens(tmp_path)


def test_films_of_one_title_stay_two_items(tmp_path, config) -> None:
    from fgrpo.policy import Policy

    splits = load_movielens(write(tmp_path, "latest"))
    texts = {t for part in splits for e in part for t in e.candidates}
    items = catalogue(splits)
    assert len(items) > len(texts)
    Policy.tiny(items, config.model).encode(splits.train)  # no pool is refused for two films of one title


def test_titles_are_readable() -> None:
    assert readable_title("Matrix, The (1999)") == "The Matrix (1999)"
    assert readable_title("Misérables, Les (1995)") == "Les Misérables (1995)"
    assert readable_title("Good, the Bad and the Ugly, The (Buono, il) (1966)").startswith("The Good, the Bad")
    assert readable_title("Me, Myself & Irene (2000)") == "Me, Myself & Irene (2000)"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "ratings.csv",
            "userId,movieId,rating,timestamp\n1,1,4.0\n",
            r"ratings\.csv, line 2: expected 4 columns, found 3",
        ),
        ("ratings.csv", "userId,movieId,rating,timestamp\n1,1,four,5\n", r"line 2: rating and time must be numbers"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n1,1,4.0,nan\n", r"line 2: rating and time must be numbers"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n1,999,4.0,5\n", r"line 2: film '999' is not in the list"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n1,1,4.0,5\n", r"0 users .* too few"),
    ],
)
def test_bad_files_are_named(tmp_path, file, text, message) -> None:
    write(tmp_path, "latest")
    (tmp_path / file).write_text(text)
    with pytest.raises(KitError, match=message):
        load_movielens(tmp_path)


def test_a_folder_without_movielens(tmp_path) -> None:
    with pytest.raises(KitError, match=r"no MovieLens here \(it is empty\); --data must be"):
        load_movielens(tmp_path)


def test_leave_one_out_holds_two_films_of_every_user(tmp_path) -> None:
    write(tmp_path, "latest")
    with (tmp_path / "ratings.csv").open("a") as file:
        file.write("98,1,4.0,1\n98,2,4.0,2\n99,3,4.0,3\n")  # two films and one: too few
    notes = Notes()
    splits = load_movielens_loo(tmp_path, notes)
    liked: dict[str, list[tuple[int, str]]] = {}
    for user, film, rating, time in events():
        if rating >= MIN_RATING:
            liked.setdefault(str(user), []).append((time, film))
    films = {user: [film for _, film in sorted(rated)] for user, rated in liked.items()}
    assert splits.train.sequences == {user: some[:-2] for user, some in films.items()}
    assert [len({e.group for e in part}) for part in splits] == [20, 20, 20]
    for back, part in ((2, splits.validation), (1, splits.test)):
        for e in part:
            (positive,) = e.relevant
            own = films[e.group]
            assert e.candidate_ids[positive] == own[-back] and list(e.history_ids) == own[:-back][-HISTORY:]
            assert set(e.candidate_ids) & set(own) == {own[-back]} and len(set(e.candidate_ids)) == 20
    lost = "rating of a user with fewer than three films rated 3 or more"
    assert notes.to_dict()["ratings.csv"] == {"read": 163, "dropped": {"rating below 3": 20, lost: 3}}
    assert load_movielens_loo(tmp_path) == splits != load_movielens_loo(tmp_path, seed=1)
    with pytest.raises(KitError, match="movielens-loo takes uniform or popular"):
        load_movielens_loo(tmp_path, negatives="mixed")


@pytest.mark.skipif(not REAL.is_dir(), reason="ml-latest-small is not beside the project (../shared/data)")
def test_leave_one_out_on_the_real_ml_latest_small() -> None:
    """Every user but one; popular negatives leave popularity nothing to find, where uniform ones leave it much."""
    found = {}
    for negatives in ("uniform", "popular"):
        splits = load_movielens_loo(REAL, negatives=negatives)
        assert len(splits.validation) == len(splits.test) == 609
        orders = popularity(splits)
        found[negatives] = sum(order[0] in e.relevant for order, e in zip(orders, splits.test, strict=True)) / 609
    assert found["uniform"] > 0.3 and found["popular"] < 0.1


@pytest.mark.skipif(not REAL.is_dir(), reason="ml-latest-small is not beside the project (../shared/data)")
def test_the_real_ml_latest_small() -> None:
    splits = load_movielens(REAL)
    assert len(splits.validation) == len(splits.test) == 61
    users = [{e.id.split("-")[0] for e in part} for part in splits]
    assert len(users[0]) == 487 and not (users[0] & users[1] or users[0] & users[2] or users[1] & users[2])
    assert len(catalogue(splits)) > 8000
    counts = Counter(len(e.candidates) for part in splits for e in part)
    assert set(counts) == {20} and all(len(e.history) <= 10 for part in splits for e in part)
