"""Find out which texts of a model may share a pass, by trying it when the model is loaded.

A packed pass keeps its conversations apart only if the model asks transformers for its attention and its mask, and
computes everything else token by token. A family that does not may run without an error and give other numbers. So two
short texts are run alone in the model's own attention, and then together in the passes that generation and reading use.
Their states after every decoder layer, at every hook point and in the logits must be the same. Where they are not, each
text of the model has a pass of its own (``alone``).

Rotary embeddings whose frequencies depend on the longest text of a pass do not differ in short texts. They are known by
their type. Axes: T tokens of a text, D d_model or vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ...jobs.errors import InputError, UnitError
from ...jobs.machine_faults import refuse_machine_fault
from ..models.checkpoints.architecture import other_layer_kinds
from ..models.hook_points import Tap
from .loaded_model import LoadedModel, Sharing
from .passes.kv_cache import KVCache
from .passes.packed import PackedPass, Segment
from .passes.registration import ATTENTION, plain_attention

_PROMPT, _DECODED = 6, 2
"""Tokens of each text: of its prompt, and those that are decoded after it."""

_LENGTH = _PROMPT + _DECODED

_ROUNDING = 3
"""Factor within which passes of different shapes must agree: of the canary's limit, or of the difference that shapes
make to the model's own pass, whichever is larger. The canary compares means over many tokens; rounding changes the
single tokens that are compared here by more."""

_EXACT = 0.2
"""Part of the canary's limit within which passes of one shape must agree, or within the same difference if that is
larger."""

_FIXED_ROPES = {"default", "linear", "yarn", "llama3", "proportional"}
"""Types of rotary embeddings whose frequencies are the same in every pass."""

_States = list[torch.Tensor]
"""Of one text, float32 ``(T, D)``: of its prompt at each place that is observed, of the decoded tokens at each place,
and the logits of these."""


def find_sharing(loaded: LoadedModel, taps: Sequence[Tap], limit: float) -> Sharing:
    """Find out which texts may share a pass.

    Args:
        loaded: The model, in its own attention; it is left in it.
        taps: Places to compare besides the outputs of all decoder layers.
        limit: Relative error that a canary may have.

    Raises:
        InputError: Not even a text alone can be captured: the model cannot be run, or a token's state depends on tokens
            after it.
        TransientError: The memory of this machine is exhausted.
    """
    probe = _Probe(loaded, taps, limit)
    with torch.inference_mode():
        probe.run_alone()
        reason = probe.why_not_together()
        if reason:
            return Sharing(0, reason, probe.continues_from_its_cache())
        border = _rope_border(loaded.model.config.get_text_config())
        if border is None or border >= loaded.max_context:
            return Sharing()
        reason = "its rotary embeddings depend on the length of the longest text in a pass"
        return Sharing(border, reason, probe.continues_from_its_cache())


class _Probe:
    """Two short texts, run alone and together; a third takes the place of one of them."""

    def __init__(self, loaded: LoadedModel, taps: Sequence[Tap], limit: float) -> None:
        self._loaded = loaded
        self._limit = limit
        self._places = [*(Tap(layer, of_input=False) for layer in loaded.decoder_layers), *taps]
        # From the middle of the vocabulary: at its ends are tokens that are not used or have a special meaning.
        size = int(loaded.model.get_input_embeddings().weight.shape[0])
        ids = [(size // 4 + place * max(1, size // (6 * _LENGTH))) % size for place in range(3 * _LENGTH)]
        self._first, self._second, self._third = (ids[n * _LENGTH : (n + 1) * _LENGTH] for n in range(3))
        self._alone: list[_States] = []
        self._rounding: list[float] = []

    def run_alone(self) -> None:
        """Run the two texts alone.

        Raises:
            InputError: That is impossible, or a token's state depends on tokens after it.
        """
        try:
            self._alone = [self._states(self._first), self._states(self._second)]
            before_second = self._states([*self._first, *self._second])
            before_third = self._states([*self._first, *self._third])
        except Exception as error:
            refuse_machine_fault(error)
            raise self._refusal(f"cannot be run here ({_first_line(error)})") from error
        # The same tokens in passes of two shapes: how much this model's states change by rounding alone.
        self._rounding = [*_differences(self._alone[0][:-1], before_second[:-1]), 0.0]
        if self._mixed(before_second[:-1], before_third[:-1]):
            raise self._refusal("is not causal: a token's state depends on the tokens after it")

    def why_not_together(self) -> str:
        """Return why the model's texts must not share passes; ``""`` if they may."""
        model: Any = self._loaded.model
        other_layers = other_layer_kinds(model.config)
        if other_layers:
            return f"it has layers of type {', '.join(other_layers)}"
        if not getattr(model, "_can_set_attn_implementation", lambda: True)():
            return "its attention is not transformers' attention interface"
        try:
            with plain_attention(model, ATTENTION):
                together = self._together(self._first, self._second)
                beside_third = self._together(self._third, self._second)
        except Exception as error:  # noqa: BLE001 - whatever the error, this model cannot be run in packed passes
            refuse_machine_fault(error)
            return f"two texts cannot be run in one pass ({_first_line(error)})"
        mixed = self._mixed(together[1], beside_third[1])
        if mixed:
            return f"a text changes the states of another in the same pass, by {mixed:.0%} of their norm"
        for got, alone in zip(together, self._alone, strict=True):
            for off, rounding in zip(_differences(got, alone), self._rounding, strict=True):
                if off > _ROUNDING * max(self._limit, rounding):
                    return f"the states of texts in one pass differ from those of each alone by {off:.0%} of their norm"
        return ""

    def continues_from_its_cache(self) -> bool:
        """Return whether a token after a prompt in transformers' cache has the logits of a pass over the whole text."""
        try:
            output = self._loaded.run_alone(self._first[:_PROMPT], use_cache=True)
            logits_1V: list[torch.Tensor] = []
            for token in self._first[_PROMPT:]:
                output = self._loaded.run_alone([token], use_cache=True, past=output["past_key_values"])
                logits_1V.append(output.logits[0].float().cpu())
        except Exception as error:  # noqa: BLE001 - every token is sampled from a pass over the whole text, which has run
            refuse_machine_fault(error)
            return False
        return max(_differences([torch.cat(logits_1V)], self._alone[0][-1:])) <= self._limit

    def _mixed(self, beside_one: _States, beside_other: _States) -> float:
        """Return by how much a text's states depend on what stands beside it in passes of the same shape; 0: not.

        Such passes are rounded alike, except in a mixture of experts, whose matrix products have a row for each token
        that the router sends there.
        """
        differences = zip(_differences(beside_one, beside_other), self._rounding, strict=False)
        return max((off for off, rounding in differences if off > max(_EXACT * self._limit, rounding)), default=0.0)

    def _states(self, token_ids: Sequence[int]) -> _States:
        """Run tokens alone, and return the states of the first text in it."""
        run = partial(self._loaded.run_alone, token_ids, num_logits=_DECODED)
        states, logits_TV = self._observed(lambda: run().logits[0], len(token_ids))
        parts = (slice(0, _PROMPT), slice(_PROMPT, _LENGTH))
        return [*(states_ND[part] for part in parts for states_ND in states), logits_TV]

    def _together(self, *texts: Sequence[int]) -> list[_States]:
        """Run the prompts of texts in one pass, then the tokens after them, one of each text in a pass."""
        device = self._loaded.device
        cache = KVCache(self._loaded.num_layers, len(texts) * _LENGTH)
        cache.reserve(0, len(texts), _LENGTH)
        layouts = [PackedPass(device, [Segment(0, _PROMPT, slot) for slot in range(len(texts))], cache=cache)]
        layouts += [PackedPass(device, [], [at] * len(texts), cache) for at in range(_PROMPT, _LENGTH)]
        stretches = [(0, _PROMPT), *((at, at + 1) for at in range(_PROMPT, _LENGTH))]
        parts: list[list[_States]] = [[] for _ in texts]
        for layout, (start, stop) in zip(layouts, stretches, strict=True):
            line = [token for text in texts for token in text[start:stop]]
            ends = [(index + 1) * (stop - start) - 1 for index in range(len(texts))]
            states, logits_TV = self._observed(partial(layout.run, self._loaded.model, line, ends), len(line))
            for index, part in enumerate(parts):
                own = slice(index * (stop - start), ends[index] + 1)
                part.append([*(states_ND[own] for states_ND in states), logits_TV[index : index + 1]])
        decoded = [[torch.cat(place) for place in zip(*part[1:], strict=True)] for part in parts]
        return [[*part[0][:-1], *after] for part, after in zip(parts, decoded, strict=True)]

    def _observed(self, run: Callable[[], torch.Tensor], num_tokens: int) -> tuple[_States, torch.Tensor]:
        """Return the states at all places in a pass over N tokens, ``(N, D)`` each, and the logits."""
        seen: list[list[torch.Tensor]] = [[] for _ in self._places]
        handles = [tap.attach(kept.append) for tap, kept in zip(self._places, seen, strict=True)]
        try:
            logits_TV = run()
        finally:
            for handle in handles:
                handle.remove()
        if any(kept and kept[0].numel() != num_tokens * kept[0].shape[-1] for kept in seen):
            raise UnitError("a decoder layer's output is not one vector per token", code="hook_not_fired")
        if any(len(kept) != 1 for kept in seen):
            times = sorted({len(kept) for kept in seen} - {1})
            raise UnitError(f"a decoder layer runs {times[0]} times in one forward pass", code="hook_not_fired")
        return [kept[0].reshape(num_tokens, -1).float().cpu() for kept in seen], logits_TV.float().cpu()

    def _refusal(self, what: str) -> InputError:
        return InputError(
            f"a {type(self._loaded.model).__name__} {what}.",
            code="unknown_model",
            field="model.source",
            hint="Choose a causal language model of another family.",
        )


