"""Find a model's files, and read its ``ModelFacts`` from them without loading weights.

A source is a local directory, ``package://<module>/<file>.gguf`` (weights inside an installed Python package, converted
once and cached) or a Hugging Face id; each may be that of an adapter, which names its model. Whatever can be checked is
checked before weights are fetched.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ...jobs.errors import InputError
from ...jobs.files.user_paths import expand_home, is_directory
from ...jobs.model_facts import ModelFacts
from ...jobs.specs.spec_parts import PACKAGE_SCHEME, ModelSpec
from .adapters import WEIGHTS, base_of, check_adapter, is_adapter
from .checkpoints.checkpoint import (
    ADAPTER_FOLDER,
    Checkpoint,
    check_checkpoint,
    facts_of,
    fingerprint_of,
    open_checkpoint,
)
from .checkpoints.hub import HubListing, cached_snapshot
from .checkpoints.listing import DirectoryListing, Listing
from .checkpoints.weight_files import choose_weights
from .linked import link_checkpoint
from .packages import model_in_package

_SOURCE = "model.source"


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a model's files are.

    Attributes:
        model: Files of the model.
        adapter: Directory of the adapter to apply to it; None for none.
        needs_template: Whether the tokenizer must have a chat template.
    """

    model: Listing
    adapter: Path | None
    needs_template: bool

    def check(self) -> Checkpoint:
        """Check everything that can be told without weights, so that a model refused here costs no download.

        Raises:
            InputError: The model cannot be run.
        """
        # An adapter may bring the template, which is looked for when both are put together.
        return check_checkpoint(self.model, needs_template=self.needs_template and self.adapter is None)

    def directory(self, checkpoint: Checkpoint) -> Path:
        """Return a directory with everything that loading needs; weights on the hub are fetched.

        Args:
            checkpoint: What ``check`` returned.

        Raises:
            InputError: The weights cannot be fetched, or neither model nor adapter has a chat template.
        """
        directory, weights = self.model.directory, checkpoint.weights
        if isinstance(self.model, HubListing):
            directory = self.model.fetch(*{weights.entry, *weights.names})
        linked = link_checkpoint(directory, weights, self.adapter)
        if self.adapter is not None and self.needs_template:
            open_checkpoint(linked, needs_template=True)
        return linked


def find_model(model: ModelSpec, say: Callable[[str], None]) -> Path:
    """Return a directory with a model's configuration, tokenizer and safetensors weights, and its adapter if any.

    Args:
        model: Source and revision of the model, and its adapter.
        say: Called with a line of text before something that takes long.

    Raises:
        InputError: There is no such model, it cannot be run, or it cannot be converted or downloaded.
    """
    sources = find_sources(model, say)
    return sources.directory(sources.check())


def find_sources(model: ModelSpec, say: Callable[[str], None], *, cached_first: bool = False) -> Sources:
    """Find a model's files and its adapter's; no weights of the model are fetched.

    Args:
        model: Source and revision of the model, and its adapter. A source that is an adapter stands for the model that
            the adapter names, with the adapter.
        say: Called with a line of text before something that takes long.
        cached_first: Whether the hub is asked only where this machine's cache does not hold the whole model.

    Raises:
        InputError: There is no such model or adapter, or the adapter cannot be merged.
    """
    # A template of the user's own, where the spec has one, replaces that of the tokenizer.
    needs_template = model.chat_template is None
    if model.source.startswith(PACKAGE_SCHEME):
        files: Listing = DirectoryListing(model_in_package(model.source, say))
    else:
        files = _listing(model.source, model.revision, say, cached_first=cached_first)
    adapter = None if model.adapter is None else _listing(model.adapter, None, say, cached_first=cached_first)
    if adapter is None and is_adapter(files):
        adapter, files = files, _base_files(files, say, cached_first=cached_first)
    if adapter is None:
        return Sources(files, None, needs_template)
    check_adapter(adapter)
    fetched = adapter.fetch(WEIGHTS) if isinstance(adapter, HubListing) else adapter.directory
    return Sources(files, fetched, needs_template)


