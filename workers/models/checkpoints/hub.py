"""Checkpoints on the Hugging Face hub: what they hold, and fetching what is needed of them."""

from __future__ import annotations

from glob import escape
from pathlib import Path
from typing import Any

from ....jobs.errors import InputError

_SMALL_ENDINGS = (".json", ".jinja", ".txt")
_SMALL_NAMES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_MORE_TEMPLATES = "additional_chat_templates/"


class HubListing:
    """A checkpoint on the hub, of which only the small files are fetched.

    Args:
        source: Its Hugging Face id.
        revision: Branch, tag or commit; None: the default branch.

    Raises:
        InputError: It does not exist, or the hub cannot be reached.
    """

    def __init__(self, source: str, revision: str | None) -> None:
        self.place = source
        self._revision = revision
        self._sizes = _sizes_of(source, revision)
        self.names = frozenset(name for name in self._sizes if "/" not in name)
        self.directory = self.fetch()

    def size(self, name: str) -> int | None:
        """Return the bytes of a file; None if there is no such file."""
        return self._sizes.get(name)

    def header(self, name: str) -> dict[str, Any]:
        """Read the header of a safetensors file, by one or two small requests."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import SafetensorsParsingError

        try:
            found = HfApi().parse_safetensors_file_metadata(self.place, name, revision=self._revision)
        except SafetensorsParsingError as error:
            raise ValueError(f"not a safetensors file: {error}") from None
        except Exception as error:
            raise _unreachable(self.place, error) from error
        return {
            key: {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": list(entry.data_offsets)}
            for key, entry in found.tensors.items()
        }

    def fetch(self, *names: str) -> Path:
        """Fetch the small files, and those named.

        Args:
            names: Further files, such as those with the weights.

        Returns:
            The directory, in the hub's cache on this machine.

        Raises:
            InputError: They cannot be fetched.
        """
        from huggingface_hub import snapshot_download

        wanted = [escape(name) for name in (*filter(_is_small, self._sizes), *names)]
        try:
            return Path(snapshot_download(self.place, revision=self._revision, allow_patterns=wanted))
        except Exception as error:
            raise _unreachable(self.place, error) from error


def cached_snapshot(source: str, revision: str | None) -> Path | None:
    """Return the directory of a checkpoint in the hub's cache on this machine, complete or not; None if there is none.

    Args:
        source: Its Hugging Face id.
        revision: Branch, tag or commit; None: the default branch.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in ("config.json", "adapter_config.json"):
        try:
            found = try_to_load_from_cache(source, name, revision=revision)
        except (HFValidationError, OSError):
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None


def _sizes_of(source: str, revision: str | None) -> dict[str, int]:
    from huggingface_hub import HfApi

    try:
        # One request: without a network it fails at once, whereas a listing of the tree is retried for half a minute.
        siblings = HfApi().model_info(source, revision=revision, files_metadata=True).siblings
        return {entry.rfilename: entry.size or 0 for entry in siblings or ()}
    # What the hub's client raises without a network, without access or for a bad name is of many types.
    except Exception as error:
        raise _unreachable(source, error) from error


def _is_small(name: str) -> bool:
    if name.startswith(_MORE_TEMPLATES):
        return name.endswith(".jinja")
    return "/" not in name and (name.endswith(_SMALL_ENDINGS) or name in _SMALL_NAMES)


def _unreachable(source: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:300].rstrip(".") or repr(error)
    return InputError(
        f"{source!r} is not a local directory and cannot be read from the hub: {reason}.",
        code="no_model",
        field="model.source",
        hint="Check the name, the revision, the network and HF_TOKEN, or name a local directory.",
    )