def _differences(got: _States, expected: _States) -> list[float]:
    """Return the relative error at each place, of its tokens the lower median.

    Not the mean: in a mixture of experts, rounding may send a single token to another expert.
    """
    differences: list[float] = []
    for got_TD, expected_TD in zip(got, expected, strict=True):
        off_T, norms_T = (got_TD - expected_TD).norm(dim=-1), expected_TD.norm(dim=-1)
        # A model that gives no finite number in either pass is not judged here: it fails where it is captured.
        is_same_T = (off_T == 0) | ~(norms_T.isfinite() | got_TD.norm(dim=-1).isfinite())
        errors_T = torch.where(is_same_T, 0.0, off_T / norms_T).nan_to_num(nan=torch.inf)
        differences.append(float(errors_T.median()))
    return differences


def _rope_border(config: Any) -> int | None:
    """Return the length beyond which rotary embeddings depend on the longest text of a pass; None if they never do.

    transformers takes one length for a pass, that of its longest text: ``longrope`` has other factors beyond a border,
    ``dynamic`` a base that grows with the length.
    """
    borders: list[int] = []
    for rope in _ropes(getattr(config, "rope_parameters", None)):
        kind = rope["rope_type"]
        if kind in _FIXED_ROPES:
            continue
        known = {
            "longrope": rope.get("original_max_position_embeddings"),
            "dynamic": getattr(config, "max_position_embeddings", None),
        }
        borders.append(int(known.get(kind) or 0))
    return min(borders, default=None)


def _ropes(parameters: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every set of rope parameters: a model has one, or one for each type of layer."""
    if not isinstance(parameters, Mapping):
        return
    if isinstance(parameters.get("rope_type"), str):
        yield parameters
    for value in parameters.values():
        yield from _ropes(value)


def _first_line(error: Exception) -> str:
    if isinstance(error, UnitError):
        return error.message.removesuffix(".")
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
