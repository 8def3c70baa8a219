"""What every engine is told and promises: requests in, captured rollouts out, each as it is finished.

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
        rollout: What was said.
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
        name: What errors call it.
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
    """All that an engine is told.

    Attributes:
        directory: The model's files.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads of this process.
        batch_tokens: Tokens, prompts and responses, that one batch may hold.
        layers: Captured blocks.
        sampling: How tokens are chosen.
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
        """Places of ``token_layers`` among ``layers``."""
        return [self.layers.index(layer) for layer in self.token_layers]


class Engine(Protocol):
    """Something that turns requests, or texts, into pooled activations.

    Attributes:
        layers: The captured blocks.
        canary_limit: Relative error between what it captured and a plain forward pass that its numbers may have.
    """

    layers: tuple[int, ...]
    canary_limit: float

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Generate and capture.

        Args:
            next_request: Asked whenever there is room for one more rollout; None when there is none at the moment.
                Requests may be of any personas; they share batches.

        Yields:
            One for each request, as each is finished, in any order. Ends when nothing is left to do and
            ``next_request`` gave None.

        Raises:
            UnitError: A number was not finite, a layer was not seen, a prompt is too long for the model. What was not
                yielded by then is lost, and may be asked for again.
        """
        ...

    def capture(self, texts: Sequence[TokenisedText]) -> list[CapturedText]:
        """Read texts and capture, without generating.

        Args:
            texts: Any number, of any length.

        Returns:
            One for each text, in the same order.

        Raises:
            UnitError: As for ``generate``; nothing of the call can be used.
        """
        ...

    def canary(self, captured: CapturedRollout) -> Canary | None:
        """Recompute a rollout by a plain forward pass over it alone and say how near the captured vectors are.

        Args:
            captured: A rollout of this engine.

        Returns:
            The figures; None when the rollout has no content.
        """
        ...
