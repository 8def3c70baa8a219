"""Whether a checkpoint's configuration is that of a model that this engine can prompt and capture.

That is a decoder that predicts the next token: transformers has its architecture, and its head is a language model's.
Of a model that also takes images or sound, the language model is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....jobs.machine_faults import refuse_machine_fault
from ...own_code import refuse_own_code
from .problems import Problem

_GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "CausalLM", "ForImageTextToText")
_SIZES = ("num_hidden_layers", "hidden_size")
_OPTIONAL_SIZES = ("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "vocab_size")

_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}

_CODE = "unknown_model"
_CHOOSE = "Choose a decoder model that generates text, such as an instruction-tuned Llama, Qwen, Gemma or Mistral."
_FIX_CONFIG = "Restore config.json from the model's source."


def read_auto_config(directory: Path) -> Any:
    """Read a checkpoint's configuration with transformers.

    Args:
        directory: Directory with ``config.json``.

    Raises:
        ValueError: transformers does not know the model, or cannot read its configuration.
        InputError: The checkpoint needs code of its own.
        TransientError: This machine failed.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False)
    # What a configuration's own class raises on strange values is of many types.
    except Exception as error:
        refuse_machine_fault(error)
        refuse_own_code(directory, error)
        raise ValueError((str(error).strip() or repr(error)).splitlines()[0].rstrip(".")) from error


def unreadable(raw: Mapping[str, Any], error: ValueError) -> Problem:
    """Make the problem of a configuration that transformers cannot read.

    Args:
        raw: The content of ``config.json``.
        error: What ``read_auto_config`` raised.
    """
    from transformers import __version__

    wrote = str(raw.get("transformers_version") or "")
    newer = f"It was saved by transformers {wrote}; " if _release(wrote) > _release(__version__) else ""
    return Problem(
        f"config.json: transformers {__version__} has no such model, or cannot read its configuration: {error}",
        f"{newer}upgrade transformers." if newer else "Check the file, or upgrade transformers.",
        _CODE,
    )


def architecture_problems(raw: Mapping[str, Any], config: Any) -> list[Problem]:
    """Find what makes a model one that cannot be run here.

    Args:
        raw: The content of ``config.json``.
        config: The same, as ``read_auto_config`` returns it.
    """
    wrong = _wrong_kind(raw, config)
    if wrong:
        return [Problem(f"config.json: {wrong}", _CHOOSE, _CODE)]
    return [Problem(f"config.json: {what}", _FIX_CONFIG, _CODE) for what in _bad_sizes(text_config(config))]


def text_config(config: Any) -> Any:
    """Return the configuration of a model's language model, which is the model's own if it takes text only.

    Args:
        config: The configuration, as ``read_auto_config`` returns it.
    """
    return config.get_text_config(decoder=True)


def other_layer_kinds(config: Any) -> tuple[str, ...]:
    """Return the kinds of a model's decoder layers that are not attention, such as linear attention or a state space.

    Such layers carry a state from token to token, so a pass over several texts would mix them.

    Args:
        config: The configuration, as ``read_auto_config`` returns it.
    """
    kinds = getattr(text_config(config), "layer_types", None) or ()
    return tuple(sorted({str(kind) for kind in kinds} - _ATTENTION_LAYERS))


def auto_model_class(config: Any) -> Any:
    """Return the class of transformers that loads a model with its head: of text, or of images and text.

    Args:
        config: The configuration, as ``read_auto_config`` returns it.
    """
    import transformers
    from transformers.models.auto import modeling_auto as auto

    plain = str(config.model_type) in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return transformers.AutoModelForCausalLM if plain else transformers.AutoModelForImageTextToText


def declared_dtype(config: Any) -> str:
    """Return the type of parameters that a configuration declares, its language model's first; empty if none.

    Args:
        config: The configuration, as ``read_auto_config`` returns it.
    """
    for holder in (text_config(config), config):
        dtype: Any = getattr(holder, "dtype", None)
        if dtype is not None:
            return str(dtype).removeprefix("torch.")
    return ""


def _wrong_kind(raw: Mapping[str, Any], config: Any) -> str:
    """Say why a model is none that generates text token by token; empty if it is one."""
    from transformers.models.auto import modeling_auto as auto

    kind = str(config.model_type)
    named = [str(name) for name in (raw.get("architectures") or ())]
    masked: Mapping[Any, Any] = auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    causal: Mapping[Any, Any] = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if getattr(config, "is_encoder_decoder", False):
        return (
            f"{_called(kind, named)} is an encoder-decoder, which reads a prompt with one model and writes with another"
        )
    if kind in masked and not getattr(config, "is_decoder", False):
        return f"{_called(kind, named)} is an encoder, which fills gaps in a text and generates none"
    if kind not in causal and not _takes_images_too(config):
        return f"{_called(kind, named)} is no language model that transformers can generate with"
    if named and not any(name == causal.get(kind) or name.endswith(_GENERATES) for name in named):
        return (
            f"{_called(kind, named)} has no head that predicts the next token (a classifier, reward or embedding model)"
        )
    text = text_config(config)
    if getattr(text, "use_bidirectional_attention", None) is True or getattr(text, "is_causal", None) is False:
        return f"{_called(kind, named)} attends to later tokens too, as embedding models do"
    return ""


def _takes_images_too(config: Any) -> bool:
    """Whether a model that takes images and text has a language model of its own among its parts."""
    from transformers.models.auto import modeling_auto as auto

    return (
        str(config.model_type) in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and text_config(config) is not config
    )


def _bad_sizes(config: Any) -> list[str]:
    """Say which sizes of a model are no whole numbers above 0."""
    found: list[str] = []
    for name in (*_SIZES, *_OPTIONAL_SIZES):
        value: Any = getattr(config, name, None)
        if value is None and name in _OPTIONAL_SIZES:
            continue
        if value is None:
            found.append(f"the model has no {name}")
        elif type(value) is not int or value < 1:
            found.append(f"{name} must be a whole number above 0, but is {value!r}")
    return found


def _called(kind: str, named: list[str]) -> str:
    return f"{named[0]} ({kind})" if named else f"the model ({kind})"


def _release(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, for comparison."""
    numbers: list[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
