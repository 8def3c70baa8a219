"""Text that is shown while its tokens come: whole characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.cluster.serving.text_stream import TextStream


def decode(ids: Sequence[int]) -> str:
    """Decode tokens that are bytes, as byte-level tokenizers do."""
    return bytes(ids).decode(errors="replace")


LETTERS = "ab \u00e9\u20ac\U0001d11e\ufffd"


@settings(max_examples=60)
@given(st.text(LETTERS, max_size=30), st.text(LETTERS, min_size=1, max_size=3))
def test_pieces_are_the_text_up_to_the_stop_string(text: str, stop: str):
    stream = TextStream(decode, (stop,))
    pieces: list[str] = []
    for token in text.encode():
        if stream.is_stopped:
            break
        pieces.append(stream.add(token))
    pieces.append(stream.finish())
    assert "".join(pieces) == stream.text == text.split(stop)[0]
    assert stream.is_stopped == (stop in text)
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text


@settings(max_examples=40)
@given(st.binary(max_size=60))
def test_bytes_that_are_no_text_are_shown_in_the_end(data: bytes):
    stream = TextStream(decode)
    pieces = [*map(stream.add, data), stream.finish()]
    assert "".join(pieces) == stream.text
    if data.isascii():
        assert stream.text == data.decode()
    assert bool(stream.text) == bool(data)


def test_the_start_of_a_text_is_decoded_with_what_is_before_it():
    # As tokenizers do that drop the space at the start of what they decode.
    words = [" one", " two", " three"]
    stream = TextStream(lambda ids: "".join(words[index] for index in ids).removeprefix(" "))
    assert [stream.add(index) for index in range(3)] == ["one", " two", " three"]
