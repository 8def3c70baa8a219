"""Share what botocore knows of S3 between the sessions of a process.

botocore describes services and their endpoints in files of JSON. Each session reads those that it needs, and every
location has a session of its own: that was two thirds of the CPU time of opening one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from botocore.exceptions import ProfileNotFound


def share_descriptions(session: Any) -> None:
    """Give a session the loader that other sessions use, which keeps what it has read.

    Args:
        session: A ``botocore.session.Session`` that has made no client; unchanged if its AWS profile does not exist,
            which its first request reports.
    """
    try:
        data_path: str | None = session.get_config_variable("data_path")
    except ProfileNotFound:
        return
    session.register_component("data_loader", _loader(data_path))


@cache
def _loader(data_path: str | None) -> Any:
    """Return the loader for ``data_path``, botocore's setting that names folders of a user's own descriptions."""
    from botocore.loaders import create_loader

    return create_loader(data_path)
