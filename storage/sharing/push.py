"""Upload a store to a dataset of the Hugging Face Hub, in commits of bounded size; what is there already is skipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...jobs.errors import InputError
from ...jobs.files.hub_url import HubUrl
from ...jobs.wording import count_of
from ..format import layout
from ..locations.hub import HubLocation
from ..locations.hub_errors import hub_errors
from ..locations.location import Location
from ..query.run import Run
from ..query.vectors import Vectors
from ..run.lease import refuse_if_driven
from .dataset_card import CARD, dataset_card
from .objects import Share, batches, content_ids, is_grown, may_be_replaced, named, shared_paths
from .remote import RemoteFile, remote_files

_MAX_FILES = 200
_MAX_BYTES = 256 * 2**20
"""Files and bytes of a commit. Its files are in memory."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did.

    Attributes:
        url: URL of the dataset.
        uploaded: Number of files that were uploaded.
        num_bytes: Their size in bytes.
        skipped: Number of files that were there already.
    """

    url: str
    uploaded: int
    num_bytes: int
    skipped: int


def push_store(
    vectors: Vectors, target: HubUrl, share: Share, *, public: bool = False, say: Callable[[str], None] = lambda _: None
) -> Pushed:
    """Upload a store to a dataset, which is created if it does not exist. Run again, it uploads what is missing.

    Args:
        vectors: The store.
        target: The dataset; its revision is a branch.
        share: What to upload; see ``shared_paths``.
        public: Whether a dataset that is created is public.
        say: Called with a line of text for every commit.

    Raises:
        InputError: There is nothing to share, a driver works on the run, the dataset holds another store, or there is
            no token that may write.
        TransientError: The hub cannot be reached; a later call goes on.
    """
    location = vectors.location
    refuse_if_driven(location)
    sizes = shared_paths(location, share)
    if share == "vectors" and layout.CURRENT_REDUCTION not in sizes:
        raise InputError(
            f"the run at {vectors.url} was not reduced, so it has no vectors to share.",
            code="not_reduced",
            field="STORE",
            hint=f"persona-atlas reduce {vectors.url} computes them; --only all shares the run without them.",
        )
    with hub_errors(str(target)):
        remote = _prepare(target, public=public)
        missing = _missing(location, sizes, remote, target)
        _mark(vectors, share, sizes, remote, target)
        _commit_all(location, missing, sizes, target, say)
        if _place(target, CARD) not in remote:
            card = dataset_card(vectors, str(target), share).encode()
            _commit({CARD: card}, target, "Add a dataset card")
    return Pushed(str(target), len(missing), sum(sizes[path] for path in missing), len(sizes) - len(missing))


def _place(target: HubUrl, path: str) -> str:
    return f"{target.path}/{path}" if target.path else path


def _prepare(target: HubUrl, *, public: bool) -> dict[str, RemoteFile]:
    """Create the dataset if need be, and list its files."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(target.repo_id, repo_type="dataset", private=not public, exist_ok=True)
    return remote_files(target)


def _missing(location: Location, sizes: dict[str, int], remote: dict[str, RemoteFile], target: HubUrl) -> list[str]:
    """List the objects to upload; those that differ from a file which may not change are refused."""
    missing: list[str] = []
    differing: list[str] = []
    for path, size in sizes.items():
        there = remote.get(_place(target, path))
        if there is None:
            missing.append(path)
        elif there.num_bytes != size or there.content_id not in content_ids(location.read(path) or b""):
            may_change = may_be_replaced(path) or (path == layout.RUN_RECORD and _has_grown(location, target))
            (missing if may_change else differing).append(path)
    if differing:
        raise InputError(
            f"{target} holds another store: {named(differing)} differ.",
            code="other_store",
            field="HUB_URL",
            hint="Push to another dataset, or to a folder in it: hf://datasets/OWNER/NAME/FOLDER.",
        )
    return missing


def _has_grown(location: Location, target: HubUrl) -> bool:
    there, here = HubLocation(str(target)).read(layout.RUN_RECORD), location.read(layout.RUN_RECORD)
    return there is not None and here is not None and is_grown(there, here)


def _mark(vectors: Vectors, share: Share, sizes: dict[str, int], remote: dict[str, RemoteFile], target: HubUrl) -> None:
    """Mark a dataset that gets a run's vectors only, or take the mark from one that gets the rest too."""
    from huggingface_hub import CommitOperationDelete, HfApi

    place = _place(target, layout.VECTORS_ONLY)
    is_marked = place in remote
    # A whole copy that was shared before stays one.
    has_rollouts = any(path.startswith(f"{_place(target, layout.COMMITS)}/") for path in remote)
    if share == "vectors" and isinstance(vectors, Run) and not is_marked and not has_rollouts:
        _commit({layout.VECTORS_ONLY: b'{"shared": "vectors"}\n'}, target, "Say that only the vectors are here")
    if share == "all" and is_marked and layout.VECTORS_ONLY not in sizes:
        HfApi().create_commit(
            target.repo_id,
            [CommitOperationDelete(path_in_repo=place)],
            commit_message="Add the rollouts",
            repo_type="dataset",
            revision=target.revision,
        )


def _commit_all(
    location: Location, missing: list[str], sizes: dict[str, int], target: HubUrl, say: Callable[[str], None]
) -> None:
    done = 0
    for part in batches(missing, sizes, _MAX_FILES, _MAX_BYTES):
        contents = {path: location.read(path) for path in part}
        gone = [path for path, data in contents.items() if data is None]
        if gone:
            raise InputError(
                f"{named(gone)} was deleted meanwhile.", code="changed_store", field="STORE", hint="Push again."
            )
        done += len(part)
        say(f"Uploading {done:,} of {count_of(len(missing), 'file')}.")
        _commit(
            {path: data for path, data in contents.items() if data is not None}, target, f"Add {part[0]} and others"
        )


def _commit(contents: dict[str, bytes], target: HubUrl, message: str) -> None:
    from huggingface_hub import CommitOperationAdd, HfApi

    operations: list[Any] = [
        CommitOperationAdd(path_in_repo=_place(target, path), path_or_fileobj=data) for path, data in contents.items()
    ]
    HfApi().create_commit(
        target.repo_id,
        operations,
        commit_message=message,
        repo_type="dataset",
        revision=target.revision,
    )