def read_facts(directory: Path) -> ModelFacts:
    """Read a model's facts from its configuration and the headers of its weight files.

    Args:
        directory: The model's directory, as ``find_model`` returns it.

    Raises:
        InputError: The directory is not a checkpoint that can be run; names every file that is wrong.
    """
    checkpoint = open_checkpoint(directory)
    facts = facts_of(checkpoint, fingerprint="")
    has_adapter = (directory / ADAPTER_FOLDER).is_dir()
    return replace(facts, fingerprint=fingerprint_of(checkpoint, directory), has_adapter=has_adapter)


def earlier_fingerprint(directory: Path) -> str:
    """Hash a model as versions before 0.2 did, with every safetensors file in its directory, so that their runs resume.

    Args:
        directory: The model's directory, as ``find_model`` returns it.
    """
    names = sorted(path.name for path in directory.glob("*.safetensors"))
    return fingerprint_of(open_checkpoint(directory), directory, names)


def eos_token_ids(directory: Path) -> frozenset[int]:
    """Return the ids that a model's configuration and generation settings name as the end of a sequence.

    Args:
        directory: Directory with the model's files.
    """
    ids: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        try:
            settings = json.loads((directory / name).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError, RecursionError):
            # Not every checkpoint has generation settings; a wrong configuration is reported where it is loaded.
            continue
        value = settings.get("eos_token_id") if isinstance(settings, dict) else None
        ids.update(each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int))
    return frozenset(ids)


def local_directory(source: str) -> Path | None:
    """Return the directory that a source names on this machine; None for a Hugging Face id.

    Args:
        source: Source of a model or an adapter.

    Raises:
        InputError: It is written as a path, and there is no such directory.
    """
    path = Path(expand_home(source, _SOURCE))
    if is_directory(path, _SOURCE):
        return path.resolve()
    if path.is_file():
        is_gguf = path.suffix == ".gguf"
        hint = "GGUF is read from an installed package (package://module/file.gguf); name a safetensors checkpoint."
        raise InputError(
            f"{source!r} is a file, and a model is a directory.",
            code="no_model",
            field=_SOURCE,
            hint=hint if is_gguf else "Name the directory that holds it.",
        )
    if source.startswith((".", "/", "~")):
        raise InputError(f"there is no directory {source!r}.", code="no_model", field=_SOURCE, hint="Check the path.")
    return None


def _listing(source: str, revision: str | None, say: Callable[[str], None], *, cached_first: bool) -> Listing:
    """List the files of a directory, or of a repository on the hub or in this machine's cache of it."""
    directory = local_directory(source)
    if directory is not None:
        return DirectoryListing(directory)
    cached = cached_snapshot(source, revision)
    if cached_first and cached is not None and _is_whole(DirectoryListing(cached)):
        return DirectoryListing(cached)
    say(f"Looking for {source} in the Hugging Face cache and on the hub.")
    try:
        return HubListing(source, revision)
    except InputError:
        if cached is None:
            raise
        return DirectoryListing(cached)


def _is_whole(listing: Listing) -> bool:
    """Whether all weights of a model, or of an adapter, are there."""
    if is_adapter(listing):
        return listing.size(WEIGHTS) is not None
    try:
        return all(listing.size(name) is not None for name in choose_weights(listing).names)
    except ValueError:
        return False


def _base_files(adapter: Listing, say: Callable[[str], None], *, cached_first: bool) -> Listing:
    """List the files of the model that an adapter names."""
    base = base_of(adapter)
    beside = adapter.directory / base
    try:
        return _listing(str(beside) if beside.is_dir() else base, None, say, cached_first=cached_first)
    except InputError as error:
        raise InputError(
            f"{adapter.place} is an adapter of {base!r}, which cannot be found: {error.message}",
            code=error.code,
            field=error.field,
            hint="Give the model as model.source and the adapter as model.adapter.",
        ) from error
