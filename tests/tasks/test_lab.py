"""The lab task, byte for byte, and what it promises."""

import hashlib

import numpy as np
import pytest

from fgrpo.baselines import baselines_by_name
from fgrpo.config import Config, GrammarConfig, KitError
from fgrpo.evaluate import measure_outputs
from fgrpo.prompt import Output
from fgrpo.tasks import load_task
from fgrpo.tasks.jsonl import read_jsonl
from fgrpo.tasks.lab import Viewers, lab_catalogue, lab_files, lab_task
from fgrpo.trainer import batch_of

DIGESTS = {
    "validation.jsonl": "aa767e0484c9f722f10bd9ae7cf5eb00f40f077121aad11da53eeaadbfde4b28",
    "test.jsonl": "457dd8391ee0f0f3c3f603c9dd4aa4bc0320da0b72c85e67083f28c7ced0f3b8",
    "catalogue.jsonl": "dc1550cf109bc7256c9628632ed60d06de1d082c2769777b6852201207cf4ff2",
}


def test_the_fixed_splits_are_the_same_bytes_everywhere(tmp_path) -> None:
    files = {path.name: text for path, text in lab_files(tmp_path).items()}
    assert {name: hashlib.sha256(files[name].encode()).hexdigest() for name in DIGESTS} == DIGESTS
    (tmp_path / "test.jsonl").write_text(files["test.jsonl"])
    assert read_jsonl(tmp_path / "test.jsonl") == lab_task().test == load_task(Config())[0].test


@pytest.mark.parametrize("options", [{}, {"one_relevant": True, "pool": 50}, {"pool": 200}, {"pool": 5}])
def test_a_viewer_is_what_the_task_says(options) -> None:
    viewers = Viewers(**options)
    examples, titles = viewers.take(0, 1000), [film.title for film in lab_catalogue()]
    assert len(set(titles)) == len(titles) == 300 and len({e.id for e in examples}) == 1000
    for e in examples:
        assert len(e.history) == 8 and len(e.candidates) == len(set(e.candidates)) == viewers.pool
        assert not set(e.history) & set(e.candidates) and {*e.history, *e.candidates} <= set(titles)
        assert len(e.relevant) == 1 if viewers.one_relevant else 2 <= len(e.relevant) <= 4
    places = [i for e in examples for i in e.relevant]
    spread = viewers.pool / np.sqrt(12 * len(places))
    assert abs(np.mean(places) - (viewers.pool - 1) / 2) < 4 * spread  # the place in the pool tells nothing


def test_viewer_i_is_a_pure_function_of_use_seed_and_i() -> None:
    """Any number at a time, in any order; other uses, seeds and splits hold other viewers; options keep the taste."""
    viewers = Viewers()
    many = viewers.take(1000, 50, 3, "rl")
    assert many[17:20] == viewers.take(1017, 3, 3, "rl") and many[0] == Viewers().take(1000, 1, 3, "rl")[0]
    assert viewers[5] == viewers[:10][5] == viewers.take(5, 1)[0] and viewers[-1] == viewers[len(viewers) - 1]
    assert viewers[10:40:7] == [viewers[i] for i in (10, 17, 24, 31, 38)] and list(viewers)[123] == viewers[123]
    task = lab_task()
    parts = [many, viewers.take(1000, 50, 4, "rl"), viewers.take(1000, 50, 3, "sft"), task.validation, task.test]
    assert len({e.history for part in parts for e in part}) == 150 + 1024 + 2048
    assert [e.history for e in Viewers(pool=50).take(1000, 50, 3, "rl")] == [e.history for e in many]
    far = viewers.take(10**12, 2)  # no counter overflows
    assert far[0] != far[1]


def test_training_never_repeats_a_query_and_its_batches_are_the_stream(lab) -> None:
    """Batch n holds the viewers n * size on, whatever came before; SFT and RL have different ones."""
    batches = [batch_of(lab.train, 16, n, 7) for n in range(20)]
    assert [e.id for e in batches[3]] == [f"rl-7-{i}" for i in range(48, 64)]
    assert [e for batch in batches[4:8] for e in batch] == batch_of(lab.train, 64, 1, 7)
    histories = [e.history for n in range(20) for use in ("rl", "sft") for e in batch_of(lab.train, 16, n, 7, use)]
    assert len(set(histories)) == 640


def test_strengths_of_taste_and_negatives(lab) -> None:
    """A stronger taste leaves less to chance, harder negatives are more like what is liked; 0 of either is none of it."""

    def score(name: str, **options) -> float:
        splits = lab_task(**options)
        splits = splits._replace(test=splits.test[:512])
        (rank,) = baselines_by_name([name]).values()
        outputs = [Output(tuple(o[:10]), tuple(o[:5])) for o in rank(splits)]
        return measure_outputs(outputs, splits.test, GrammarConfig())["ndcg@5"].mean().item()

    plain, weak, hard, easy = (score("attributes", **o) for o in ({}, {"taste": 0.3}, {"hard": 0.5}, {"hard": 0.0}))
    assert weak < plain - 0.1 and hard < plain - 0.05 and easy > plain + 0.02
    assert score("taste", taste=0.3) < score("taste") - 0.05 < score("taste", taste=3.0) - 0.07
    assert abs(score("attributes", taste=0.0) - score("random")) < 0.05
    assert 0.72 < plain < 0.78 and 0.84 < score("taste") < 0.90  # the two ceilings
    with pytest.raises(KitError, match="for task lab-rec"):
        baselines_by_name(["taste"])["taste"](lab._replace(train=lab.train[:10]))


def test_history_tells_taste_and_negatives_are_hard(lab) -> None:
    """Films of the history's genres and tones are liked more often, and among negatives are more common than by chance."""
    films = {f.title: f for f in lab_catalogue()}
    near = {True: [], False: []}
    for e in lab.test:
        known = {films[h].genre for h in e.history} | {films[h].tone for h in e.history}
        for i, c in enumerate(e.candidates):
            near[i in e.relevant].append((films[c].genre in known) + (films[c].tone in known))
    liked, negative = (sum(x) / len(x) for x in (near[True], near[False]))
    chance = sum(
        (f.genre in {films[h].genre for h in e.history}) + (f.tone in {films[h].tone for h in e.history})
        for e in lab.test[:50] for f in lab_catalogue()
    ) / (50 * 300)  # fmt: skip
    assert liked > negative + 0.4 and negative > chance + 0.03
