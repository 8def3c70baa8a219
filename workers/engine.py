"""The protocols of an engine: a ``Reader`` captures texts that exist, a ``Responder`` answers requests and captures.

An engine (the built-in one, or one that wraps an inference server such as vLLM) implements one or both of them. Knows
no implementation, no units and no store; does not import torch.
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
from ..jobs.specs.spec_parts import CaptureSpec, SamplingSpec
from ..jobs.work.canary_rows import canary_draw
from ..jobs.work.rollouts import ArrayName, Canary, EditRecord, Rollout
from ..jobs.work.units import RolloutRequest


@dataclass(frozen=True, eq=False)
class CapturedRollout:
    """A rollout with its pooled activations.

    Attributes:
        rollout: The texts, their token ids and their address.
        vectors_LD: float32 ``(L, D)`` per (hook point, pooling); all NaN where the rollout has no vector.
        tokens_KTD: float32 ``(K, T, D)`` per (hook point, ``tokens``); empty where none are kept.
        user_span: Token range of the user's last message in the prompt; None where no pooling needs it.
        intervention: Intervention under which the activations were captured; None for none.
    """

    rollout: Rollout
    vectors_LD: dict[ArrayName, npt.NDArray[np.float32]]
    tokens_KTD: dict[ArrayName, npt.NDArray[np.float32]] = field(default_factory=dict)
    user_span: TokenRange | None = None
    intervention: Intervention | None = None

    @property
    def spans(self) -> TokenSpans:
        """Token ranges of the user's message and the response in the conversation."""
        start = len(self.rollout.prompt_token_ids)
        return TokenSpans((start, start + self.rollout.num_content_tokens), self.user_span)


@dataclass(frozen=True, slots=True)
class TokenisedText:
    """An existing conversation as token ids, to be captured without generating.

    Attributes:
        name: Name of the conversation in error messages.
        token_ids: The whole conversation, rendered.
        responses: Spans ``(start, stop)`` of response content, ascending, end exclusive; the prompt of each is
            everything before it, ``[0, start)``. An empty span has no vector in the response poolings.
        user_spans: For each response, the token range of the last user message before it; empty where no pooling needs
            it.
        intervention: Intervention to apply while it is read; None for none.
        draws: For each response, the number of its rollout by which canaries are chosen (``canary_draw``); empty where
            it is not known. A reader may recompute what is chosen while it reads the text.
    """

    name: str
    token_ids: tuple[int, ...]
    responses: tuple[TokenRange, ...]
    user_spans: tuple[TokenRange, ...] = ()
    intervention: Intervention | None = None
    draws: tuple[float, ...] = ()

    @property
    def spans(self) -> tuple[TokenSpans, ...]:
        """Token ranges of each response and of the user's message before it."""
        users = self.user_spans or (None,) * len(self.responses)
        return tuple(TokenSpans(response, user) for response, user in zip(self.responses, users, strict=True))

    @classmethod
    def of(
        cls, rollout: Rollout, user_span: TokenRange | None = None, intervention: Intervention | None = None
    ) -> TokenisedText:
        """Make a text with one response from a rollout.

        Args:
            rollout: The rollout, whose prompt and response become the text.
            user_span: Token range of the user's last message; None where no pooling needs it.
            intervention: Intervention to apply while it is read; None for none.
        """
        start = len(rollout.prompt_token_ids)
        return cls(
            name=str(rollout.address),
            token_ids=(*rollout.prompt_token_ids, *rollout.response_token_ids),
            responses=((start, start + rollout.num_content_tokens),),
            user_spans=() if user_span is None else (user_span,),
            intervention=intervention,
            draws=(canary_draw(rollout.address, rollout.seed),),
        )


