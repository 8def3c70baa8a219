"""Which conversations share a prefix: by tokens and intervention, and never more of one than they may."""

from __future__ import annotations

import pytest
from persona_atlas.jobs.interventions import Intervention
from persona_atlas.jobs.messages import ChatMessage
from persona_atlas.workers.builtin.batching.prefixes import PrefixCache, TextInPass, in_passes
from persona_atlas.workers.editing.edited_pass import PreparedEdits
from persona_atlas.workers.editing.interventions import AppliedIntervention
from persona_atlas.workers.engine import TokenisedText

SYSTEM = list(range(10))


OPENING = (ChatMessage("system", "Be."),)


def applied(of_prompt: PreparedEdits | None) -> AppliedIntervention:
    """An intervention with these edits of the prompt, and others of the response."""
    return AppliedIntervention(Intervention(), of_prompt, PreparedEdits({}))


def cache() -> PrefixCache:
    return PrefixCache(lambda opening: SYSTEM if opening else SYSTEM[:5])


def test_the_first_rollout_leads_and_those_that_begin_alike_follow():
    prefixes = cache()
    prefix, leads = prefixes.find(OPENING, [*SYSTEM, 20], 10, None)
    assert prefix is not None
    assert (prefix.length, leads) == (10, True)
    assert prefixes.find(OPENING, [*SYSTEM, 30, 31], 11, None) == (prefix, False)


def test_another_intervention_has_a_prefix_of_its_own():
    prefixes = cache()
    one, other = PreparedEdits({}), PreparedEdits({})
    found = [prefixes.find(OPENING, [*SYSTEM, 20], 10, edits) for edits in (None, one, other)]
    assert [leads for _, leads in found] == [True, True, True]
    assert len({id(prefix) for prefix, _ in found}) == 3
    assert prefixes.find(OPENING, [*SYSTEM, 21], 10, one) == (found[1][0], False)


@pytest.mark.parametrize(
    ("opening", "prompt_ids", "most"),
    [(OPENING, [*SYSTEM, 20], 9), (OPENING, [*SYSTEM[:9], 99, 20], 10), ((), [*SYSTEM, 20], 10)],
    ids=["the user's words begin in it", "the question melts into it", "too short to be worth it"],
)
def test_a_prefix_that_cannot_be_shared_is_not(opening: tuple[ChatMessage, ...], prompt_ids: list[int], most: int):
    assert cache().find(opening, prompt_ids, most, None) == (None, False)


def test_old_prefixes_are_forgotten():
    prefixes = cache()
    different = [PreparedEdits({}) for _ in range(9)]
    for edits in different:
        prefixes.find(OPENING, [*SYSTEM, 20], 10, edits)
    assert prefixes.find(OPENING, [*SYSTEM, 20], 10, different[-1])[1] is False
    assert prefixes.find(OPENING, [*SYSTEM, 20], 10, different[0])[1] is True


@pytest.mark.parametrize(
    ("span", "pieces"),
    [((0, 4), [(100, 104)]), ((8, 12), [(108, 110), (50, 52)]), ((11, 14), [(51, 54)]), ((6, 6), []), ((12, 12), [])],
    ids=["in the leader's", "in both", "in its own", "nothing of the leader's", "nothing of its own"],
)
def test_a_span_stands_in_the_leaders_part_of_the_line_and_in_its_own(
    span: tuple[int, int], pieces: list[tuple[int, int]]
):
    text = TokenisedText("text", tuple(range(20)), ((15, 18),))
    assert list(TextInPass(0, text, None, shared=10).in_line(50, 100, span)) == pieces


def test_texts_of_one_intervention_that_begin_alike_follow_their_leader_within_a_pass():
    one = applied(PreparedEdits({}))
    texts = [TokenisedText(f"text {n}", (*SYSTEM, 50 + n, 60, 70), ((11, 13),)) for n in range(6)]
    interventions = [None, one, None, one, None, None]
    (readings,) = in_passes(texts, interventions, 1000)
    assert [(r.index, r.shared, r.leader) for r in readings] == [
        (0, 0, 0),
        (2, 10, 0),
        (4, 10, 0),
        (5, 10, 0),
        (1, 0, 4),
        (3, 10, 4),
    ]
    # 13 tokens lead and 3 follow: each pass has a leader of its own.
    passes = list(in_passes(texts, interventions, 19))
    assert [[(r.index, r.shared) for r in readings] for readings in passes] == [
        [(0, 0), (2, 10), (4, 10)],
        [(5, 0)],
        [(1, 0), (3, 10)],
    ]
