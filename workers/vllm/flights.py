"""Requests in flight: hand token ids to vLLM, step it, and read the slots of those that have finished.

Generation and reading share one vLLM, and one may step it while the other has requests in flight. So a finished request
is put into the box of whoever sent it. Knows nothing of rollouts and poolings.
Axes: L captured layers, K those of which every token is kept, T tokens of one response, D d_model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from ...jobs.errors import UnitError
from ...jobs.interventions import Intervention
from ...jobs.poolings import TokenSpans
from .capture_plan import KEY, SlotSpans, Sum, WorkerPlan
from .edits.plan import EDITS_KEY, RequestEdits
from .edits.rows import EditRows, SettingRows
from .loading import Alive

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SlotCapture:
    """What was captured in one slot.

    Attributes:
        sums: float32 ``(L, D)`` per sum; not divided by anything.
        counts: Number of tokens in each sum.
        id_sums: Sum of their token ids.
        tokens_KTD: Every token of the response, float32 ``(K, T, D)``; it may have more than the response's content.
        token_ids: Their ids; none where ranks differ.
    """

    sums: dict[Sum, Float32]
    counts: dict[Sum, int]
    id_sums: dict[Sum, int]
    tokens_KTD: Float32
    token_ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Landed:
    """A request that has finished.

    Attributes:
        tag: What its sender called it.
        token_ids: The tokens that vLLM sampled.
        slots: What was captured for each of its responses; none where its sender has ended it.
    """

    tag: Any
    token_ids: tuple[int, ...]
    slots: tuple[SlotCapture, ...]


Box = deque[Landed]
"""Where finished requests of one sender are put."""


@dataclass(frozen=True, eq=False)
class _Flight:
    tag: Any
    box: Box
    slots: tuple[int, ...]
    intervention: Intervention | None
    on_tokens: Callable[[Sequence[int]], bool] | None
    token_ids: list[int] = field(default_factory=list)


class Flights:
    """The requests that vLLM is working on.

    Args:
        vllm: vLLM's engine.
        plan: What its workers capture.
        captures: Whether they capture at all.
        d_model: D.
        edit_rows: The rows of its workers' tables of edits.
    """

    def __init__(
        self, vllm: Any, plan: WorkerPlan, d_model: int, edit_rows: EditRows, *, captures: bool = True
    ) -> None:
        self._vllm: Any = vllm
        self._plan = plan
        self._d_model = d_model
        self._captures = captures
        self._edit_rows = edit_rows
        self._alive = Alive()
        self._free = list(range(plan.slots))
        self._flights: dict[str, _Flight] = {}
        self._next_name = 0

    @property
    def num_free_slots(self) -> int:
        """Number of slots that no request has."""
        return len(self._free)

    @property
    def max_conversation(self) -> int:
        """Most tokens of a conversation that vLLM's KV cache has room for, with the one that is sampled after it.

        Raises:
            EngineDied: vLLM has ended.
        """
        self._alive.require()
        return int(self._vllm.model_config.max_model_len) - 1

    def send(
        self,
        token_ids: Sequence[int],
        spans: Sequence[TokenSpans],
        parameters: Mapping[str, Any],
        box: Box,
        tag: Any,
        *,
        is_open: bool,
        intervention: Intervention | None = None,
        on_tokens: Callable[[Sequence[int]], bool] | None = None,
    ) -> bool:
        """Hand a request to vLLM.

        Args:
            token_ids: Its prompt.
            spans: The spans of each of its responses; there must be a free slot for each. Where edits act on responses
                alone, it has one.
            parameters: Its sampling parameters.
            box: Where it is put when it has finished.
            tag: What its sender calls it.
            is_open: Whether its response is being generated, and has not stopped where the span does.
            intervention: Edits under which it runs; None for none.
            on_tokens: Told of its tokens as soon as they are sampled; returns whether it ends with the last of them,
                which then has no captured values: it lands without slots. None: nobody is told.

        Returns:
            Whether vLLM has it. It has not where its edits find no room beside those of the requests in flight.

        Raises:
            UnitError: vLLM refuses it, or its edits cannot be made.
            EngineDied: vLLM has ended.
        """
        sampling_params: Any = import_module("vllm.sampling_params")
        self._alive.require()
        edits: RequestEdits | None = None
        prompt: dict[str, Any] = {"prompt_token_ids": list(token_ids)}
        if intervention is not None and intervention.edits:
            rows = self._rows(intervention)
            if rows is None:
                return False
            edits = rows.of_request(spans[0].response[0])
            if rows.salt is not None:
                prompt["cache_salt"] = rows.salt
        slots = tuple(self._free.pop() for _ in spans)
        asked = [
            SlotSpans.of(slot, self._plan.spans, of_response, is_open=is_open).to_json()
            for slot, of_response in zip(slots, spans, strict=True)
        ]
        name = str(self._next_name)
        self._next_name += 1
        ours = {KEY: asked if self._captures else None, EDITS_KEY: edits and edits.to_json()}
        try:
            sampling = sampling_params.SamplingParams(
                **parameters,
                detokenize=False,
                output_kind=getattr(sampling_params.RequestOutputKind, "FINAL_ONLY" if on_tokens is None else "DELTA"),
                extra_args={key: value for key, value in ours.items() if value is not None} or None,
            )
            self._vllm.add_request(name, prompt, sampling)
        except ValueError as error:
            self._free += slots
            if intervention is not None and edits is not None:
                self._edit_rows.give_back(intervention)
            raise UnitError(f"vLLM refuses a request: {error}", code="vllm_refused") from error
        self._flights[name] = _Flight(tag, box, slots, intervention if edits is not None else None, on_tokens)
        return True

    def _rows(self, intervention: Intervention) -> SettingRows | None:
        """Take the rows of an intervention, and have the workers write what they lack; None where there is no room."""
        taken = self._edit_rows.take(intervention)
        if taken is None:
            return None
        rows, upload = taken
        if upload is not None:
            with self._alive.calling():
                self._vllm.collective_rpc("persona_atlas_write", args=(upload,))
        return rows

    def step(self) -> None:
        """Let vLLM run a forward pass, and put what has finished into its box.

        Raises:
            EngineDied: vLLM has ended.
            UnitError: vLLM gave a request up.
        """
        with self._alive.calling():
            stepped = self._vllm.step()
            outputs = [one for one in stepped if one.finished]
            told = [(one, self._flights[one.request_id]) for one in stepped if one.request_id in self._flights]
            landed = [(one, self._ended(one.request_id)) for one in outputs if one.request_id in self._flights]
            captures = self._take([slot for _, flight in landed for slot in flight.slots])
        self._tell(told)
        gave_up: list[str] = []
        for output, flight in landed:
            completion = output.outputs[0]
            if completion.finish_reason not in ("stop", "length"):
                gave_up.append(str(completion.finish_reason))
                continue
            flight.box.append(
                Landed(
                    flight.tag,
                    tuple(flight.token_ids or completion.token_ids),
                    tuple(captures[slot] for slot in flight.slots),
                )
            )
        if gave_up:
            raise UnitError(f"vLLM gave a request up: {gave_up[0]}.", code="vllm_gave_up")

    def abandon(self, box: Box) -> None:
        """Abort the requests of one sender, and forget those that are in its box.

        Args:
            box: The box of the sender.
        """
        box.clear()
        self._abort([name for name, flight in self._flights.items() if flight.box is box])

    def _tell(self, stepped: Sequence[tuple[Any, _Flight]]) -> None:
        """Tell senders of new tokens, and end the requests that they do not want to go on."""
        for output, flight in stepped:
            if flight.on_tokens is None:
                continue
            new = output.outputs[0].token_ids
            flight.token_ids.extend(new)
            if flight.on_tokens(new) and not output.finished:
                self._abort([output.request_id])
                flight.box.append(Landed(flight.tag, tuple(flight.token_ids), ()))

    def _abort(self, names: Sequence[str]) -> None:
        """Abort requests, and free their slots."""
        if not names:
            return
        slots = [slot for name in names for slot in self._ended(name).slots]
        if self._alive.has_ended:
            return
        with self._alive.calling():
            self._vllm.abort_request(list(names))
            if self._captures:
                self._vllm.collective_rpc("persona_atlas_drop", args=(slots,))
        self._free += slots

    def _ended(self, name: str) -> _Flight:
        """Forget a request, and give back the rows of its intervention."""
        flight = self._flights.pop(name)
        if flight.intervention is not None:
            self._edit_rows.give_back(flight.intervention)
        return flight

    def end(self) -> None:
        """Refuse every further call."""
        self._alive.end()

    def forget_vllm(self) -> None:
        """Let go of vLLM's engine, and with it of the memory that the model takes."""
        self._vllm = None

    def _take(self, slots: list[int]) -> dict[int, SlotCapture]:
        """Read slots of all ranks, and free them."""
        if not slots:
            return {}
        shares: list[Any] = []
        if self._captures:
            shares = [one for one in self._vllm.collective_rpc("persona_atlas_take", args=(slots,)) if one is not None]
        self._free += slots
        merged = {}
        for index, slot in enumerate(slots):
            merged[slot] = self._merged(shares, index)
        return merged

    def _merged(self, shares: Sequence[Mapping[str, Any]], index: int) -> SlotCapture:
        """Put the layers of all ranks together, for one of the slots that were taken."""
        plan = self._plan
        sums: dict[Sum, Float32] = {}
        counts: dict[Sum, int] = {}
        id_sums: dict[Sum, int] = {}
        for key in plan.sums:
            sums[key] = np.full((len(plan.layers), self._d_model), np.nan, dtype=np.float32)
            for share in shares:
                sums[key][[plan.layers.index(layer) for layer in share["layers"]]] = share["values"][key][:, index]
            # All ranks must have seen the same tokens.
            counts[key] = _agreed([share["counts"][key][index] for share in shares])
            id_sums[key] = _agreed([share["id_sums"][key][index] for share in shares])
        kept = [share["tokens"][index] for share in shares if share["token_layers"]]
        length = min((tokens.shape[1] for tokens in kept), default=0)
        ids = {tuple(share["token_ids"][index][:length]) for share in shares if share["token_layers"]}
        tokens_KTD = np.empty((len(plan.token_layers), length, self._d_model), dtype=np.float32)
        for share in shares:
            if share["token_layers"]:
                places = [plan.token_layers.index(layer) for layer in share["token_layers"]]
                tokens_KTD[places] = share["tokens"][index][:, :length]
        return SlotCapture(sums, counts, id_sums, tokens_KTD, ids.pop() if len(ids) == 1 else ())


def _agreed(values: Sequence[int]) -> int:
    """Return the value that all ranks have; -1 where they differ or there is none."""
    return values[0] if values and len(set(values)) == 1 else -1
