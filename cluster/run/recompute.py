"""Compare rollouts of a finished store, chosen at random, with plain forward passes of the run's model.

Reads the stored values with ``storage/query``, and recomputes them with the canary of the engine from the stored token
ids: no text is generated, rendered or tokenised, except to find the words of the user for poolings over them. Does not
import Ray.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ...jobs.conversation import Conversation, Message
from ...jobs.errors import InputError
from ...jobs.messages import ChatMessage
from ...jobs.model_facts import ModelFacts
from ...jobs.poolings import POOLINGS, TokenRange
from ...jobs.sizing.estimate import BYTES_PER_PARAMETER, HEADROOM, batch_tokens, resolved_dtype
from ...jobs.specs.spec_parts import PlacementSpec
from ...jobs.wording import count_of
from ...jobs.work.addresses import RolloutAddress
from ...jobs.work.canary_rows import MOST_ROUNDING, can_be_compared
from ...jobs.work.rollouts import ArrayName, Rollout
from ...storage.locations.location import Location
from ...storage.query.query import Query
from ...storage.query.run import Run, run_at
from ...storage.run.run_store import read_edits
from ...storage.verification.recomputation import Deviation, Recomputation
from ...storage.verification.verify import Verification, verify_run
from ...workers.canary import LIMITS
from ...workers.chat.spans import ConversationRenderer, load_renderer
from ...workers.engine import CapturedRollout, EngineSettings, Reader
from ...workers.models.model_files import find_model
from ..pool.assemble import load_engine
from ..pool.placement import place
from ..pool.session import local_resources
from ..pool.worker_settings import WorkerSettings
from .prepare import facts_of_run
from .progress import Progress

_OTHERS = 16
"""Rollouts that one is held against, as having been mixed up with."""


def verify_and_recompute(
    location: Location,
    progress: Progress,
    *,
    quick: bool = False,
    count: int = 0,
    seed: int = 0,
    model: str | None = None,
) -> Verification:
    """Verify a run and, if asked, compare some of its rollouts with plain forward passes.

    Args:
        location: The run's store.
        progress: Shows how far it is.
        quick: Whether to check records and object lengths only; recomputed rollouts are read either way.
        count: Number of rollouts to recompute; 0 for none.
        seed: Seed by which they are chosen.
        model: Where the model is now; None: where the run's record says.

    Raises:
        InputError: There is no run; or the model to recompute with is not the run's, or cannot be loaded.
        StoreError: ``run.json`` is damaged, so nothing can be checked.
        TransientError: The store cannot be reached.
    """
    if count < 0 or (count == 0 and model is not None):
        raise InputError(
            f"must be at least 1, but is {count}.",
            code="bad_value",
            field="recompute",
            hint="Give the number of rollouts to recompute.",
        )
    # Before the store is read: it is known in a moment whether the model is the right one.
    recomputer = Recomputer(run_at(location), model, progress) if count else None
    with progress.checking("Checking") as show:
        found = verify_run(location, quick=quick, on_progress=show)
    if recomputer is not None:
        found.recomputation = recomputer.compare(count, seed, skipped_units=found.damaged_units)
    return found


class Recomputer:
    """Recomputes stored rollouts of one run. Making one finds the model and checks that it is the run's.

    Args:
        run: The run, open for reading.
        model: Where the model is now, as in ``model.source``; None: where the run's record says.
        progress: Prints a line before something that takes long.

    Raises:
        InputError: The model cannot be found, or its files are not those that the run was made with.
    """

    def __init__(self, run: Run, model: str | None, progress: Progress) -> None:
        self._run = run
        self._progress = progress
        spec = run.record.spec.model
        self._model = spec if model is None else spec.model_copy(update={"source": model, "revision": None})
        self._directory: Path = find_model(self._model, progress.say)
        self._facts: ModelFacts = facts_of_run(self._directory, run.record)
        # The run has kept the text; the file that the spec names may be gone, or another by now.
        self._chat_template: str | None = run.record.rendering.get("chat_template")
        edits = read_edits(run.location, run.record)
        self._intervention = None if edits is None else edits.intervention
        # Those that were compared last: one may have the vectors of another.
        self._compared: deque[CapturedRollout] = deque(maxlen=_OTHERS)
        if self._facts.fingerprint != run.record.model.fingerprint:
            raise InputError(
                f"the model {self._model.source} is not the one that the run at {run.url} was made with: its files "
                "differ.",
                code="other_model",
                field="--model" if model is not None else "model.source",
                hint=f"The run was made with {spec.source}. Give --model a directory with those files.",
            )

    def compare(self, count: int, seed: int = 0, skipped_units: Collection[str] = ()) -> Recomputation:
        """Load the model and compare rollouts that are chosen at random.

        Args:
            count: Number of rollouts; all if there are fewer.
            seed: Seed of the choice.
            skipped_units: Ids of units that cannot be read, because they are damaged.

        Raises:
            InputError: The model cannot be loaded or does not fit the memory.
            StoreError: A committed value is missing or damaged.
        """
        lines = self._chosen(count, seed, skipped_units)
        tolerance = self._tolerance()
        left_out: Counter[str] = Counter()
        found: list[Deviation] = []
        if lines.num_rows:
            self._progress.say(f"Recomputing {count_of(lines.num_rows, 'rollout')} with {self._model.source}.")
            reader = self._load()
            user_span = self._user_spans()
            with self._progress.checking("Recomputing") as show:
                for number in range(lines.num_rows):
                    line = lines.slice(number, 1)
                    found.append(self._compare(line, reader, user_span, left_out))
                    show(number + 1, lines.num_rows)
        is_warned_of = self._run.record.spec.capture.canary.resolved(self._dtype).action == "warn"
        beyond = [one for one in found if not one.relative_error <= tolerance]
        explained = [
            one for one in beyond if is_warned_of and not one.taken_for and one.relative_error <= MOST_ROUNDING
        ]
        return Recomputation(
            rollouts=len(found),
            tolerance=tolerance,
            worst_relative_error=max((one.relative_error for one in found), default=None),
            deviations=tuple(
                sorted((one for one in beyond if one not in explained), key=lambda one: -one.relative_error)
            ),
            left_out=dict(left_out),
            above=len(explained),
        )

    def _tolerance(self) -> float:
        spec = self._run.record.spec
        # Rounding to m mantissa bits changes a value by at most half a step of the last bit.
        return (spec.capture.canary.tolerance or LIMITS[self._dtype]) + 2.0 ** -(spec.store.mantissa_bits + 1)

    @property
    def _dtype(self) -> str:
        return resolved_dtype(self._model.dtype, self._facts.dtype)

    def _chosen(self, count: int, seed: int, skipped_units: Collection[str]) -> pa.Table:
        """Choose lines of the index, in its order, among those with a stored value."""
        index = self._run.index
        poolings = self._run.record.spec.capture.poolings
        columns = (index[name].to_pylist() for name in ("unit_id", "num_content_tokens", "finish_reason"))
        candidates = [
            place
            for place, (unit_id, tokens, reason) in enumerate(zip(*columns, strict=True))
            if unit_id not in skipped_units and can_be_compared(poolings, tokens, reason)
        ]
        chosen = random.Random(seed).sample(candidates, min(count, len(candidates)))
        return index.take(pa.array(sorted(chosen), pa.int64()))

    def _load(self) -> Reader:
        record = self._run.record
        capture = record.spec.capture
        # This machine need not be of the kind that made the run, so the device is not the recorded one.
        placement = place(PlacementSpec(replicas=1), local_resources())
        engine = EngineSettings(
            directory=self._directory,
            dtype=self._dtype,
            device=placement.device,
            threads=placement.threads,
            batch_tokens=batch_tokens(record.spec.placement),
            layers=record.layers,
            sampling=record.spec.sampling,
            capture=capture,
            token_layers=record.token_layers,
            chat_template=self._chat_template,
        )
        needed_bytes = int(HEADROOM * self._facts.num_parameters * BYTES_PER_PARAMETER[self._dtype])
        settings = WorkerSettings(
            engine, needed_bytes, self._run.url, None, record.rows_per_block, record.spec.store.mantissa_bits
        )
        return load_engine(settings, lambda _: None).reader

    def _compare(
        self, line: pa.Table, reader: Reader, user_span: Callable[[Rollout], TokenRange | None], left_out: Counter[str]
    ) -> Deviation:
        rollout = self._rollout(line)
        span = user_span(rollout)
        captured = CapturedRollout(rollout, {}, {}, span, self._intervention)
        for hook_point, pooling in self._run.record.arrays:
            if not POOLINGS[pooling].has_value(rollout.num_content_tokens):
                continue
            if POOLINGS[pooling].needs_user_span and span is None:
                left_out[pooling] += hook_point == self._run.record.arrays[0][0]
                continue
            self._add_stored(captured, line, (hook_point, pooling))
        canary = reader.canary(captured, list(self._compared))
        self._compared.append(captured)
        # None where nothing but a pooling over the user's words is stored, and their tokens are not known.
        errors = canary.relative_error_L if canary is not None else (0.0,)
        worst = int(np.argmax(errors))
        taken_for = canary.taken_for if canary is not None else ""
        unit_id = line["unit_id"][0].as_py()
        return Deviation(str(rollout.address), unit_id, self._run.layers[worst], errors[worst], taken_for)

    def _add_stored(self, captured: CapturedRollout, line: pa.Table, array: ArrayName) -> None:
        # Not ``Run.query``, which leaves out what is stored of empty responses.
        run = self._run
        stored = Query(run.record, run.index, run.reader(*array), line, "all", run.completeness).read().values
        if POOLINGS[array[1]].keeps_tokens:
            captured.tokens_KTD[array] = stored.transpose(1, 0, 2)
        else:
            captured.vectors_LD[array] = stored[0]

    def _rollout(self, line: pa.Table) -> Rollout:
        where: dict[str, Any] = line.to_pylist()[0]
        table = self._run.rollouts(
            kind=where["kind"],
            persona=where["persona"],
            polarity=where["polarity"],
            prompt=where["prompt_index"],
            question=where["question_index"],
        )
        (text,) = (text for text in table.to_pylist() if text["row"] == where["row"])
        return _as_rollout(text)

    def _user_spans(self) -> Callable[[Rollout], TokenRange | None]:
        """Return a function that locates the user's message of a stored rollout, or returns None."""
        if not self._run.record.spec.capture.needs_user_spans:
            return lambda _rollout: None
        renderer = load_renderer(self._directory, self._chat_template)
        record = self._run.record
        if not record.of_conversations:
            return lambda rollout: _user_span_of_prompt(renderer, rollout)
        return lambda rollout: _user_span_of_turn(renderer, rollout, is_prompt=record.of_prompts)


