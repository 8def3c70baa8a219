"""URLs of datasets on the Hugging Face Hub: ``hf://datasets/OWNER/NAME[@REVISION][/PATH]``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from ..errors import InputError

HUB_SCHEME = "hf://"

_FIELD = "store.url"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_HINT = "Write hf://datasets/OWNER/NAME, with @REVISION and /PATH behind it if need be."


def is_hub(url: str) -> bool:
    """Whether a store URL names a dataset on the Hugging Face Hub.

    Example:
        >>> is_hub("hf://datasets/me/pirates"), is_hub("runs/mine")
        (True, False)
    """
    return url.startswith(HUB_SCHEME)


@dataclass(frozen=True, slots=True)
class HubUrl:
    """A folder in a dataset repository.

    Attributes:
        repo_id: Owner and name.
        revision: Branch, tag or commit; None: the default branch.
        path: Folder in the repository; empty: its root.
    """

    repo_id: str
    revision: str | None
    path: str

    def __str__(self) -> str:
        """Return the URL in its normal form."""
        at = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"{HUB_SCHEME}datasets/{self.repo_id}{at}{'/' + self.path if self.path else ''}"


def parse_hub_url(text: str) -> HubUrl:
    """Parse the URL of a dataset on the hub.

    Args:
        text: The URL; a slash in a revision is written ``%2F``.

    Raises:
        InputError: It names no dataset, or has an impossible name or a path with ``..``.

    Example:
        >>> found = parse_hub_url("hf://datasets/me/pirates@v1.0//qwen/")
        >>> found.repo_id, found.revision, found.path
        ('me/pirates', 'v1.0', 'qwen')
        >>> str(found)
        'hf://datasets/me/pirates@v1.0/qwen'
    """
    parts = [part for part in text.removeprefix(HUB_SCHEME).split("/") if part not in ("", ".")]
    if len(parts) < 3 or parts[0] != "datasets":
        raise InputError(f"{text!r} names no dataset.", code="bad_store_url", field=_FIELD, hint=_HINT)
    name, has_revision, revision = parts[2].partition("@")
    if not (_NAME.fullmatch(parts[1]) and _NAME.fullmatch(name)) or (has_revision and not revision):
        raise InputError(
            f"{parts[1]}/{parts[2]} cannot be the name of a dataset.", code="bad_store_url", field=_FIELD, hint=_HINT
        )
    if ".." in parts or any(not character.isprintable() for character in text):
        raise InputError(
            f"{text!r} has a part that no path on the hub can have.", code="bad_store_url", field=_FIELD, hint=_HINT
        )
    return HubUrl(f"{parts[1]}/{name}", unquote(revision) or None, "/".join(parts[3:]))
