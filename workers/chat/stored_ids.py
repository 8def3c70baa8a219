"""Check that a tokenizer reads the token ids that another run stored as the texts that it stored beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...jobs.work.units import RolloutRequest

Decode = Callable[[Sequence[int]], str | None]
"""Token ids to text, control tokens included; None where an id is none of the vocabulary."""


def other_reading(decode: Decode, request: RolloutRequest) -> str | None:
    """Say how a tokenizer reads stored token ids otherwise than the run's own did; None where it reads the same texts.

    Spaces are left out of the comparison, since templates strip messages, and so are characters that were cut off in
    the middle. Control tokens that a template wrote around the texts cannot be compared: their names are not stored.

    Args:
        decode: Decodes by the tokenizer.
        request: A request with a stored response.

    Example:
        >>> from persona_atlas.jobs.messages import ChatMessage
        >>> from persona_atlas.jobs.work.addresses import RolloutAddress
        >>> from persona_atlas.jobs.work.units import StoredResponse
        >>> stored = StoredResponse("Hi", (1,), (2,))
        >>> address = RolloutAddress("role", "pirate", "pos", 0, 0, 0)
        >>> request = RolloutRequest(address, (ChatMessage("user", "Who?"),), 0, stored=stored)
        >>> other_reading(lambda ids: {1: "Who?", 2: "Hi"}[ids[0]], request) is None
        True
        >>> other_reading(lambda ids: "Ho", request)
        "reads the response as 'Ho', which is 'Hi'"
    """
    stored = request.stored
    assert stored is not None
    for what, text, ids in (
        ("response", stored.text, stored.content_token_ids),
        ("prompt", request.question, stored.prompt_token_ids),
        ("prompt", request.system_prompt, stored.prompt_token_ids),
    ):
        read = decode(ids)
        if read is None:
            return f"has no token of the number {max(ids):,}, which is in the {what}"
        if _plain(text) not in _plain(read):
            return f"reads the {what} as {_shortened(read)}, which is {_shortened(text)}"
    return None


def _plain(text: str) -> str:
    return "".join(text.replace("\ufffd", "").split())


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
