"""The contracts of readers and responders: texts or requests in, captured activations out, each as it is finished.

Knows nothing of how it is done, nor of units or stores; imports no torch.
Axes: L captured layers, K those of which every token is kept, T content tokens of one response, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..jobs.interventions import Intervention
from ..jobs.poolings import TokenRange, TokenSpans
from ..jobs.rollouts import ArrayName, Canary, Rollout
from ..jobs.spec import CaptureSpec, SamplingSpec
from ..jobs.units import RolloutRequest


@dataclass(frozen=True, eq=False)
class CapturedRollout:
    """A rollout with its pooled activations.

    Attributes:
        rollout: The texts, their token ids and their address.
        vectors_LD: float32 ``(L, D)`` per (hook point, pooling); all NaN where the rollout has no vector.
        tokens_KTD: float32 ``(K, T, D)`` per (hook point, ``tokens``); empty where none are kept.
        user_span: Tokens of the user's last message, in the prompt; None where no pooling is over them.
        intervention: What was changed in the model meanwhile; None for nothing.
    """

    rollout: Rollout
    vectors_LD: dict[ArrayName, npt.NDArray[np.float32]]
    tokens_KTD: dict[ArrayName, npt.NDArray[np.float32]] = field(default_factory=dict)
    user_span: TokenRange | None = None
    intervention: Intervention | None = None

    @property
    def spans(self) -> TokenSpans:
        """Where prompt, user's message and response lie in the conversation, in tokens."""
        start = len(self.rollout.prompt_token_ids)
        return TokenSpans((start, start + self.rollout.num_content_tokens), self.user_span)


@dataclass(frozen=True, slots=True)
class TokenisedText:
    """A conversation that exists already, for a pass that only reads.

    Attributes:
        name: Stands for it in error messages.
        token_ids: The whole conversation, rendered.
        responses: Spans ``(start, stop)`` of response content, ascending, end exclusive; the prompt of each is all that
            comes before it, ``[0, start)``. An empty span has no vector in the response poolings.
        user_spans: For each response the tokens of the last message of the user before it; empty where no pooling is
            over them.
        intervention: What is changed in the model while it is read; None for nothing.
    """

    name: str
    token_ids: tuple[int, ...]
    responses: tuple[TokenRange, ...]
    user_spans: tuple[TokenRange, ...] = ()
    intervention: Intervention | None = None

    @property
    def spans(self) -> tuple[TokenSpans, ...]:
        """For each response where it, its prompt and the user's message lie."""
        users = self.user_spans or (None,) * len(self.responses)
        return tuple(TokenSpans(response, user) for response, user in zip(self.responses, users, strict=True))

    @classmethod
    def of(
        cls, rollout: Rollout, user_span: TokenRange | None = None, intervention: Intervention | None = None
    ) -> TokenisedText:
        """Return a rollout as a text with one response.

        Args:
            rollout: Prompt and response.
            user_span: Tokens of the user's last message; None where no pooling is over them.
            intervention: What is changed in the model while it is read; None for nothing.
        """
        start = len(rollout.prompt_token_ids)
        return cls(
            name=str(rollout.address),
            token_ids=(*rollout.prompt_token_ids, *rollout.response_token_ids),
            responses=((start, start + rollout.num_content_tokens),),
            user_spans=() if user_span is None else (user_span,),
            intervention=intervention,
        )


@dataclass(frozen=True, eq=False)
class CapturedText:
    """A conversation's pooled activations.

    Attributes:
        vectors_LD: For each response span, float32 ``(L, D)`` per (hook point, pooling); all NaN in the response
            poolings of an empty span.
        tokens_KTD: For each response span, float32 ``(K, T, D)`` per (hook point, ``tokens``); empty where none are.
    """

    vectors_LD: tuple[dict[ArrayName, npt.NDArray[np.float32]], ...]
    tokens_KTD: tuple[dict[ArrayName, npt.NDArray[np.float32]], ...]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Which model to load and how to run it.

    Attributes:
        directory: The model's files.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads of this process.
        batch_tokens: Tokens, prompts and responses, that one batch may hold.
        layers: Captured layers, ascending.
        sampling: How tokens are chosen, and how many at most.
        capture: Hook points and poolings.
        token_layers: Those of ``layers`` of which every token is kept.
    """

    directory: Path
    dtype: str
    device: str
    threads: int
    batch_tokens: int
    layers: tuple[int, ...]
    sampling: SamplingSpec
    capture: CaptureSpec
    token_layers: tuple[int, ...] = ()

    @property
    def token_positions(self) -> list[int]:
        """The index of each of ``token_layers`` in ``layers``."""
        return [self.layers.index(layer) for layer in self.token_layers]


class Reader(Protocol):
    """Something that reads texts and captures, without generating.

    Attributes:
        layers: The captured layers.
        canary_limit: Largest relative error that its vectors may have against a plain forward pass; it depends on the
            parameter type.
        tokens_per_capture: Tokens of texts that one call should bring, so that texts which begin alike meet in a pass.
            What a call captures is held until it returns, so a reader that keeps every token wants fewer.
    """

    layers: tuple[int, ...]
    canary_limit: float
    tokens_per_capture: int

    def capture(self, texts: Sequence[TokenisedText]) -> list[CapturedText]:
        """Read texts and capture, without generating.

        Args:
            texts: Any number, of any length.

        Returns:
            One for each text, in the same order.

        Raises:
            UnitError: As for ``Responder.generate``; nothing of the call can be used.
        """
        ...

    def canary(self, captured: CapturedRollout) -> Canary | None:
        """Recompute a rollout by a plain forward pass over it alone and compare the captured vectors with it.

        Args:
            captured: A rollout that this reader's model captured.

        Returns:
            The errors, layer by layer; None when the rollout has no content.
        """
        ...


class Responder(Protocol):
    """Something that turns requests into rollouts with their pooled activations.

    Attributes:
        prefetch: Units that should wait beside it while it works, so that it never waits for the driver: 0 for one that
            takes requests one at a time as it has room, 1 for one that takes many at once and then asks no more for a
            while.
    """

    prefetch: int

    @property
    def reader(self) -> Reader:
        """The model that captures, and that recomputes canaries; the responder itself where one model does all."""
        ...

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Answer requests and capture.

        Args:
            next_request: Called whenever there is room for one more rollout; None when there is none at the moment. A
                rollout that was yielded may bring a request that follows it, so it is called again after a yield.
                Requests may be of any personas; they share batches.

        Yields:
            One for each request, as each is finished, in any order. Ends when no request is under way and
            ``next_request`` gave None.

        Raises:
            UnitError: A number was not finite, a layer was not reached, a prompt is too long for the model. Requests
                that were not answered by then are lost, and may be made again.
        """
        ...
