"""The protocol of a judge. Knows no rubrics, no scores and no store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from ...jobs.judging.answers import Answer
from ...jobs.judging.requests import JudgeRequest


class Judge(Protocol):
    """Answers requests with the text of a model."""

    def answers(self, next_request: Callable[[], JudgeRequest | None]) -> Iterator[Answer]:
        """Answer requests, as many at a time as the judge can.

        Args:
            next_request: Called whenever there is room for one more; returns None when there is none at the moment. It
                is called again after each answer, which may lead to the next request.

        Yields:
            The answer to each request, in any order. Ends when no request is in flight and ``next_request`` has
            returned None.

        Raises:
            InputError: The judge takes none of the requests, because of a key or a model that is wrong, for instance.
        """
        ...

    def close(self) -> None:
        """Let go of what the judge holds; requests in flight are given up. May be called again."""
        ...
