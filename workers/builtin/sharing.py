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
from ..models.hook_points import Tap
from .kv_cache import KVCache
from .loaded_model import LoadedModel, Sharing
from .packed import ATTENTION, PackedPass, Segment, plain_attention

_PROMPT, _DECODED = 6, 2
"""Tokens of each text: of its prompt, and those that are decoded after it."""

_ROUNDING = 3
"""Factor of the canary's limit within which passes of different shapes must agree. The canary compares means over many
tokens; here single tokens are compared, which rounding changes more."""

_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}

_FIXED_ROPES = {"default", "linear", "yarn", "llama3", "proportional"}
"""Types of rotary embeddings whose frequencies are the same in every pass."""

_States = list[torch.Tensor]
"""Of one text, float32 ``(T, D)``: at each place that is observed, and then the logits of the decoded tokens."""


def find_sharing(loaded: LoadedModel, taps: Sequence[Tap], limit: float) -> Sharing:
    """Find out which texts may share a pass.

    Args:
        loaded: The model, in its own attention; it is left in it.
        taps: Places to compare besides the outputs of all decoder layers.
        limit: Relative error that a canary may have.

    Raises:
        InputError: Not even a text alone can be captured: the model cannot be run, or a token's state depends on tokens
            after it.
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
    """Two short texts, run alone and together; a third takes the place of the first."""

    def __init__(self, loaded: LoadedModel, taps: Sequence[Tap], limit: float) -> None:
        self._loaded = loaded
        self._limit = limit
        self._places = [*(Tap(layer, of_input=False) for layer in loaded.decoder_layers), *taps]
        # From the middle of the vocabulary: at its ends are tokens that are not used or have a special meaning.
        size = int(loaded.model.get_input_embeddings().weight.shape[0])
        length = _PROMPT + _DECODED
        ids = [(size // 4 + place * max(1, size // (6 * length))) % size for place in range(3 * length)]
        self._texts = [ids[:length], ids[length : 2 * length]]
        self._other = ids[2 * length :]
        self._alone: list[_States] = []

    def run_alone(self) -> None:
        """Run each text alone.

        Raises:
            InputError: That is impossible, or a token's state depends on tokens after it.
        """
        try:
            self._alone = [self._states(text) for text in self._texts]
            longer = self._states([*self._texts[0], *self._other])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise self._refusal(f"cannot be run here ({_first_line(error)})") from error
        seen_TD = [states_TD[: len(self._texts[0])] for states_TD in longer[:-1]]
        if _difference(seen_TD, self._alone[0][:-1]) > _ROUNDING * self._limit:
            raise self._refusal("is not causal: a token's state depends on the tokens after it")

    def why_not_together(self) -> str:
        """Return why the model's texts must not share passes; ``""`` if they may."""
        model: Any = self._loaded.model
        other_layers = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - _ATTENTION_LAYERS
        if other_layers:
            return f"it has layers of type {', '.join(sorted(other_layers))}"
        if not model._can_set_attn_implementation():
            return "its attention is not transformers' attention interface"
        try:
            with plain_attention(model, ATTENTION):
                together = self._together(self._texts)
                beside_other = self._together([self._other, self._texts[1]], num_decoded=0)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the error, this model cannot be run in packed passes
            return f"two texts cannot be run in one pass ({_first_line(error)})"
        apart = max(_difference(got, alone) for got, alone in zip(together, self._alone, strict=True))
        # These two passes have the same shape, so nothing is rounded differently: what differs is of the other text.
        mixed = _difference([states_TD[:_PROMPT] for states_TD in together[1][:-1]], beside_other[1][:-1])
        if mixed > self._limit or apart > _ROUNDING * self._limit:
            return (
                f"the states of two texts in one pass differ from each alone by {max(mixed, apart):.0%} of their norm"
            )
        return ""

    def continues_from_its_cache(self) -> bool:
        """Return whether a token after a prompt in transformers' cache has the logits of a pass over the whole text."""
        text = self._texts[0]
        try:
            output = self._loaded.run_alone(text[:_PROMPT], use_cache=True)
            logits_1V: list[torch.Tensor] = []
            for token in text[_PROMPT:]:
                output = self._loaded.run_alone([token], use_cache=True, past=output["past_key_values"])
                logits_1V.append(output.logits[0].float().cpu())
        except torch.OutOfMemoryError:
            raise
        except Exception:  # noqa: BLE001 - then every token is sampled from a pass over the whole text, which has run
            return False
        return _difference([torch.cat(logits_1V)], self._alone[0][-1:]) <= _ROUNDING * self._limit

    def _states(self, token_ids: Sequence[int]) -> _States:
        states, logits_TV = self._observed(
            lambda: self._loaded.run_alone(token_ids, num_logits=_DECODED).logits[0], len(token_ids)
        )
        return [*states, logits_TV]

    def _together(self, texts: Sequence[Sequence[int]], num_decoded: int = _DECODED) -> list[_States]:
        """Run the prompts of two texts in one pass, then the tokens after them, both in one pass each."""
        device = self._loaded.device
        cache = KVCache(self._loaded.num_layers, len(texts) * (_PROMPT + _DECODED))
        cache.reserve(0, len(texts), _PROMPT + _DECODED)
        segments = [Segment(0, _PROMPT, slot) for slot in range(len(texts))]
        layouts = [PackedPass(device, segments, cache=cache)]
        layouts += [PackedPass(device, [], [_PROMPT + n] * len(texts), cache) for n in range(num_decoded)]
        parts: list[list[_States]] = [[] for _ in texts]
        for number, layout in enumerate(layouts):
            # The prompts, then one token of each text.
            start, stop = (0, _PROMPT) if number == 0 else (_PROMPT + number - 1, _PROMPT + number)
            line = [token for text in texts for token in text[start:stop]]
            wanted = [(index + 1) * (stop - start) - 1 for index in range(len(texts))]
            run = partial(layout.run, self._loaded.model, line, wanted)
            states, logits_TV = self._observed(run, len(line))
            for index, part in enumerate(parts):
                own = slice(index * (stop - start), (index + 1) * (stop - start))
                part.append([*(states_ND[own] for states_ND in states), logits_TV[index : index + 1]])
        return [_joined(part) for part in parts]

    def _observed(self, run: Callable[[], torch.Tensor], num_tokens: int) -> tuple[_States, torch.Tensor]:
        """Return the states at all places in a pass over N tokens, ``(N, D)`` each, and the logits."""
        seen: list[list[torch.Tensor]] = [[] for _ in self._places]
        handles = [tap.attach(kept.append) for tap, kept in zip(self._places, seen, strict=True)]
        try:
            logits_TV = run()
        finally:
            for handle in handles:
                handle.remove()
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


def _joined(parts: Sequence[_States]) -> _States:
    """Join the states of consecutive tokens; the logits are those of the tokens after the first part."""
    states = [torch.cat(list(place)) for place in zip(*(part[:-1] for part in parts), strict=True)]
    return [*states, torch.cat([part[-1] for part in parts[1:] or parts])]


def _difference(got: _States, expected: _States) -> float:
    """Return the largest relative error over all places, of the tokens at each the lower median.

    Not the mean: in a mixture of experts, rounding may send a single token to another expert.
    """
    worst = 0.0
    for got_TD, expected_TD in zip(got, expected, strict=True):
        off_T, norms_T = (got_TD - expected_TD).norm(dim=-1), expected_TD.norm(dim=-1)
        errors_T = torch.where(off_T == 0, 0.0, off_T / norms_T).nan_to_num(nan=torch.inf)
        worst = max(worst, float(errors_T.median()))
    return worst


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
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
