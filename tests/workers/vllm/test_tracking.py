"""Which tokens of vLLM's passes count for which slot: each position once, however vLLM divides and repeats them."""

from __future__ import annotations

from persona_atlas.workers.vllm.capture_plan import SlotSpans
from persona_atlas.workers.vllm.inside.tracking import Piece, Stretch, Tracker


def tracker_of(**requests: SlotSpans) -> Tracker:
    tracker = Tracker()
    for name, spans in requests.items():
        assert tracker.start(name, [spans]) == [spans.slot]
    return tracker


def test_a_prompt_that_is_split_and_a_response_go_to_their_spans_in_the_order_of_the_pass():
    tracker = tracker_of(
        a=SlotSpans(3, {"prompt": (0, 6), "response": (6, None)}), b=SlotSpans(1, {"response": (2, None)})
    )
    first = tracker.stretches([Piece("a", 0, 4), Piece("b", 0, 2)])
    assert first == {"prompt": [Stretch(3, 0, 4, False)]}
    # The batch was reordered, and a's prompt ends in this pass.
    second = tracker.stretches([Piece("b", 2, 1), Piece("a", 4, 2)])
    assert second == {"response": [Stretch(1, 0, 1, True)], "prompt": [Stretch(3, 1, 3, False)]}
    third = tracker.stretches([Piece("b", 3, 1), Piece("a", 6, 1)])
    assert third == {"response": [Stretch(1, 0, 1, True), Stretch(3, 1, 2, True)]}


def test_what_a_cache_skips_is_not_there():
    tracker = tracker_of(a=SlotSpans(0, {"prompt": (0, 10), "response": (10, None)}))
    assert tracker.stretches([Piece("a", 8, 2)]) == {"prompt": [Stretch(0, 0, 2, False)]}


def test_a_preempted_request_counts_every_position_once_though_it_is_computed_again():
    spans = SlotSpans(0, {"prompt": (0, 4), "response": (4, None)})
    tracker = tracker_of(a=spans)
    tracker.stretches([Piece("a", 0, 4)])
    tracker.stretches([Piece("a", 4, 1)])
    assert tracker.start("a", [spans]) == [], "its slot keeps what it has"
    # Resumed: vLLM computes the prompt and all tokens so far, of which one is new.
    assert tracker.stretches([Piece("a", 0, 3)]) == {}
    assert tracker.stretches([Piece("a", 3, 3)]) == {"response": [Stretch(0, 2, 3, True)]}


def test_several_responses_of_one_text_have_a_slot_each():
    tracker = Tracker()
    turns = [
        SlotSpans(5, {"prompt": (0, 3), "response": (3, 5)}),
        SlotSpans(6, {"prompt": (0, 7), "response": (7, 7)}),
    ]
    assert tracker.start("text", turns) == [5, 6]
    assert tracker.stretches([Piece("text", 0, 7)]) == {
        "prompt": [Stretch(5, 0, 3, False), Stretch(6, 0, 7, False)],
        "response": [Stretch(5, 3, 5, False)],
    }


def test_a_request_that_is_not_followed_or_no_longer_only_takes_its_place_in_the_pass():
    tracker = tracker_of(a=SlotSpans(0, {"response": (1, None)}), b=SlotSpans(1, {"response": (1, None)}))
    tracker.forget([0, 7])
    pieces = [Piece("stranger", 0, 5), Piece("a", 1, 1), Piece("b", 1, 1)]
    assert tracker.stretches(pieces) == {"response": [Stretch(1, 6, 7, True)]}
