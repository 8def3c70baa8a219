"""A reader of texts that loads its model's weights layer by layer, so that they need not fit the memory.

A call's texts are divided into passes as for a model that is held, and the passes into walks of many tokens. Weights
are read once per walk. What is captured is the same as of a model that is held: the passes, the hooks and the
accumulators are. A canary is a plain forward pass of the model, whose layers get their weights as they are called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ....jobs.poolings import pooling_named
from ....jobs.specs.spec_parts import CanarySpec, HookPoint
from ....jobs.work.rollouts import Canary
from ...canary import LIMITS, compare
from ...editing.interventions import Interventions
from ...engine import CapturedRollout, CapturedText, EngineSettings, TokenisedText
from ...mixed_up import others_of
from ...models.hook_points import Tap, find_taps
from ..loaded_model import LoadedModel
from ..passes.capture import Capture
from ..passes.plain_pass import PlainPass
from ..passes.registration import ATTENTION, plain_attention
from ..reading import TextReader
from ..reading_pass import RanPass, ReadingPass
from ..sharing import find_sharing
from .layer_stream import LayerStream
from .pace import held_tokens, measure_walk_tokens, result_bytes
from .plain_texts import PlainTexts
from .recording import not_walked, record
from .skeleton import Skeleton, open_skeleton
from .walking import Walked, Walker

_UNEVEN = 1.25
"""Part of a walk's tokens up to which one walk takes them: a walk of what little is left over would load all weights
for it."""

_EXACT = 0.2
"""Part of the canary's limit within which a walk and a plain pass over the same text must agree."""

_log = logging.getLogger(__name__)

OpenModel = Callable[[EngineSettings], tuple[Skeleton, Any]]


def open_streamed(settings: EngineSettings) -> tuple[Skeleton, Any]:
    """Build a model without the weights of its layers, and load its tokenizer.

    Args:
        settings: Directory, parameter type and device; other settings are ignored.

    Raises:
        InputError: The files are missing or invalid, or the weights cannot be loaded layer by layer.
    """
    from transformers import AutoTokenizer

    skeleton = open_skeleton(settings.directory, settings.dtype, settings.device)
    tokenizer: Any = AutoTokenizer.from_pretrained(settings.directory, trust_remote_code=False)
    return skeleton, tokenizer


