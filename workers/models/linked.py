"""Directories of links, in which transformers finds exactly the files that count.

Those are the weights by this project's rule and, in a folder beside them, an adapter. The directories lie in the cache
and hold no copies. Most checkpoints need none: one is made where something lies beside the weights that transformers
would load instead or in addition, and where an adapter is applied.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .checkpoints.checkpoint import ADAPTER_FOLDER
from .checkpoints.weight_files import INDEX, SINGLE, WeightFiles
from .packages import cache_dir


def link_checkpoint(directory: Path, weights: WeightFiles, adapter: Path | None = None) -> Path:
    """Return a directory in which transformers loads the weights that count; the checkpoint's own where it does.

    Args:
        directory: The checkpoint.
        weights: The files with its weights.
        adapter: Directory of an adapter to apply to it; None for none.
    """
    names = {path.name for path in directory.iterdir()}
    natural = SINGLE if SINGLE in names else INDEX
    if adapter is None and weights.entry == natural and "adapter_config.json" not in names:
        return directory
    links = {name: directory / name for name in weights.names}
    links |= {path.name: path for path in directory.iterdir() if _is_kept(path)}
    if weights.entry not in weights.names:
        links[INDEX] = directory / weights.entry
    else:
        links[SINGLE] = links.pop(weights.entry)
    if adapter is not None:
        tokenizer = [path for path in adapter.iterdir() if _is_tokenizer(path)]
        if any(path.name == "tokenizer_config.json" for path in tokenizer):
            # An adapter that brings a tokenizer was trained with it, and with its chat template.
            links = {name: path for name, path in links.items() if not _is_tokenizer(path)}
            links |= {path.name: path for path in tokenizer}
        links |= {f"{ADAPTER_FOLDER}/{path.name}": path for path in adapter.glob("adapter_*")}
    return _made({name: path.resolve() for name, path in links.items()}, directory.name)


def _is_kept(path: Path) -> bool:
    """Whether a file is a small one that loading may read: all but weights, their indexes and adapters."""
    kept = path.name.endswith((".json", ".jinja", ".txt", ".model", ".tiktoken", ".bpe"))
    return (
        kept and path.is_file() and not path.name.endswith(".index.json") and not path.name.startswith("adapter_")
    ) or path.name == "additional_chat_templates"


def _is_tokenizer(path: Path) -> bool:
    name = path.name
    own = ("special_tokens_map.json", "added_tokens.json", "merges.txt", "spiece.model", "additional_chat_templates")
    return name.startswith(("tokenizer", "vocab.", "chat_template")) or name in own


def _made(links: Mapping[str, Path], name: str) -> Path:
    """Make a directory of links, or find the one that is there; it is whole or absent."""
    listed = json.dumps({key: str(path) for key, path in sorted(links.items())})
    target = cache_dir() / "links" / f"{name}-{hashlib.sha256(listed.encode()).hexdigest()[:16]}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        made = Path(folder) / "model"
        for key, path in links.items():
            (made / key).parent.mkdir(parents=True, exist_ok=True)
            (made / key).symlink_to(path)
        try:
            made.rename(target)
        except OSError:
            # Another process may have made it first; the result is the same.
            if not target.is_dir():
                raise
    return target
