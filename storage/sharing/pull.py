"""Download a store from a dataset of the Hugging Face Hub, with every checksum compared; resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ...jobs.errors import InputError, StoreError
from ...jobs.wording import count_of
from ..format import layout
from ..locations.hub import HubLocation
from ..locations.location import Location
from .dataset_card import CARD
from .objects import batches, content_ids, named
from .remote import RemoteFile, remote_files

_PARALLEL_READS = 8
_MAX_FILES = 64
_MAX_BYTES = 128 * 2**20
"""Files and bytes that are in memory at a time."""

_NOT_OF_STORES = (".gitattributes", CARD)


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull did.

    Attributes:
        url: URL of the new store.
        downloaded: Number of objects that were downloaded.
        num_bytes: Their size in bytes.
        skipped: Number of objects that were there already.
    """

    url: str
    downloaded: int
    num_bytes: int
    skipped: int


def pull_store(source: HubLocation, target: Location, say: Callable[[str], None] = lambda _: None) -> Pulled:
    """Download a store. Run again, it downloads what is missing, and overwrites nothing.

    Args:
        source: The dataset, or a folder in it.
        target: Where to write.
        say: Called with a line of text for every part.

    Raises:
        InputError: The dataset holds no store, cannot be read, or the target has other objects of the same names.
        StoreError: A file does not have the checksum that the hub lists.
        TransientError: The hub cannot be reached; a later call goes on.
    """
    with source.errors():
        listed = remote_files(source.hub_url, source.commit)
    prefix = f"{source.hub_url.path}/" if source.hub_url.path else ""
    remote = {path.removeprefix(prefix): file for path, file in listed.items() if path.startswith(prefix)}
    remote = {path: file for path, file in remote.items() if path not in _NOT_OF_STORES}
    if not remote.keys() & {layout.RUN_RECORD, layout.VECTORS_RECORD}:
        raise InputError(
            f"{source.url} holds no store: neither {layout.RUN_RECORD} nor {layout.VECTORS_RECORD}.",
            code="not_a_run",
            field="HUB_URL",
            hint="Name the folder of the store: hf://datasets/OWNER/NAME/FOLDER.",
        )
    here = target.sizes("")
    same = here.keys() & remote.keys()
    _refuse_differing(target, {path: remote[path] for path in same}, here)
    sizes = {path: file.num_bytes for path, file in remote.items()}
    missing = sorted(remote.keys() - here.keys(), key=lambda path: (path in _LAST, path))
    done = 0
    for part in batches(missing, sizes, _MAX_FILES, _MAX_BYTES):
        done += len(part)
        say(f"Downloading {done:,} of {count_of(len(missing), 'file')}.")
        for path, data in _read(source, part):
            if remote[path].content_id not in content_ids(data):
                raise StoreError(
                    "does not have the checksum that the hub lists.",
                    code="bad_object",
                    file=f"{source.url}/{path}",
                    hint="Pull again.",
                )
            if not target.create(path, data):
                raise InputError(
                    f"{target.url}/{path} appeared meanwhile.", code="other_store", field="STORE", hint="Pull again."
                )
    return Pulled(target.url, len(missing), sum(sizes[path] for path in missing), len(same))


def _refuse_differing(target: Location, same: dict[str, RemoteFile], here: dict[str, int]) -> None:
    differing = [
        path
        for path, file in same.items()
        if here[path] != file.num_bytes or file.content_id not in content_ids(target.read(path) or b"")
    ]
    if differing:
        raise InputError(
            f"{target.url} holds another store: {named(differing)} differ.",
            code="other_store",
            field="STORE",
            hint="Pull to a new place.",
        )


_LAST = (layout.RUN_RECORD, layout.VECTORS_RECORD, layout.CURRENT_REDUCTION)
"""Objects that make the store, or its vectors, visible to readers."""


def _read(source: HubLocation, paths: list[str]) -> Iterator[tuple[str, bytes]]:
    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        for path, data in zip(paths, pool.map(source.read, paths), strict=True):
            if data is None:
                raise StoreError("is listed, and cannot be read.", code="bad_object", file=f"{source.url}/{path}")
            yield path, data