class StreamedReader:
    """A reader that holds two decoder layers of its model at a time; see ``Reader``.

    Args:
        settings: What to load and how to run it. ``batch_tokens`` are those of a walk; None: as many as are needed for
            loading to take no time of its own, which is measured.
        open_model: Builds the model without the weights of its layers, and loads its tokenizer.
        rule: Which rollouts are going to be compared; those that it chooses are recomputed while they are read. None:
            each comparison loads all weights.

    Raises:
        InputError: The model cannot be loaded layer by layer, or its layers lack a requested hook point.

    Attributes:
        loaded: The model with its tokenizer, chat template and limits.
        layers: The captured layers, 0-based, ascending.
        canary_limit: Largest relative error of a canary.
        tokens_per_capture: Tokens that one call of ``capture`` should bring: those of a walk, or as many as the main
            memory has room for what is captured of them.
        passes: Which texts have a forward pass of their own, and why.
        stream: Loads the layers.
        weight_bytes: Bytes of weights that are held: what lies outside of the layers, and two layers.
    """

    def __init__(
        self, settings: EngineSettings, open_model: OpenModel = open_streamed, rule: CanarySpec | None = None
    ) -> None:
        torch.set_num_threads(settings.threads)
        self.layers = settings.layers
        self.canary_limit = LIMITS[settings.dtype]
        skeleton, tokenizer = open_model(settings)
        top = max(settings.layers)
        # An edit may be above the captured layers; then more layers are called than in turn, and loaded on demand.
        self.stream = LayerStream(skeleton, settings.device, top + 1)
        with ExitStack() as failing:
            failing.callback(self.stream.close)
            self.weight_bytes = skeleton.resident_bytes + 2 * self.stream.slot_bytes
            loaded = LoadedModel.of(skeleton.model, tokenizer, settings.device, settings.chat_template)
            self._taps = self._find_taps(loaded, settings)
            loaded = self.loaded = replace(loaded, sharing=self._find_sharing(loaded))
            self.passes = loaded.sharing.summary
            capture = Capture(
                self._taps,
                settings.layers,
                loaded.decoder_layers[top],
                settings.token_positions,
                before_edits=settings.capture.before_intervention,
            )
            self._interventions = Interventions(loaded.decoder_layers, loaded.d_model, settings.device)
            self._one_in = rule.one_in if rule is not None and rule.check != "none" else 0
            self._beside = PlainTexts(loaded, self.stream, self._taps, settings, self._interventions)
            self._walker = Walker(loaded, self.stream, capture, self._interventions, self._beside)
            with torch.inference_mode():
                self._require_walkable()
            if loaded.sharing.up_to:
                loaded.model.set_attn_implementation(ATTENTION)
            token_results = result_bytes(settings, loaded.d_model, self._one_in)
            if settings.batch_tokens is None:
                with torch.inference_mode():
                    found = measure_walk_tokens(self._walker, self.stream, loaded, token_results)
                _log.info("%s", found)
                settings = replace(settings, batch_tokens=found.tokens)
            self._settings = settings
            self.tokens_per_capture = min(settings.batch_size, held_tokens(token_results))
            runner = StreamedRunner(self._walker, self._interventions, settings.batch_size)
            self._text_reader = TextReader(loaded, capture, settings, self._interventions, runner)
            self._plain = PlainPass(
                loaded.model,
                self._taps,
                settings.layers,
                settings.token_positions,
                self._interventions,
                loaded.decoder_layers[0],
                before_edits=settings.capture.before_intervention,
            )
            failing.pop_all()

    def capture(self, texts: Sequence[TokenisedText]) -> list[CapturedText]:
        """Capture existing texts; see ``Reader.capture``."""
        if self._one_in:
            self._beside.expect(texts, self._one_in)
        return self._text_reader.read(texts)

    def canary(self, captured: CapturedRollout, others: Sequence[CapturedRollout] = ()) -> Canary | None:
        """Recompute a rollout; see ``Reader.canary``.

        One that the rule chooses was recomputed when it was read; any other loads every captured layer once.
        """
        content = captured.rollout.num_content_tokens
        values = captured.vectors_LD | captured.tokens_KTD
        arrays = {array: value for array, value in values.items() if pooling_named(array[1]).has_value(content)}
        if not arrays:
            return None
        recomputed = self._beside.take(captured, list(arrays))
        if recomputed is not None:
            return compare(arrays, recomputed, self._settings.token_positions, others_of(captured, others))
        used = range(max(self.layers) + 1)
        with plain_attention(self.loaded.model, self.loaded.own_attention), self.stream.only(used):
            plain = self._plain.vectors(captured, list(arrays))
        return compare(arrays, plain, self._settings.token_positions, others_of(captured, others))

    def close(self) -> None:
        """End the threads that load layers, and let go of their weights."""
        self.stream.close()

    def _find_taps(self, loaded: LoadedModel, settings: EngineSettings) -> dict[HookPoint, list[Tap]]:
        def run_probe() -> None:
            # The first layer of each kind shows what those that hand on the stream have to return.
            used = {*range(max(settings.layers) + 1), *self.stream.first_of_kind}
            with torch.inference_mode(), self.stream.only(used):
                loaded.run_alone(range(3, 9))

        return find_taps(loaded.decoder_layers, settings.layers, settings.capture.hook_points, run_probe)

    def _find_sharing(self, loaded: LoadedModel) -> Any:
        """Find out which texts may share a pass from the first layer of each kind; the others hand on the stream."""
        kinds = self.stream.first_of_kind
        places = [
            tap for taps in self._taps.values() for layer, tap in zip(self.layers, taps, strict=True) if layer in kinds
        ]
        with self.stream.only(kinds):
            return find_sharing(loaded, places, self.canary_limit)

    def _require_walkable(self) -> None:
        """Compare a walk with a plain pass over the same text, at the first layer of each kind.

        Raises:
            InputError: They differ: the layers depend on something that a walk leaves out.
        """
        loaded, kinds = self.loaded, self.stream.first_of_kind
        size = int(loaded.model.get_input_embeddings().weight.shape[0])
        run = partial(loaded.run_alone, [(size // 3 + 7 * place) % size for place in range(8)])
        seen: list[torch.Tensor] = []
        handles = [Tap(loaded.decoder_layers[layer], of_input=False).attach(seen.append) for layer in kinds]
        try:
            with self.stream.only(kinds):
                run()
        finally:
            for handle in handles:
                handle.remove()
        # Up to the last layer: what is done between layers is seen without weights.
        walked = Walked(record(loaded, self.stream, run, loaded.num_layers - 1))
        for layer, plain in zip(kinds, seen, strict=True):
            self._walker.through([layer], [walked])
            off, norm = float((walked.recorded.resid - plain).float().norm()), float(plain.float().norm())
            # A model whose numbers are not finite fails where it is captured.
            if off > _EXACT * self.canary_limit * norm:
                raise not_walked(type(loaded.model).__name__, f"computes layer {layer} from more than it is given")


class StreamedRunner:
    """Runs passes in walks of many tokens; see ``PassRunner``.

    Args:
        walker: Walks passes through the model.
        interventions: Applies interventions to the model.
        walk_tokens: Tokens of a walk, roughly.
    """

    def __init__(self, walker: Walker, interventions: Interventions, walk_tokens: int) -> None:
        self._walker = walker
        self._interventions = interventions
        self._walk_tokens = walk_tokens
        self._last: list[int] = []

    def run(self, passes: Iterable[ReadingPass]) -> Iterator[RanPass]:
        """Walk the passes; see ``PassRunner.run``."""
        self._last = []
        walks = list(self._walks(list(passes)))
        for number, together in enumerate(walks):
            self._last = [len(one.token_ids) for one in together if one.token_ids]
            yield from self._walker.walk(together, len(walks) - number)

    def shrink(self) -> bool:
        """Walk half as many tokens at a time as in the last walk from now on; False where that was one pass."""
        if len(self._last) < 2:
            return False
        self._walk_tokens = max(1, min(self._walk_tokens, sum(self._last)) // 2)
        return True

    def _walks(self, passes: Sequence[ReadingPass]) -> Iterator[list[ReadingPass]]:
        """Divide passes into walks of about the same number of tokens."""
        total = sum(len(one.token_ids) for one in passes)
        walks = max(1, -(-total // int(_UNEVEN * self._walk_tokens)))
        held: list[ReadingPass] = []
        taken = ended = 0
        for one in passes:
            # A walk ends with the pass that brings it to its share; so there is never one more than planned.
            taken += len(one.token_ids)
            held.append(one)
            if taken * walks >= total * (ended + 1) and ended + 1 < walks:
                yield held
                ended, held = ended + 1, []
        if held:
            yield held
