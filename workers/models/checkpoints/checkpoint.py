"""Check a checkpoint before its weights are fetched or loaded, and read its facts and fingerprint.

Everything that is wrong with it is reported in one error, file by file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ....jobs.model_facts import ModelFacts
from .architecture import (
    architecture_problems,
    declared_dtype,
    other_layer_kinds,
    read_auto_config,
    text_config,
    unreadable,
)
from .listing import DirectoryListing, Listing, read_json
from .problems import Problem, refuse
from .quantization import method_of, packed_problems, quantization_of, quantization_problems, restored_parameters
from .weight_files import (
    DTYPES,
    WeightFiles,
    choose_weights,
    count_parameters,
    no_weights,
    num_bytes,
    parameters_by_layer,
    read_tensors,
)

ADAPTER_FOLDER = "adapter"
"""Folder, in a directory that ``link_checkpoint`` made, with the adapter to apply to the model beside it."""

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
_TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json")
_TOKENIZER_ENDINGS = (".model", ".tiktoken", ".bpe")
_BYTE_TOKENIZERS = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")

_SAMPLES, _SAMPLE_BYTES = 64, 2**16
_DEFAULT_DTYPE = "bfloat16"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose configuration is that of a model that can be run here.

    Attributes:
        listing: Its files.
        raw: The content of ``config.json``.
        config: The same, as transformers reads it.
        weights: The files with its weights.
    """

    listing: Listing
    raw: Mapping[str, Any]
    config: Any
    weights: WeightFiles


def check_checkpoint(listing: Listing, *, needs_template: bool = False) -> Checkpoint:
    """Check everything about a checkpoint that can be told without reading its weights.

    Args:
        listing: Its files.
        needs_template: Whether its tokenizer must have a chat template.

    Raises:
        InputError: It cannot be run; names every file that is wrong.
    """
    raw, config, problems = _read_config(listing)
    problems += _generation_problems(listing)
    weights = WeightFiles("", ())
    try:
        weights = choose_weights(listing)
    except ValueError as error:
        problems.append(no_weights(error))
    # A configuration and an index, without weights and tokenizer, are enough to plan.
    if not weights.names or any(listing.size(name) is not None for name in weights.names):
        problems += _tokenizer_problems(listing, needs_template=needs_template)
    refuse(listing.place, problems)
    return Checkpoint(listing, raw, config, weights)


def facts_of(checkpoint: Checkpoint, *, fingerprint: str) -> ModelFacts:
    """Read a model's facts from its configuration and the headers of its weights.

    Args:
        checkpoint: The checkpoint.
        fingerprint: SHA-256 over the model's files; empty where they were not read.

    Raises:
        InputError: The weights are not whole, or packed in a way that is not known here.
    """
    listing, weights = checkpoint.listing, checkpoint.weights
    tensors, problems = read_tensors(listing, weights)
    refuse(listing.place, problems or packed_problems(tensors, checkpoint.raw))
    counts = count_parameters(list(tensors.values()))
    if not counts and quantization_of(checkpoint.raw) is None:
        refuse(listing.place, [Problem(f"{weights.entry}: holds no weights", "Fetch it again.")])
    if quantization_of(checkpoint.raw) is not None:
        facts = _facts(checkpoint, restored_parameters(checkpoint.config), _plain_dtype(checkpoint), fingerprint)
        return replace(facts, quantized_bytes=sum(num_bytes(entry) for entry in tensors.values()))
    most = max(counts, key=lambda dtype: counts[dtype])
    facts = _facts(checkpoint, sum(counts.values()), DTYPES[most], fingerprint)
    layers = parameters_by_layer(tensors, facts.n_layers)
    if not layers:
        return facts
    return replace(facts, layer_parameters=max(layers), outside_parameters=facts.num_parameters - sum(layers))


