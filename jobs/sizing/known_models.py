"""Facts of well-known models, for planning jobs without their files. A run reads the facts from the files."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ..files.text_files import read_text
from ..files.yaml_file import parse_yaml, validate
from ..model_facts import ModelFacts

_FILE = Path(__file__).with_name("models.yaml")


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    n_layers: int
    d_model: int
    num_parameters: int
    kv_values_per_token: int
    dtype: str
    family: str
    max_context: int
    architectures: tuple[str, ...]
    num_attention_heads: int
    num_kv_heads: int
    mlp_width: int
    configuration: dict[str, Any]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[str, _Facts]


@cache
def known_models() -> dict[str, ModelFacts]:
    """Read the facts of all known models, by Hugging Face id. Their fingerprints are empty.

    Example:
        >>> known_models()["Qwen/Qwen3-32B"].n_layers
        64
    """
    return {
        name: ModelFacts(**facts.model_dump(exclude={"configuration"}), fingerprint="")
        for name, facts in _table().models.items()
    }


def known_configurations() -> dict[str, dict[str, Any]]:
    """Read the configurations of all known models, by Hugging Face id, as their ``config.json`` names the fields.

    They hold the sizes, and not what changes no shape, such as the base of the rotary embeddings.
    """
    return {name: {**facts.configuration} for name, facts in _table().models.items()}


@cache
def _table() -> _Table:
    text = read_text(_FILE, "the table of known models")
    return validate(_Table, parse_yaml(text, str(_FILE)), text=text, file=str(_FILE))
