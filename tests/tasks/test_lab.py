"""The lab task, byte for byte, and what it promises."""

import pytest

from fgrpo.tasks import DATA
from fgrpo.tasks.lab import build_lab, lab_catalogue, lab_files


def test_committed_lab_files_are_regenerated_byte_for_byte() -> None:
    files = lab_files(DATA / "lab-rec")
    assert {p.name for p in files} == {p.name for p in (DATA / "lab-rec").iterdir()}
    for path, text in files.items():
        assert path.read_bytes() == text.encode("utf-8"), path
    assert sum(len(text.encode()) for text in files.values()) < 3_000_000


@pytest.mark.parametrize("one_relevant", [False, True])
def test_the_lab_task_is_what_it_says(one_relevant) -> None:
    splits = build_lab(one_relevant)
    assert [len(part) for part in splits] == [4000, 512, 512]
    assert len({e.id for part in splits for e in part}) == 5024
    titles = [f.title for f in lab_catalogue()]
    assert len(set(titles)) == len(titles) == 300
    for e in [e for part in splits for e in part]:
        assert len(e.history) == 8 and len(e.candidates) == len(set(e.candidates)) == 20
        assert not set(e.history) & set(e.candidates)
        assert len(e.relevant) == 1 if one_relevant else 2 <= len(e.relevant) <= 4
    places = [i for e in splits.train for i in e.relevant]
    assert abs(sum(places) / len(places) - 9.5) < 0.3  # the place in the pool tells nothing


def test_history_tells_taste_and_negatives_are_hard() -> None:
    """Films of the history's genres and tones are liked more often, and among negatives are more common than by chance."""
    films = {f.title: f for f in lab_catalogue()}
    near = {True: [], False: []}
    for e in build_lab().test:
        known = {films[h].genre for h in e.history} | {films[h].tone for h in e.history}
        for i, c in enumerate(e.candidates):
            near[i in e.relevant].append((films[c].genre in known) + (films[c].tone in known))
    liked, negative = (sum(x) / len(x) for x in (near[True], near[False]))
    chance = sum(
        (f.genre in {films[h].genre for h in e.history}) + (f.tone in {films[h].tone for h in e.history})
        for e in build_lab().test[:50] for f in lab_catalogue()
    ) / (50 * 300)  # fmt: skip
    assert liked > negative + 0.4 and negative > chance + 0.03