def facts_of_index(checkpoint: Checkpoint) -> ModelFacts:
    """Read a model's facts from its configuration and the index of weights that are not there.

    Args:
        checkpoint: The checkpoint.

    Raises:
        InputError: The index does not tell the size of the weights.
    """
    listing, total = checkpoint.listing, checkpoint.weights.total_bytes
    if total is None:
        text = f"{checkpoint.weights.entry}: has no metadata.total_size, and the weights are not there"
        refuse(listing.place, [Problem(text, "Fetch the weights, or the index again.")])
    dtype = _plain_dtype(checkpoint)
    if quantization_of(checkpoint.raw) is not None:
        facts = _facts(checkpoint, restored_parameters(checkpoint.config), dtype, "")
        return replace(facts, quantized_bytes=total or 0)
    widths = {"float64": 8, "float32": 4}
    return _facts(checkpoint, (total or 0) // widths.get(dtype, 2), dtype, "")


def fingerprint_of(checkpoint: Checkpoint, directory: Path, weights: Sequence[str] | None = None) -> str:
    """Hash what identifies a model: configuration, tokenizer, samples of each weight file, and its adapter if any.

    Args:
        checkpoint: The checkpoint.
        directory: Its directory.
        weights: Files of weights to hash; None: those that count.
    """
    digest = hashlib.sha256()
    small = {path for pattern in _IDENTITY_FILES for path in directory.glob(pattern) if path.is_file()}
    for path in sorted(small):
        digest.update(f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    names = checkpoint.weights.names if weights is None else weights
    for name in names:
        digest.update(f"{name}:{sampled_sha256(directory / name)}".encode())
    adapter = directory / ADAPTER_FOLDER
    if adapter.is_dir():
        settings = read_json(DirectoryListing(adapter), "adapter_config.json")
        # Where its model lies changes nothing of what the adapter does.
        kept = {key: value for key, value in settings.items() if key not in ("base_model_name_or_path", "revision")}
        digest.update(f"{ADAPTER_FOLDER}:{json.dumps(kept, sort_keys=True)}".encode())
        for path in sorted(adapter.glob("adapter_*.safetensors")):
            digest.update(f"{ADAPTER_FOLDER}/{path.name}:{sampled_sha256(path)}".encode())
    return digest.hexdigest()


def open_checkpoint(directory: Path, *, needs_template: bool = False) -> Checkpoint:
    """Check a checkpoint in a directory; see :func:`check_checkpoint`."""
    return check_checkpoint(DirectoryListing(directory), needs_template=needs_template)


def sampled_sha256(path: Path) -> str:
    """Hash a file's size and 64 samples of 64 KiB spread evenly over it, which is fast even for 100 GB."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for i in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _read_config(listing: Listing) -> tuple[Mapping[str, Any], Any, list[Problem]]:
    """Read ``config.json``, and find what is wrong with it."""
    if "model_index.json" in listing.names:
        text = "model_index.json: it is a pipeline that makes images or sound, and no language model"
        return {}, None, [Problem(text, "Choose a language model.", "unknown_model")]
    if "config.json" not in listing.names:
        return {}, None, [_no_config(listing)]
    try:
        raw = read_json(listing, "config.json")
    except ValueError as error:
        return {}, None, [Problem(f"config.json: {error}", "Fetch it again.")]
    quantised = quantization_problems(raw)
    try:
        config = read_auto_config(listing.directory)
    except ValueError as error:
        return raw, None, [unreadable(raw, error), *quantised]
    return raw, config, [*architecture_problems(raw, config), *quantised]


def _no_config(listing: Listing) -> Problem:
    if "adapter_config.json" in listing.names:
        text = "adapter_config.json: it is an adapter, and no model"
        return Problem(text, "Give the model as model.source and the adapter as model.adapter.")
    if "params.json" in listing.names or "consolidated.safetensors" in listing.names:
        text = "config.json: missing; params.json and consolidated.* are the form of the model's makers"
        return Problem(text, "Use the checkpoint in Hugging Face form.")
    return Problem("config.json: missing", "Name a checkpoint's directory.")


def _generation_problems(listing: Listing) -> list[Problem]:
    """Find what is wrong with the generation settings, of which the ids that end a response are used."""
    try:
        ends = read_json(listing, "generation_config.json").get("eos_token_id")
    except ValueError as error:
        return [Problem(f"generation_config.json: {error}", "Fetch it again.")]
    if all(each is None or type(each) is int for each in (ends if isinstance(ends, list) else [ends])):
        return []
    return [Problem("generation_config.json: eos_token_id must be a token id or a list of them", "Fetch it again.")]


def _tokenizer_problems(listing: Listing, *, needs_template: bool) -> list[Problem]:
    try:
        settings = read_json(listing, "tokenizer_config.json")
    except ValueError as error:
        return [Problem(f"tokenizer_config.json: {error}", "Fetch it again.")]
    has_files = any(name in _TOKENIZERS or name.endswith(_TOKENIZER_ENDINGS) for name in listing.names)
    if not has_files and settings.get("tokenizer_class") not in _BYTE_TOKENIZERS:
        return [
            Problem("tokenizer.json: missing, and there is no other tokenizer", "Copy the tokenizer's files there.")
        ]
    if not needs_template or settings.get("chat_template") or any(name.endswith(".jinja") for name in listing.names):
        return []
    return [
        Problem(
            "tokenizer_config.json: the tokenizer has no chat template, so this model cannot be prompted with messages",
            "Use the instruction-tuned version of the model, or give model.chat_template: FILE.",
            "no_chat_template",
        )
    ]


def _plain_dtype(checkpoint: Checkpoint) -> str:
    """Return the type that the configuration declares, or the usual one."""
    declared = declared_dtype(checkpoint.config)
    return declared if declared in DTYPES.values() else _DEFAULT_DTYPE


def _facts(checkpoint: Checkpoint, num_parameters: int, dtype: str, fingerprint: str) -> ModelFacts:
    config = text_config(checkpoint.config)
    n_layers, d_model = int(config.num_hidden_layers), int(config.hidden_size)
    # A model without attention (Mamba, RWKV) has a state of a fixed size in place of keys and values.
    heads = int(getattr(config, "num_attention_heads", None) or 0)
    kv_heads = (getattr(config, "num_key_value_heads", None) or heads) if heads else 0
    head_dim = getattr(config, "head_dim", None) or (d_model // heads if heads else 0)
    quantization = quantization_of(checkpoint.raw)
    return ModelFacts(
        n_layers=n_layers,
        d_model=d_model,
        num_parameters=num_parameters,
        kv_values_per_token=2 * n_layers * kv_heads * head_dim,
        dtype=dtype,
        family=str(config.model_type),
        max_context=int(getattr(config, "max_position_embeddings", None) or 2**31),
        fingerprint=fingerprint,
        architectures=tuple(str(name) for name in checkpoint.raw.get("architectures") or ()),
        num_attention_heads=heads,
        num_kv_heads=kv_heads,
        mlp_width=_mlp_width(config),
        quantization=method_of(quantization) if quantization is not None else "",
        other_layers=other_layer_kinds(checkpoint.config),
    )


def _mlp_width(config: Any) -> int:
    """Return the inner width of an MLP, or of one expert; 0 where the configuration does not name it so."""
    for name in ("moe_intermediate_size", "intermediate_size"):
        width: Any = getattr(config, name, None)
        if type(width) is int:
            return width
    return 0
