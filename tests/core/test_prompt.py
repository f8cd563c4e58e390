"""The grammar against a plain loop, the parser against generated strings (100,000 with FGRPO_FUZZ=100000), the phases."""

import os
from dataclasses import replace

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fgrpo.config import GrammarConfig
from fgrpo.prompt import ERRORS, PHASE_PAD, PHASE_RANK, PHASE_SLATE, ItemChoices, Output, completion_text, parse, phases

CASES = int(os.environ.get("FGRPO_FUZZ", "1000"))
GRAMMAR = GrammarConfig(slate_size=4, rank_size=2)
LABELS = {str(i): i for i in range(8)}

ids = st.one_of(
    st.sampled_from([*LABELS, "8", "-1", "07", "1.0", "٣", "７", "²", "9" * 400, "i3", "<eos>", "1 2", ",", ""]),
    st.text(max_size=5),
)
body = st.lists(ids, max_size=7).flatmap(lambda x: st.sampled_from([", ", " ", ",", "\n"]).map(lambda s: s.join(x)))
tag = st.sampled_from(
    ["<SLATE>", "</SLATE>", "<RANK>", "</RANK>", "<SLATE", "SLATE>", "</RANK", "<slate>", "<SLATE><SLATE>", ""]
)
shaped = st.tuples(tag, body, tag, tag, body, tag).map("".join)
well_tagged = st.tuples(body, body).map(lambda x: f"<SLATE>{x[0]}</SLATE><RANK>{x[1]}</RANK>")
nested = st.tuples(well_tagged, well_tagged, body).map(lambda x: f"<SLATE>{x[0]}</SLATE>{x[2]}<RANK>{x[1]}</RANK>")
anything = st.one_of(well_tagged, shaped, nested, st.text(), st.lists(st.one_of(tag, ids), max_size=20).map(" ".join))


def well_formed(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A second reading of the grammar, by splitting instead of matching: slate and rank, empty where ill-formed."""

    def listed(part: str, opens: str, closes: str, size: int) -> tuple[int, ...]:
        if not part.startswith(opens) or not part.endswith(closes):
            return ()
        names = part[len(opens) : -len(closes)].replace(",", " ").split()
        good = 0 < len(names) <= size and all(x in LABELS for x in names) and len(set(names)) == len(names)
        return tuple(LABELS[x] for x in names) if good else ()

    first, closes, rest = text.partition("</SLATE>")
    slate = listed(first.lstrip() + closes, "<SLATE>", "</SLATE>", GRAMMAR.slate_size)
    rank = listed(rest.strip(), "<RANK>", "</RANK>", GRAMMAR.rank_size)
    return slate, rank if set(rank) <= set(slate) else ()


@settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(anything)
def test_the_parser_never_raises_and_never_rewards_an_ill_formed_output(text: str) -> None:
    output = parse(text, LABELS, GRAMMAR)
    slate, rank = well_formed(text)
    assert (output.slate, output.rank) == (slate, rank)
    assert output.error in ERRORS[1:] if not rank else output.error == ""


def test_each_error_has_its_name() -> None:
    def error(slate: str, rank: str) -> str:
        return parse(f"<SLATE>{slate}</SLATE><RANK>{rank}</RANK>", LABELS, GRAMMAR).error

    assert error("1, 2", "2") == ""
    assert error("", "") == "malformed"
    assert error("1 2", "") == "malformed"
    assert error("1 9", "1") == error("1 ٣", "1") == error("1 " + "9" * 400, "1") == "foreign"
    assert error("1 1", "1") == error("1 2", "2 2") == "duplicate"
    assert error("1 2 3 4 5", "1") == error("1 2 3", "1 2 3") == "too_long"
    assert error("1 2", "3") == "out_of_slate"
    assert parse("<SLATE>1</SLATE><RANK>1", LABELS, GRAMMAR) == Output((LABELS["1"],), (), "malformed")
    assert parse("<SLATE>1 1</SLATE><RANK>1</RANK>", LABELS, GRAMMAR) == Output((), (), "duplicate")


def test_what_is_written_is_read() -> None:
    text = completion_text([3, 0, 5], [5, 3], list(LABELS)).removesuffix("<eos>")
    assert parse(text, LABELS, GRAMMAR) == Output((3, 0, 5), (5, 3))


def allowed_by_loop(emitted: list[int], pool: int, grammar: GrammarConfig) -> set[int]:
    """The grammar as a plain state machine over choices 0..pool-1 and pool + (open, close, open, close, end)."""
    state, slate, rank = "start", [], []
    for x in emitted:
        if x < pool:
            (slate if state == "slate" else rank).append(x)
        else:
            state = ["slate", "between", "rank", "done", "done"][x - pool]
    if state == "start":
        return {pool}
    if state == "slate":
        free = {i for i in range(pool) if i not in slate} if len(slate) < grammar.slate_size else set()
        return free | ({pool + 1} if slate and not (grammar.full and free) else set())
    if state == "between":
        return {pool + 2}
    if state == "rank":
        free = {i for i in slate if i not in rank} if len(rank) < grammar.rank_size else set()
        return free | ({pool + 3} if rank and not (grammar.full and free) else set())
    return {pool + 4}


def test_the_vectorised_grammar_is_the_state_machine() -> None:
    generator = torch.Generator().manual_seed(0)
    for pool, full in ((1, False), (2, False), (3, False), (8, False), (3, True), (8, True)):
        grammar = replace(GRAMMAR, full=full)
        tokens = torch.arange(100, 100 + pool + 5).unsqueeze(0)
        for _ in range(40):
            choices, emitted = ItemChoices(tokens), []
            while not emitted or emitted[-1] != pool + 4:
                counts = torch.bincount(torch.tensor(emitted, dtype=torch.long), minlength=pool + 5).view(1, 1, -1)
                allowed = choices.allowed(counts, grammar).flatten()
                assert set(allowed.nonzero().flatten().tolist()) == allowed_by_loop(emitted, pool, grammar)
                emitted.append(int(torch.multinomial(allowed.float(), 1, generator=generator)))


def test_a_padded_pool_never_offers_its_padding() -> None:
    choices = ItemChoices(torch.tensor([[7, 8, -1, 1, 2, 3, 4, 5]]))
    counts = torch.tensor([[[0, 0, 0, 1, 0, 0, 0, 0]]])
    assert choices.allowed(counts, GRAMMAR).flatten().tolist() == [True, True, False] + [False] * 5


def test_phases_end_with_their_closing_tag_and_the_end_token() -> None:
    ids = torch.tensor([[10, 50, 11, 12, 50, 13, 1, 0], [10, 50, 51, 52, 53, 54, 55, 56]])
    mask = torch.tensor([[True] * 7 + [False], [True] * 8])
    found = phases(ids, mask, close_slate=11).tolist()
    assert found[0] == [PHASE_SLATE] * 3 + [PHASE_RANK] * 4 + [PHASE_PAD]
    assert found[1] == [PHASE_SLATE] * 8  # never closed: everything is the slate phase
