"""LoRA adapters: finding one and the model it belongs to, checking it, and merging it into the loaded model.

An adapter is a directory or a Hugging Face repository with ``adapter_config.json`` and ``adapter_model.safetensors``,
as peft saves them. It is merged into the weights when the model is loaded, so hook points, passes and the canary are
those of a plain model.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ...jobs.errors import InputError
from ...jobs.wording import extra_hint
from .checkpoints.listing import DirectoryListing, Listing, read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_FIELD = "model.adapter"
_CODE = "bad_adapter"
_UNMERGEABLE = {
    "layer_replication": "repeats layers of its model, so its layers are not those of the model",
    "alora_invocation_tokens": "starts to work within a text (aLoRA), so it cannot be merged into the weights",
}


def is_adapter(listing: Listing) -> bool:
    """Whether files are those of an adapter without its model.

    Args:
        listing: The files.
    """
    return CONFIG in listing.names and "config.json" not in listing.names


def base_of(listing: Listing) -> str:
    """Return the model that an adapter names as its own: a Hugging Face id or a directory.

    Args:
        listing: The adapter.

    Raises:
        InputError: It names none.
    """
    base = read_adapter_config(listing).get("base_model_name_or_path")
    if not base:
        raise _refused(
            f"{listing.place}: {CONFIG} names no model (base_model_name_or_path).",
            "Give the model as model.source and the adapter as model.adapter.",
        )
    return str(base)


def read_adapter_config(listing: Listing) -> Mapping[str, Any]:
    """Read an adapter's configuration.

    Args:
        listing: The adapter.

    Raises:
        InputError: There is none, or it cannot be read.
    """
    try:
        config = read_json(listing, CONFIG)
    except ValueError as error:
        raise _refused(f"{listing.place}: {CONFIG}: {error}.", "Fetch it again.") from None
    if not config:
        raise _refused(f"{listing.place} has no {CONFIG}.", "Name the directory or the repository of an adapter.")
    return config


def check_adapter(listing: Listing) -> None:
    """Check that an adapter can be merged into a language model, and that peft is installed to do it.

    Args:
        listing: The adapter.

    Raises:
        InputError: It is no LoRA adapter of a language model, not whole, or peft is missing.
    """
    config = read_adapter_config(listing)
    wrong = _wrong_kind(config)
    if wrong:
        raise _refused(f"the adapter in {listing.place} {wrong}.", "Choose a LoRA adapter of a language model.")
    if WEIGHTS not in listing.names:
        pickled = "adapter_model.bin" in listing.names
        what = f"has only pickled weights, and no {WEIGHTS}" if pickled else f"has no {WEIGHTS}"
        raise _refused(f"the adapter in {listing.place} {what}.", "Save it with save_pretrained.")
    try:
        listing.header(WEIGHTS)
    except ValueError as error:
        raise _refused(f"{listing.place}: {WEIGHTS}: {error}.", "Fetch it again.") from None
    if importlib.util.find_spec("peft") is None:
        raise InputError(
            "an adapter needs the library peft, which is not installed.",
            code="no_package",
            field=_FIELD,
            hint=f"{extra_hint('peft')}, on every machine that runs workers.",
        )


def merge_adapter(model: Any, directory: Path) -> Any:
    """Merge an adapter into a model's weights.

    Args:
        model: A model that transformers has loaded, in float32, so that the sums are exact.
        directory: Directory of the adapter.

    Returns:
        The same model, with other weights and without any part of peft.

    Raises:
        InputError: The adapter does not belong to this model.
    """
    from peft import PeftModel, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    config = _lora_config(directory)
    try:
        with warnings.catch_warnings():
            # About transformers' own names, which peft still uses.
            warnings.simplefilter("ignore", FutureWarning)
            adapted: Any = PeftModel(model, config)
        weights = load_peft_weights(str(directory), device="cpu")
        loaded: Any = set_peft_model_state_dict(adapted, weights)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
        raise _foreign(directory, reason) from error
    own = [key for key in loaded.missing_keys if "lora_" in key or "modules_to_save" in key]
    if own or loaded.unexpected_keys:
        raise _foreign(directory, f"{[*own, *loaded.unexpected_keys][0]} has no counterpart")
    return adapted.merge_and_unload()


def _lora_config(directory: Path) -> Any:
    """Make peft's configuration of an adapter; a setting that the installed peft would ignore is refused."""
    from peft import LoraConfig

    settings = read_adapter_config(DirectoryListing(directory))
    known = {entry.name for entry in fields(LoraConfig) if entry.init}
    unknown = sorted(
        key for key, value in settings.items() if value and key not in known | {"peft_version", "peft_type"}
    )
    if unknown:
        raise _refused(
            f"{directory}: {CONFIG} has {unknown[0]}, which the installed peft does not know.",
            "Upgrade peft, on every machine that runs workers.",
        )
    return LoraConfig(**{key: value for key, value in settings.items() if key in known})


def _wrong_kind(config: Mapping[str, Any]) -> str:
    """Say why an adapter cannot be merged into a language model; empty if it can."""
    if config.get("peft_type") != "LORA":
        return f"is of type {config.get('peft_type')}, and only LORA can be merged here"
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        return f"is for {config['task_type']}, and not for a model that generates (CAUSAL_LM)"
    return next((why for key, why in _UNMERGEABLE.items() if config.get(key)), "")


def _foreign(directory: Path, reason: str) -> InputError:
    return _refused(
        f"the adapter in {directory} does not fit the model: {reason}.",
        f"Give the model that it was trained on as model.source; {CONFIG} names it.",
    )


def _refused(text: str, hint: str) -> InputError:
    return InputError(text, code=_CODE, field=_FIELD, hint=hint)
