"""What the configuration files of a sentence-transformers model say: limits, pooling, normalisation. Loads no weights.

Such a model is a list of modules in ``modules.json``. Three of them are understood: a transformer, a pooling over its
tokens, and a normalisation to length one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ...jobs.errors import InputError
from ...jobs.files.user_paths import expand_home, is_directory
from ...jobs.specs.spec_parts import PACKAGE_SCHEME
from ..models.packages import package_folder

Pooling = Literal["mean", "cls", "max"]

FIELD = "--embedder"
"""The option that names an embedder, for errors."""

_OWNER = "sentence-transformers"
"""Whose model a name without an owner is, as the library of that name has it."""
_MODES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}
_LIMIT_FILES = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_FETCHED = ("*.json", "*.txt", "*.model", "*.safetensors", "*/config.json")
_NOT_FETCHED = ("onnx/*", "openvino/*", "*.bin", "*.h5")


@dataclass(frozen=True)
class EmbedderFiles:
    """A sentence-transformers model, as its files describe it.

    Attributes:
        directory: Directory with configuration, tokenizer and weights of the transformer.
        pooling: How the tokens of a text become one vector.
        normalised: Whether that vector is scaled to length one.
        max_tokens: Tokens of a text that are read, special ones included; None: as many as the model takes.
        lower_case: Whether texts are put in lower case first.
        prompt: Text that is put before every text; ``""`` for none.
    """

    directory: Path
    pooling: Pooling
    normalised: bool
    max_tokens: int | None
    lower_case: bool
    prompt: str


def find_embedder(source: str) -> EmbedderFiles:
    """Find a sentence-transformers model and read what its files say.

    Args:
        source: A Hugging Face id (without an owner: one of sentence-transformers), a local directory, or
            ``package://<module>/<folder>`` for one inside an installed Python package.

    Raises:
        InputError: There is no such model, or it has a module that is not understood.
    """
    return read_embedder(_directory_of(source), source)


def read_embedder(directory: Path, source: str) -> EmbedderFiles:
    """Read what the files of a sentence-transformers model say.

    Args:
        directory: Its directory.
        source: Where it is from, as the user names it.

    Raises:
        InputError: It is no such model, a file is damaged, or a module is not understood.
    """
    if not (directory / "modules.json").is_file():
        raise InputError(
            f"{source} is no model of sentence-transformers: it has no modules.json.",
            code="no_embedder",
            field=FIELD,
            hint="Name a model of texts, such as sentence-transformers/all-MiniLM-L6-v2.",
        )
    modules = _modules(directory / "modules.json", source)
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise InputError(
            f"{source} has the modules {', '.join(kinds) or 'none'}, and Transformer, Pooling and Normalize are known.",
            code="unknown_module",
            field=FIELD,
            hint="Name another model, such as sentence-transformers/all-MiniLM-L6-v2.",
        )
    inner = directory / str(modules[0].get("path", ""))
    limits = next((_json(inner / name, source) for name in _LIMIT_FILES if (inner / name).is_file()), {})
    about = directory / "config_sentence_transformers.json"
    prompts = _json(about, source) if about.is_file() else {}
    prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name") or "", "")
    return EmbedderFiles(
        directory=inner,
        pooling=_pooling(_json(directory / str(modules[1].get("path", "")) / "config.json", source), source),
        normalised="Normalize" in kinds,
        max_tokens=limits.get("max_seq_length"),
        lower_case=bool(limits.get("do_lower_case", False)),
        prompt=str(prompt or ""),
    )


def _pooling(config: dict[str, Any], source: str) -> Pooling:
    named = config.get("pooling_mode")
    if named is None:
        modes = [mode for mode, is_on in config.items() if mode.startswith("pooling_mode_") and is_on]
        modes = [_MODES.get(mode, mode) for mode in modes] or ["mean"]
    else:
        modes = [named] if isinstance(named, str) else list(named)
    if len(modes) != 1 or modes[0] not in _MODES.values():
        raise InputError(
            f"{source} pools tokens by {' and '.join(map(str, modes))}; understood are mean, cls and max, one of them.",
            code="unknown_pooling",
            field=FIELD,
            hint="Name another model, such as sentence-transformers/all-MiniLM-L6-v2.",
        )
    return cast("Pooling", modes[0])


def _json(path: Path, source: str) -> dict[str, Any]:
    parsed = _parsed(path, source)
    if not isinstance(parsed, dict):
        raise _unreadable(path, source, "it is no JSON object")
    return parsed


def _modules(path: Path, source: str) -> list[dict[str, Any]]:
    parsed = _parsed(path, source)
    if not isinstance(parsed, list) or not all(isinstance(module, dict) for module in parsed):
        raise _unreadable(path, source, "it is no list of JSON objects")
    return parsed


def _parsed(path: Path, source: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, source, str(error)) from error


def _unreadable(path: Path, source: str, reason: str) -> InputError:
    return InputError(
        f"{path.name} of {source} cannot be read: {reason}.",
        code="bad_file",
        field=FIELD,
        file=str(path),
        hint="Fetch the model again.",
    )


def _directory_of(source: str) -> Path:
    if source.startswith(PACKAGE_SCHEME):
        return _folder_in_package(source)
    path = Path(expand_home(source, FIELD))
    if is_directory(path, FIELD):
        return path
    return _fetched(source if "/" in source else f"{_OWNER}/{source}")


def _folder_in_package(source: str) -> Path:
    root, inside = package_folder(source, FIELD)
    if not (root / inside / "modules.json").is_file():
        there = ", ".join(sorted(str(path.parent.relative_to(root)) for path in root.rglob("modules.json"))) or "none"
        raise InputError(
            f"the package {root.name!r} has no model of sentence-transformers in {inside!r}.",
            code="no_embedder",
            field=FIELD,
            hint=f"Folders with one: {there}.",
        )
    return root / inside


def _fetched(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(name, allow_patterns=list(_FETCHED), ignore_patterns=list(_NOT_FETCHED))
    # What the hub's client raises without a network, without access or for a bad name is of many types.
    except Exception as error:
        reason = " ".join(str(error).split())[:300].rstrip(".") or repr(error)
        raise InputError(
            f"{name!r} is not a local directory and cannot be read from the hub: {reason}.",
            code="no_embedder",
            field=FIELD,
            hint="Check the name, the network and HF_TOKEN, or name a directory or package://module/folder.",
        ) from error
    return Path(found)
