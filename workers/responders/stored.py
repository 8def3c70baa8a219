"""A responder for responses of another run: it captures their stored token ids, without rendering anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...jobs.errors import UnitError
from ...jobs.work.rollouts import Rollout
from ...jobs.work.units import RolloutRequest
from ..chat.stored_ids import Decode, other_reading
from ..engine import CapturedRollout, Reader, TokenisedText
from .readings import Reading, read


class StoredResponder:
    """Captures responses by the token ids that another run stored.

    Args:
        reader: The model that captures.
        decode: Decodes by its tokenizer. Every row is compared with its text before it is read.

    Attributes:
        prefetch: 1, because many texts are taken at once and none while they are read.
    """

    def __init__(self, reader: Reader, decode: Decode) -> None:
        self.reader = reader
        self.prefetch = 1
        self._decode = decode

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Capture the stored responses; see ``Responder.generate``."""
        while readings := self._take(next_request):
            yield from read(self.reader, readings)

    def _take(self, next_request: Callable[[], RolloutRequest | None]) -> list[Reading]:
        """Take texts until they have enough tokens for one call."""
        readings: list[Reading] = []
        tokens = 0
        while tokens < self.reader.tokens_per_capture and (request := next_request()) is not None:
            reading = self._reading(request)
            readings.append(reading)
            tokens += len(reading.text.token_ids)
        return readings

    def _reading(self, request: RolloutRequest) -> Reading:
        stored = request.stored
        if stored is None:
            raise UnitError(f"{request.address} has no stored response to read.", code="rows_mixed")
        other = other_reading(self._decode, request)
        if other is not None:
            raise UnitError(f"the tokenizer {other} ({request.address}).", code="other_vocabulary")
        rollout = Rollout(
            address=request.address,
            system_prompt=request.system_prompt,
            question=request.question,
            response=stored.text,
            prompt_token_ids=stored.prompt_token_ids,
            response_token_ids=stored.content_token_ids,
            num_content_tokens=len(stored.content_token_ids),
            finish_reason="given",
            seed=request.seed,
            conversation_index=request.conversation_index,
            extra=request.extra,
        )
        return Reading(TokenisedText.of(rollout, intervention=request.intervention), (rollout,))
