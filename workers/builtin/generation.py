"""Generate with continuous batching: rollouts leave the batch when they end, and others take their slots.

Every pass runs over one packed sequence (the *line*): one token of each running rollout, then the prompts of those that
join. So a joining rollout costs its tokens, not an extra pass. A system prompt that several rollouts share is computed
by the first of them; the others start one pass later, from a copy of its keys and values (``prefixes``). A rollout
that must not share a pass waits until the batch is empty, and others wait until it has ended (``alone``). On a GPU a
pass in which none joins is a recorded step (``decoding``), so there rollouts join in groups.

A token that is sampled in one pass is the input of the next, and only there can its residual stream be observed. So the
last content token is fed to the model even when nothing is sampled after it: the mean over a response then covers all
of its content tokens, as in a single forward pass over the finished conversation.
Axes: L captured layers, B rollouts that sample a token in this pass, V vocabulary, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from ...jobs.errors import UnitError
from ...jobs.poolings import TokenSpans, pooling_named
from ...jobs.specs.spec_parts import HookPoint
from ...jobs.work.units import RolloutRequest
from ..accumulator_set import AccumulatorSet, PassStretches
from ..chat.user_span import UserSpans
from ..editing.edit_totals import EditTotals
from ..editing.edited_pass import EditedPass, EditedStretch, PreparedEdits
from ..editing.interventions import Interventions
from ..engine import CapturedRollout, EngineSettings, StreamedRequest
from ..observation import Observed, Wanted
from ..pooling import Shape
from .alone import AloneGeneration
from .batching.admission import Admission, RunningRollout
from .batching.kept_turns import KeptTurns
from .loaded_model import LoadedModel
from .passes import decoding
from .passes.capture import Capture, require_finite
from .passes.decoding import DecodingSteps
from .passes.kv_cache import KVCache, PrefixKV
from .passes.packed import PackedPass, Segment
from .reading import TextReader
from .sampling.choices import choices_of
from .sampling.sampling import sample_each


class Generation:
    """One stream of rollouts through a model.

    Args:
        loaded: The model.
        capture: Hooks at the captured layers of that model.
        settings: Sampling, batch size, captured layers and poolings.
        interventions: Applies interventions to the model; None: made here.
        user_spans: Locates user messages; None where no pooling needs them.
        kept_turns: What is kept of conversations that go on, in tokens of the batch; None: nothing is kept.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        capture: Capture,
        settings: EngineSettings,
        interventions: Interventions | None = None,
        user_spans: UserSpans | None = None,
        kept_turns: KeptTurns | None = None,
    ) -> None:
        self._loaded = loaded
        self._capture = capture
        self._settings = settings
        self._interventions = interventions or Interventions(loaded.decoder_layers, loaded.d_model, settings.device)
        # Of tokens that are not computed again, a pooling of more than the last would need the sums too.
        needs_sums = any(pooling_named(name).reads_whole_prompt for name in settings.capture.poolings)
        self._kept_turns = None if needs_sums else kept_turns
        kept_tokens = self._kept_turns.budget_tokens if self._kept_turns else 0
        self._cache = KVCache(loaded.num_layers, settings.batch_size - kept_tokens)
        self._steps = (
            DecodingSteps(loaded, capture, len(settings.layers), self._cache, settings.sampling, self._interventions)
            if settings.device in decoding.DEVICES
            else None
        )
        self._admission = Admission(
            loaded,
            self._cache,
            self._interventions,
            user_spans,
            self._kept_turns,
            in_groups=self._steps is not None,
        )
        reader = TextReader(loaded, capture, settings, self._interventions)
        self._alone = AloneGeneration(loaded, self._interventions, reader)
        shape = Shape(len(settings.layers), tuple(settings.token_positions), loaded.d_model, settings.device)
        self._accumulators = AccumulatorSet(settings.capture, shape)
        self._edit_totals = EditTotals(len(loaded.decoder_layers), settings.device)
        self._choices = choices_of(loaded)
        # The rollout in each slot. A slot is an index into this list, and the same in KV cache and accumulators.
        self._slots: list[RunningRollout] = []

    @property
    def tokens_in_use(self) -> int:
        """Tokens that the KV cache has memory for now."""
        return self._cache.num_slots * self._cache.num_positions

    def run(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Generate and capture, sampling as the settings say; see ``Responder.generate``."""

        def next_streamed() -> StreamedRequest | None:
            request = next_request()
            return None if request is None else StreamedRequest(request, self._settings.sampling)

        return self.stream(next_streamed)

    def stream(self, next_request: Callable[[], StreamedRequest | None]) -> Iterator[CapturedRollout]:
        """Generate and capture, each request in its own way; see ``StreamingResponder.stream``."""
        while True:
            # Not around the yield, or the consumer's code would run in inference mode, too.
            with torch.inference_mode():
                joining = self._admission.joining(self._slots, next_request)
                if joining and joining[0].is_alone:
                    finished = [self._alone.answer(joining[0])]
                else:
                    finished = self.next_pass(joining) if self._slots or joining else None
            if finished is None:
                if self._admission.refused is not None:
                    raise self._admission.refused
                return
            yield from finished

    def next_pass(self, joining: Sequence[RunningRollout]) -> list[CapturedRollout]:
        """Run one forward pass, pool what it observed, and sample; return the rollouts that ended."""
        if self._steps is not None and not joining and self._can_sample_from_steps():
            continuing = self._continuing()
            edits = {one.intervention and one.intervention.response for one in self._slots}
            # Recorded is a step in which all rollouts have the same edits, and may sample any token.
            if continuing and len(edits) == 1 and not any(one.request.choices for one in self._slots):
                return self._decode(self._steps, continuing, edits.pop())
        return self._pass(joining)

    def _continuing(self) -> list[int]:
        """Return the slots in which another token is sampled.

        A response that has reached its maximum length ends once its last token is observed; it needs no logits.
        """
        return [slot for slot, rollout in enumerate(self._slots) if len(rollout.token_ids) < rollout.max_new]

    def _decode(
        self, steps: DecodingSteps, continuing: Sequence[int], edits: PreparedEdits | None
    ) -> list[CapturedRollout]:
        """Run a pass in which each slot decodes a token."""
        line = _Line(self._slots, (), self._accumulators)
        # A rollout that has sampled its last token has no further random number, and needs none.
        uniforms = [one.next_random for one in self._slots]
        drawn, observed, edited = steps.run(line.token_ids, line.decoded_positions, uniforms, edits)
        self._accumulators.add_tokens("response", slice(0, len(self._slots)), observed)
        self._edit_totals.add(edited, line.slots)
        with self._naming_layers(observed):
            if self._samples_alike():
                next_ids = drawn.of(continuing)
            else:
                rollouts = [self._slots[slot] for slot in continuing]
                uniform_B = torch.tensor([one.next_random for one in rollouts])
                logits_BV = drawn.weights_AV[list(continuing)]
                next_ids = sample_each(logits_BV, uniform_B, [one.sampling for one in rollouts]).tolist()
        return self._end(continuing, next_ids)

    def _can_sample_from_steps(self) -> bool:
        """Whether the tokens of all rollouts of the batch follow from what recorded steps compute.

        They have sampled as the settings say; where these are greedy, they leave the logits as they are, from which any
        rollout can be sampled.
        """
        return self._settings.sampling.temperature == 0 or self._samples_alike()

    def _samples_alike(self) -> bool:
        """Whether all rollouts of the batch are sampled as the settings say, as those of a job are."""
        ours = self._settings.sampling
        return all(
            one.sampling is ours or (one.sampling.temperature, one.sampling.top_p) == (ours.temperature, ours.top_p)
            for one in self._slots
        )

    def _pass(self, joining: Sequence[RunningRollout]) -> list[CapturedRollout]:
        """Run a pass in which prompts may join."""
        running = len(self._slots)
        self._make_room(joining)
        line = _Line(self._slots, joining, self._accumulators)
        self._slots += joining
        continuing = self._continuing()
        layout = PackedPass(self._settings.device, line.segments, line.decoded_positions, self._cache)
        with self._interventions.applied(line.edits) as edits:
            logits_BV, observed = self._capture.observe(
                lambda: layout.run(self._loaded.model, line.token_ids, [line.ends[slot] for slot in continuing]),
                line.stretches.wanted,
                num_tokens=len(line.token_ids),
                device=self._settings.device,
                stop_at_top=not continuing,
                top=self._interventions.top(edits, max(self._settings.layers)),
            )
        self._pool(running, line, observed, edits)
        next_ids = self._sample(logits_BV, continuing, observed) if continuing else []
        return self._end(continuing, next_ids)

    def _make_room(self, joining: Sequence[RunningRollout]) -> None:
        """Reserve cache slots for the joining rollouts, and copy shared prefixes into those of the followers."""
        running = len(self._slots)
        everyone = [*self._slots, *joining]
        longest = max(rollout.num_positions for rollout in everyone)
        self._cache.reserve(running, len(everyone), longest)
        followers: dict[int, tuple[PrefixKV, list[int]]] = {}
        for slot, rollout in enumerate(joining, start=running):
            prefix = rollout.prefix
            if prefix is not None and prefix.kept is not None and not rollout.leads:
                followers.setdefault(id(prefix), (prefix.kept, []))[1].append(slot)
        for kept, slots in followers.values():
            self._cache.put_prefix(slots, kept)

    def _pool(self, running: int, line: _Line, observed: Mapping[HookPoint, Observed], edits: EditedPass) -> None:
        """Add the observed values of a pass, and what its edits did, to the slots."""
        if running:
            # All decoding slots in one operation: their tokens are the first of the line, and so the first observed.
            self._accumulators.add_tokens("response", slice(0, running), observed)
        joining = self._slots[running:]
        if not joining:
            self._edit_totals.add(edits, line.slots)
            return
        self._accumulators.start(slice(running, len(self._slots)))
        self._edit_totals.start(slice(running, len(self._slots)))
        self._edit_totals.add(edits, line.slots)
        for slot, rollout in enumerate(joining, start=running):
            prefix = rollout.prefix
            if prefix is None:
                continue
            if rollout.leads:
                prefix.parts = line.prefix_parts(slot, observed)
                prefix.kept = self._cache.copy_prefix(slot, prefix.length)
                begin = line.slots.index(slot)
                prefix.edited = self._edit_totals.of_range(edits, len(line.slots), (begin, begin + prefix.length))
            else:
                self._edit_totals.add_prefix(slot, prefix.edited)
            for _, array, accumulator in self._accumulators.arrays("prompt"):
                # A turn that was kept has none, and poolings that would need them are not captured with such turns.
                if array in prefix.parts:
                    accumulator.add([slot], prefix.parts[array])
            # Its keys and values are in the slot now; those of a turn are of no use to others.
            rollout.prefix = None
        # After the prefixes, because the contributions to a slot must be added in the order of its tokens.
        line.stretches.add(observed)

    def _sample(
        self, logits_BV: torch.Tensor | None, continuing: Sequence[int], observed: Mapping[HookPoint, Observed]
    ) -> list[int]:
        assert logits_BV is not None
        rollouts = [self._slots[slot] for slot in continuing]
        logits_BV = self._choices.restrict(logits_BV, [(one.request.choices, one.token_ids) for one in rollouts])
        uniform_B = torch.tensor([one.random[len(one.token_ids)] for one in rollouts])
        with self._naming_layers(observed):
            return sample_each(logits_BV, uniform_B, [one.sampling for one in rollouts]).tolist()

    @contextmanager
    def _naming_layers(self, observed: Mapping[HookPoint, Observed]) -> Iterator[None]:
        """Where logits are not finite, name the first captured layer that is not: it is closer to the cause."""
        try:
            yield
        except UnitError:
            for point, shown in observed.items():
                require_finite(shown.tokens_LED, self._settings.layers, f"{point} of a token")
            raise

    def _end(self, continuing: Sequence[int], next_ids: Sequence[int]) -> list[CapturedRollout]:
        """Append the sampled tokens, and remove the rollouts that have ended from the batch."""
        ended = set(range(len(self._slots))) - set(continuing)
        for slot, token in zip(continuing, next_ids, strict=True):
            if self._slots[slot].append(token, self._loaded.stop_ids):
                ended.add(slot)
        finished: list[CapturedRollout] = []
        # From the highest slot down: the last slot is moved into the freed one, and must hold a rollout that stays.
        for slot in sorted(ended, reverse=True):
            finished.append(self._finish(slot))
            last = len(self._slots) - 1
            if slot != last:
                moved = self._slots[slot] = self._slots[last]
                self._cache.move(last, slot, len(moved.prompt_ids) + len(moved.token_ids))
                self._accumulators.move(last, slot)
                self._edit_totals.move(last, slot)
            self._slots.pop()
        return finished

    def _finish(self, slot: int) -> CapturedRollout:
        running = self._slots[slot]
        rollout = running.finished(self._loaded.tokenizer)
        start = len(running.prompt_ids)
        spans = TokenSpans((start, start + running.num_content), running.user_span)
        vectors, tokens = self._accumulators.finish(slot, spans)
        for pooling in self._accumulators.poolings:
            if not pooling.has_value(running.num_content):
                continue
            for point in self._accumulators.hook_points:
                value = (tokens if pooling.keeps_tokens else vectors)[point, pooling.name]
                layers = self._settings.token_layers if pooling.keeps_tokens else self._settings.layers
                require_finite(torch.from_numpy(value), layers, f"{point}/{pooling.name} of {rollout.address}")
        self._keep(slot, running)
        intervention = running.request.intervention
        edits = self._edit_totals.finish(slot, intervention, start, running.num_content)
        return CapturedRollout(replace(rollout, edits=edits), vectors, tokens, running.user_span, intervention)

    def _keep(self, slot: int, ended: RunningRollout) -> None:
        """Keep the keys and values of a conversation that goes on."""
        # The token that was sampled last has none: it was not fed, or in a pass that may have ended at the top layer.
        token_ids = [*ended.prompt_ids, *ended.token_ids[:-1]]
        if self._kept_turns is not None and self._kept_turns.has_room(ended.request, len(token_ids)):
            self._kept_turns.keep(ended.request, token_ids, self._cache.copy_prefix(slot, len(token_ids)))


class _Line:
    """The packed sequence of one pass: a token of each running rollout, then the prompt tokens of those that join.

    Args:
        running: Rollouts in slots 0, 1, ...
        joining: Rollouts in the slots after them.
        accumulators: Accumulators of the batch.

    Attributes:
        token_ids: Token ids of the whole sequence.
        decoded_positions: Position of each running rollout's token in its conversation.
        segments: The prompts of the joining rollouts, without prefixes that are copied.
        ends: For each slot the index of its last token, whose logits its next token is sampled from.
        slots: The slot of each token of the sequence.
        edits: Ranges of the sequence that are edited, with their edits.
        stretches: Ranges of the prompts that are pooled.
    """

    def __init__(
        self, running: Sequence[RunningRollout], joining: Sequence[RunningRollout], accumulators: AccumulatorSet
    ) -> None:
        self.token_ids = [rollout.token_ids[-1] for rollout in running]
        # The token that was sampled last is fed now, so it has the last position of its conversation.
        self.decoded_positions = [len(rollout.prompt_ids) + len(rollout.token_ids) - 1 for rollout in running]
        self.segments: list[Segment] = []
        self.ends = list(range(len(running)))
        self.slots = list(range(len(running)))
        self.edits: list[EditedStretch] = []
        for place, rollout in enumerate(running):
            if rollout.intervention is not None:
                position = self.decoded_positions[place]
                self.edits += rollout.intervention.stretches(place, position, position + 1, len(rollout.prompt_ids))
        self.stretches = PassStretches(accumulators, Wanted.first_tokens(len(running)))
        self._accumulators = accumulators
        self._prefix_entries: dict[int, list[object]] = {}
        for slot, rollout in enumerate(joining, start=len(running)):
            self._join(slot, rollout)

    def prefix_parts(self, slot: int, observed: Mapping[HookPoint, Observed]) -> dict[tuple[str, str], torch.Tensor]:
        """Return what a leader's prefix contributes to the prompt poolings."""
        return {
            array: accumulator.parts(observed[point], [entry])
            for (point, array, accumulator), entry in zip(
                self._accumulators.arrays("prompt"), self._prefix_entries[slot], strict=True
            )
        }

    def _join(self, slot: int, rollout: RunningRollout) -> None:
        begin = len(self.token_ids)
        self.token_ids += rollout.prompt_ids[rollout.start :]
        end = len(self.token_ids)
        self.segments.append(Segment(rollout.start, end - begin, slot))
        self.ends.append(end - 1)
        self.slots += [slot] * (end - begin)
        if rollout.intervention is not None:
            prompt = len(rollout.prompt_ids)
            self.edits += rollout.intervention.stretches(begin, rollout.start, prompt, prompt)
        wanted = self.stretches.wanted
        # Observed whatever is pooled: if the logits are not finite, it shows the first layer that is not.
        wanted.token(end - 1)
        own = begin
        if rollout.prefix is not None and rollout.leads:
            # A leader's prefix is summed separately, so that its sum can be added to the followers, too.
            own = begin + rollout.prefix.length
            self._prefix_entries[slot] = [
                accumulator.want(wanted, begin, own) for _, _, accumulator in self._accumulators.arrays("prompt")
            ]
        self.stretches.claim(slot, "prompt", own, end)
        if rollout.user_span is not None:
            start, stop = rollout.user_span
            self.stretches.claim(slot, "user", begin + start - rollout.start, begin + stop - rollout.start)
