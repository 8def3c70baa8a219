"""The edits of one rank: which requests are edited, and which of their tokens a forward pass has.

Knows no arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..edits.plan import EDITS_KEY, NO_EDIT, EditPlan, EditUpload, RequestEdits
from .edited_layers import EditTables, edit_layers
from .runners import prepare_passes, view_of
from .tracking import Piece


class RankEdits:
    """Edits the residual stream of one rank's decoder layers.

    Args:
        worker: The rank's worker, with its model loaded and not run yet.
        plan: Where requests may be edited.

    Raises:
        InputError: The model or the version of vLLM is not one of which it is known how to edit it.
    """

    def __init__(self, worker: Any, plan: EditPlan) -> None:
        config = worker.vllm_config
        view = view_of(worker)
        # A captured graph may run over more tokens than a pass may have.
        most = max(
            config.scheduler_config.max_num_batched_tokens, config.compilation_config.max_cudagraph_capture_size or 0
        )
        self._tables = EditTables(
            plan,
            tokens=most,
            d_model=config.model_config.get_hidden_size(),
            device=worker.device,
            skips=config.model_config.enforce_eager,
        )
        first, stop = config.model_config.get_layers_start_end_indices(config.parallel_config)
        edit_layers(worker.model_runner.get_model(), self._tables, range(first, stop))
        # vLLM takes what its model takes off the memory that it divides; the tables are part of that.
        worker.model_runner.model_memory_usage = (
            getattr(worker.model_runner, "model_memory_usage", 0) + self._tables.num_bytes
        )
        self._requests: dict[str, RequestEdits] = {}
        prepare_passes(worker, view, self._begin, self._prepare)

    @torch.inference_mode()
    def write(self, upload: EditUpload) -> None:
        """Write rows of the tables."""
        self._tables.write(upload)

    def _begin(self, scheduler_output: Any) -> None:
        # In this order: a request may be sent again under the name of one that has ended.
        for name in scheduler_output.finished_req_ids:
            self._requests.pop(name, None)
        for request in scheduler_output.scheduled_new_reqs:
            parameters = getattr(request, "sampling_params", None)
            asked = (getattr(parameters, "extra_args", None) or {}).get(EDITS_KEY)
            if asked is not None:
                self._requests[request.req_id] = RequestEdits.from_json(asked)

    @torch.inference_mode()
    def _prepare(self, pieces: Sequence[Piece]) -> None:
        self._tables.begin_pass(edited_stretches(pieces, self._requests))


def edited_stretches(pieces: Sequence[Piece], requests: Mapping[str, RequestEdits]) -> list[tuple[int, int, int]]:
    """Find the tokens of a forward pass that are edited.

    Args:
        pieces: The requests of the pass, in the order of their tokens in it.
        requests: The edits of requests, by name.

    Returns:
        Row of the table of settings, first token in the pass and end, exclusive.

    Example:
        >>> one = RequestEdits(prompt=0, response=2, response_start=4)
        >>> edited_stretches([Piece("plain", 0, 3), Piece("one", 2, 5)], {"one": one})
        [(2, 5, 8)]
    """
    found: list[tuple[int, int, int]] = []
    begin = 0
    for piece in pieces:
        edits = requests.get(piece.request)
        if edits is not None:
            border = begin + min(max(edits.response_start - piece.position, 0), piece.length)
            for setting, start, stop in [
                (edits.prompt, begin, border),
                (edits.response, border, begin + piece.length),
            ]:
                if setting != NO_EDIT and start < stop:
                    found.append((setting, start, stop))
        begin += piece.length
    return found
