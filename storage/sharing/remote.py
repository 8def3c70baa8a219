"""What a dataset of the Hugging Face Hub holds, with ids by which contents are compared without downloading them."""

from __future__ import annotations

from dataclasses import dataclass

from ...jobs.files.hub_url import HubUrl


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on the hub.

    Attributes:
        num_bytes: Its length in bytes.
        content_id: SHA-256 of a large file, as hexadecimal digits; of a small one the SHA-1 of its git blob.
    """

    num_bytes: int
    content_id: str


def remote_files(target: HubUrl, revision: str | None = None) -> dict[str, RemoteFile]:
    """List the files of a dataset by their path in the repository. Errors are those of the hub's client.

    Args:
        target: The dataset.
        revision: Commit to list; None: that of the URL.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    entries = HfApi().list_repo_tree(
        target.repo_id, repo_type="dataset", revision=revision or target.revision, recursive=True
    )
    return {
        entry.path: RemoteFile(entry.size, entry.lfs.sha256 if entry.lfs is not None else entry.blob_id)
        for entry in entries
        if isinstance(entry, RepoFile)
    }
