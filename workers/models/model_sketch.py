"""Read a model's ``ModelFacts`` for planning without downloading weights, which may be 140 GB.

Sources, in this order: the model's files, if they are on this machine; its configuration and the headers or index of
its weight files, which the hub serves without the weights; the table of known models. Only the files give a
fingerprint, so the other two are enough to plan a job but not to run it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from ...jobs.errors import InputError
from ...jobs.model_facts import ModelFacts
from ...jobs.sizing.known_models import known_models
from ...jobs.spec_parts import PACKAGE_SCHEME, ModelSpec
from ...jobs.user_paths import is_directory
from .model_files import DTYPES, facts_of, find_model, read_config, read_facts

FactsFrom = Literal["files", "configuration", "table"]
"""Source of a model's facts: all its files, its configuration and weight index, or the table of known models."""

_INDEX = "model.safetensors.index.json"
_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


def sketch_model(model: ModelSpec, say: Callable[[str], None]) -> tuple[ModelFacts, FactsFrom]:
    """Read what planning needs to know about a model; no weights are downloaded.

    Args:
        model: Source and revision of the model.
        say: Called with a line of text before something that takes long.

    Returns:
        The facts and their source; the fingerprint is empty unless the source is ``files``.

    Raises:
        InputError: There is no such model, or no source is available on this machine.
    """
    if model.source.startswith((PACKAGE_SCHEME, ".", "/", "~")) or is_directory(Path(model.source), "model.source"):
        directory = find_model(model, say)
        if _is_whole(directory):
            return read_facts(directory), "files"
        return _facts_of_index(directory), "configuration"
    cached = _cached(model)
    if cached is not None and _is_whole(cached):
        return read_facts(cached), "files"
    try:
        return _facts_of_hub(model, say), "configuration"
    except InputError as error:
        known = known_models().get(model.source)
        if known is None:
            raise
        say(f"{error.message} Planning with what is known of {model.source}.")
        return known, "table"


def _is_whole(directory: Path) -> bool:
    """Whether a directory has weights, and all files that its weight index names."""
    index = directory / _INDEX
    if not any(directory.glob("*.safetensors")):
        return not index.is_file()
    if not index.is_file():
        return True
    return all((directory / name).is_file() for name in set(_read_index(index)["weight_map"].values()))


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text())
        return {"weight_map": dict(index["weight_map"]), "total_size": int(index["metadata"]["total_size"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not an index of safetensors files: {error!r}.",
            code="no_model",
            field="model.source",
            hint="Fetch it again.",
        ) from error


def _facts_of_index(directory: Path) -> ModelFacts:
    config = read_config(directory)
    declared = str(getattr(config, "dtype", None) or "bfloat16").removeprefix("torch.")
    dtype = declared if declared in _WIDTHS else "bfloat16"
    num_parameters = _read_index(directory / _INDEX)["total_size"] // _WIDTHS[dtype]
    return facts_of(config, num_parameters=num_parameters, dtype=dtype, fingerprint="")


def _cached(model: ModelSpec) -> Path | None:
    """Return the snapshot in this machine's hub cache, complete or not; None when there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(model.source, revision=model.revision, local_files_only=True))
    except (HFValidationError, OSError):
        return None


def _facts_of_hub(model: ModelSpec, say: Callable[[str], None]) -> ModelFacts:
    from huggingface_hub import get_safetensors_metadata, hf_hub_download

    say(f"Reading the configuration of {model.source} on the hub; no weights are fetched.")
    try:
        # The headers first: without a network this fails at once, whereas a download is retried for a while.
        found = get_safetensors_metadata(model.source, revision=model.revision).parameter_count
        config = Path(hf_hub_download(model.source, "config.json", revision=model.revision))
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(
            f"{model.source!r} is not a local directory and its configuration cannot be read from the hub: {reason}.",
            code="no_model",
            field="model.source",
            hint="Check the name, the revision, the network and HF_TOKEN, or name a local directory. "
            f"Models that can be planned without it: {', '.join(known_models())}.",
        ) from error
    counts = {str(name): count for name, count in found.items()}
    most = max(counts, key=lambda name: counts[name])
    return facts_of(
        read_config(config.parent),
        num_parameters=sum(counts.values()),
        dtype=DTYPES.get(most, "float32"),
        fingerprint="",
    )