@dataclass(frozen=True, eq=False)
class CapturedText:
    """A conversation's pooled activations.

    Attributes:
        vectors_LD: For each response span, float32 ``(L, D)`` per (hook point, pooling); all NaN in the response
            poolings of an empty span.
        tokens_KTD: For each response span, float32 ``(K, T, D)`` per (hook point, ``tokens``); empty where no tokens
            are kept.
        edits: For each response span, what the intervention did to its rollout; None without an intervention. ``()``
            from an engine that applies no interventions.
    """

    vectors_LD: tuple[dict[ArrayName, npt.NDArray[np.float32]], ...]
    tokens_KTD: tuple[dict[ArrayName, npt.NDArray[np.float32]], ...]
    edits: tuple[tuple[EditRecord, ...] | None, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Which model to load and how to run it.

    Attributes:
        directory: Directory with the model's configuration, tokenizer and weights.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads of this process.
        batch_tokens: Tokens, prompts and responses, that one batch may hold; None: as many as the memory of a GPU has
            room for once the model is loaded.
        layers: Captured layers, ascending.
        sampling: How tokens are sampled, and at most how many per response.
        capture: Hook points and poolings to capture.
        token_layers: Those of ``layers`` at which every token is kept.
        chat_template: Text of the chat template to use instead of the model's; None: the model's.
        tensor_parallel: Devices that each layer is divided over; above 1 only with vLLM's engine.
        pipeline_parallel: Groups of such devices that the layers are divided over; above 1 only with vLLM's engine.
        edited_layers: Decoder layers that interventions may edit, each as often as one request edits it. vLLM's engine
            fixes them when it loads the model; empty: none. None: any layer, up to twice, which costs a few operations
            a layer in compiled graphs. The built-in engine edits any layer whatever this says.
        kept_turns: Share of ``batch_tokens`` in which the built-in engine keeps keys and values of conversations from
            one turn to the next; 0: none are kept.
    """

    directory: Path
    dtype: str
    device: str
    threads: int
    batch_tokens: int | None
    layers: tuple[int, ...]
    sampling: SamplingSpec
    capture: CaptureSpec
    token_layers: tuple[int, ...] = ()
    chat_template: str | None = None
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    edited_layers: tuple[int, ...] | None = None
    kept_turns: float = 0.0

    @property
    def batch_size(self) -> int:
        """``batch_tokens``, where it is known."""
        assert self.batch_tokens is not None, "the engine sets it when it has loaded the model"
        return self.batch_tokens

    @property
    def token_positions(self) -> list[int]:
        """The index of each of ``token_layers`` in ``layers``."""
        return [self.layers.index(layer) for layer in self.token_layers]


@dataclass(frozen=True, eq=False, slots=True)
class StreamedRequest:
    """A request of somebody who waits for it: sampled in its own way, and followed token by token.

    Attributes:
        request: The request.
        sampling: How its tokens are sampled, and at most how many.
        on_token: Called in the engine's thread with the id of each content token, as soon as it is sampled. It must
            return at once, and returns whether the response ends with that token: because of its text, or because
            nobody waits for it any more. None: nobody is told.
    """

    request: RolloutRequest
    sampling: SamplingSpec
    on_token: Callable[[int], bool] | None = None


class Reader(Protocol):
    """Captures the activations of existing texts in prefill passes, without generating.

    Attributes:
        layers: The captured layers, 0-based, ascending.
        canary_limit: Largest relative error that its vectors may have against a plain forward pass; it depends on the
            parameter type.
        tokens_per_capture: Tokens that callers should pass in one call. More tokens let more texts share a prefix; but
            everything that a call captures is in memory until it returns, so a reader that keeps every token sets a
            lower number.
        passes: Which texts have a forward pass of their own, and why, in a sentence for people and for the run's
            record; ``""`` where all texts share passes.
    """

    layers: tuple[int, ...]
    canary_limit: float
    tokens_per_capture: int
    passes: str

    def capture(self, texts: Sequence[TokenisedText]) -> list[CapturedText]:
        """Capture the activations of texts.

        Args:
            texts: Any number of texts, of any length up to the model's context.

        Returns:
            The captured activations of each text, in the same order.

        Raises:
            UnitError: As for ``Responder.generate``; the whole call has no result.
            EngineDied: The engine has ended, and answers no further call.
        """
        ...

    def canary(self, captured: CapturedRollout, others: Sequence[CapturedRollout] = ()) -> Canary | None:
        """Recompute a rollout in a plain forward pass of its own, and compare the captured vectors with the result.

        Args:
            captured: A rollout that was captured with this reader's model.
            others: Other rollouts that were captured beside it, with one of which it might have been mixed up.

        Returns:
            The errors by layer; None when the rollout has no value in any array.
        """
        ...

    def close(self) -> None:
        """End the processes of the engine and free what they hold; nothing may be asked of it afterwards.

        May be called again, also on an engine that has ended, and returns when its processes are gone.
        """
        ...


class Responder(Protocol):
    """Turns requests into rollouts with their pooled activations.

    Attributes:
        prefetch: Units to keep queued in the worker while it runs, so that it never waits for the driver. 0 for a
            responder that pulls requests one at a time, as slots of its batch are freed; 1 for one that pulls many at
            once and none until these are done.
    """

    prefetch: int

    @property
    def reader(self) -> Reader:
        """The reader that captures and recomputes canaries; the responder itself where one model does everything."""
        ...

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Answer requests and capture their activations.

        Args:
            next_request: Called whenever there is room for one more rollout; returns None when no request is available
                at the moment. It must be called again after a yield, because a finished rollout may lead to the next
                request of its conversation. Requests of different personas share batches.

        Yields:
            The captured rollout of each request, as soon as it is finished, in any order. Ends when no request is in
            flight and ``next_request`` has returned None.

        Raises:
            UnitError: A value is not finite, a hook did not fire, or a prompt is too long for the model. Requests in
                flight are lost and may be submitted again.
            EngineDied: The engine has ended, and answers no further call.
        """
        ...


class StreamingResponder(Responder, Protocol):
    """A responder whose requests may each be sampled in a way of its own, and be followed while they are answered."""

    def stream(self, next_request: Callable[[], StreamedRequest | None]) -> Iterator[CapturedRollout]:
        """Answer requests as ``generate`` does, and report each token.

        Args:
            next_request: See ``generate``. It may wait for a request while none is in flight.

        Yields:
            The captured rollout of each request. Its ``finish_reason`` is ``length`` where ``on_token`` ended it.

        Raises:
            UnitError: As for ``generate``.
            EngineDied: As for ``generate``.
        """
        ...