def _as_rollout(text: Mapping[str, Any]) -> Rollout:
    address = RolloutAddress(
        text["kind"],
        text["persona"],
        text["polarity"],
        text["prompt_index"],
        text["question_index"],
        text["sample_index"],
        text.get("turn_index"),
    )
    return Rollout(
        address=address,
        system_prompt=text["system_prompt"],
        question=text["question"],
        response=text["response"],
        prompt_token_ids=tuple(text["prompt_token_ids"]),
        response_token_ids=tuple(text["response_token_ids"]),
        num_content_tokens=text["num_content_tokens"],
        finish_reason=text["finish_reason"],
        seed=text["seed"],
    )


def _user_span_of_prompt(renderer: ConversationRenderer, rollout: Rollout) -> TokenRange | None:
    """Locate the user's message in a stored prompt; None where the stored texts do not render to its tokens."""
    system = (ChatMessage("system", rollout.system_prompt),) if rollout.system_prompt else ()
    messages = (*system, ChatMessage("user", rollout.question))
    try:
        return renderer.user_spans().of_prompt(messages, rollout.prompt_token_ids)
    except InputError:
        return None


def _user_span_of_turn(renderer: ConversationRenderer, rollout: Rollout, *, is_prompt: bool) -> TokenRange | None:
    """Do the same for a turn of a conversation, or for a prompt without an answer."""
    question, answer = Message("user", rollout.question), Message("assistant", rollout.response)
    address = rollout.address
    given = Conversation(
        address.kind,
        address.persona,
        address.polarity,
        address.prompt_index,
        address.question_index,
        address.sample_index,
        0,
        rollout.system_prompt,
        (question,) if is_prompt else (question, answer),
        "",
        str(address),
        is_prompt=is_prompt,
    )
    try:
        if renderer.render(given).token_ids[: len(rollout.prompt_token_ids)] != rollout.prompt_token_ids:
            return None
        (span,) = renderer.user_spans().of_turns(given, [1])
        return span
    except InputError:
        # An earlier turn of its conversation is part of the prompt, and only its own texts are stored with it.
        return None
