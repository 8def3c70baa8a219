"""Make the s3fs filesystem of a location: credentials, checksums, encryption and payment of its requests.

AWS gets botocore's own checksums. Other servers may not know those, and some demand ``Content-MD5`` instead, which all
of them know: for objects under a lock, and for deletions.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import ProfileNotFound

from ...jobs.specs.store_spec import S3Access
from .s3_descriptions import share_descriptions

_CONNECTIONS = 64
"""Connections in the pool. botocore's default of 10 is less than the 32 reads that a query makes at a time."""

_CHECKSUM_SETTINGS = ("request_checksum_calculation", "response_checksum_validation")

_WITH_MD5 = ("PutObject", "UploadPart", "DeleteObjects")
"""Requests with a body that is stored or obeyed."""


def make_filesystem(
    endpoint_url: str | None, access: S3Access, credentials: Mapping[str, Any], *, asynchronous: bool
) -> Any:
    """Make an ``s3fs.S3FileSystem`` with a session, and so with credentials, of its own.

    Args:
        endpoint_url: URL of an S3-compatible server; None for AWS.
        access: How requests to the bucket are made.
        credentials: ``key``, ``secret`` and ``token`` as s3fs takes them; empty: those that botocore finds.
        asynchronous: Whether it is used in a running event loop, as Zarr does.
    """
    import s3fs
    from aiobotocore.session import AioSession

    session = AioSession()
    share_descriptions(session)
    config: dict[str, Any] = {"max_pool_connections": _CONNECTIONS}
    if endpoint_url is not None and not _user_chose_checksums(session):
        config |= dict.fromkeys(_CHECKSUM_SETTINGS, "when_required")
        for operation in _WITH_MD5:
            session.register(f"before-call.s3.{operation}", _add_content_md5)
    encryption = {"ServerSideEncryption": access.sse, "SSEKMSKeyId": access.sse_kms_key_id}
    # A cached listing would hide commits and leases that other processes write. A shared instance would be closed
    # together with the first of the locations that use it.
    return s3fs.S3FileSystem(
        endpoint_url=endpoint_url,
        anon=access.anonymous,
        session=session,
        asynchronous=asynchronous,
        use_listings_cache=False,
        skip_instance_cache=True,
        requester_pays=access.requester_pays,
        s3_additional_kwargs={name: value for name, value in encryption.items() if value is not None},
        client_kwargs={"region_name": access.region} if access.region is not None else {},
        config_kwargs=config,
        **credentials,
    )


def _user_chose_checksums(session: Any) -> bool:
    try:
        scoped: Mapping[str, Any] = session.get_scoped_config()
    except ProfileNotFound:
        # The first request reports it.
        return False
    return any(name in scoped or f"AWS_{name.upper()}" in os.environ for name in _CHECKSUM_SETTINGS)


def _add_content_md5(params: dict[str, Any], **_: Any) -> None:
    """Add the header to a request that botocore is about to sign."""
    body = params.get("body")
    if isinstance(body, io.BytesIO):
        # What botocore makes of the bytes of an object.
        body = body.getbuffer()
    if isinstance(body, bytes | bytearray | memoryview) and "Content-MD5" not in params["headers"]:
        digest = hashlib.md5(body, usedforsecurity=False).digest()
        params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()
