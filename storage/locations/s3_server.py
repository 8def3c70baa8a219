"""Which S3 server requests go to. The choice is botocore's: this module asks it, and refuses what cannot be used.

botocore looks for ``AWS_ENDPOINT_URL_S3`` before ``AWS_ENDPOINT_URL``, then into the AWS profile, and honours
``AWS_IGNORE_CONFIGURED_ENDPOINT_URLS``. What it finds is reported, recorded, and sent to the workers of a cluster,
which may have another environment.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ConfigNotFound,
    ConfigParseError,
    InvalidConfigError,
    ProfileNotFound,
)

from ...jobs.errors import InputError
from ...jobs.files.store_url import is_s3
from ...jobs.specs.store_spec import S3Access, StoreSpec
from .s3_descriptions import share_descriptions

_ENDPOINT_FIELD = "store.endpoint_url"


@dataclass(frozen=True, slots=True)
class S3Server:
    """The server that botocore finds in the environment and the AWS profile.

    Attributes:
        endpoint_url: URL of an S3-compatible server; None for AWS.
        region: Region that requests are signed for; None when none is set.
    """

    endpoint_url: str | None
    region: str | None


def configured_server() -> S3Server:
    """Return the server of the environment and the AWS profile.

    Raises:
        InputError: There is no such profile, or the configuration cannot be read.
    """
    # Every location asks, and making botocore's clients takes a quarter of a second.
    return _configured_server(tuple(sorted((name, value) for name, value in os.environ.items() if name[:4] == "AWS_")))


@lru_cache(maxsize=16)
def _configured_server(_environment: tuple[tuple[str, str], ...]) -> S3Server:
    # Imported late: it takes a third of a second, which stores in directories need not wait for.
    from botocore.session import Session

    try:
        session = Session()
        share_descriptions(session)
        region = session.get_config_variable("region")
        chosen, default = (_endpoint(session, ignore_configured=ignored) for ignored in (False, True))
    except (ProfileNotFound, ConfigNotFound, ConfigParseError, InvalidConfigError) as error:
        raise InputError(
            f"the AWS configuration cannot be used: {str(error).removesuffix('.')}.",
            code="no_credentials" if isinstance(error, ProfileNotFound) else "bad_aws_configuration",
            field="store.url",
            hint="Check AWS_PROFILE and the files that AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE name.",
        ) from error
    except (ValueError, BotoCoreError) as error:
        # botocore refuses some URLs itself. Its error is not chained: it repeats the URL, with a password in it.
        raise bad_endpoint(str(error).removeprefix("Invalid endpoint: ")) from None
    return S3Server(None if chosen == default else chosen, region)


def resolved_access(store: StoreSpec) -> S3Access:
    """Return how a store's bucket is accessed from any machine: with this machine's region, unless the spec names one.

    Args:
        store: The section of the spec.

    Raises:
        InputError: There is no such AWS profile, or the configuration cannot be read.
    """
    if not is_s3(store.url) or store.region is not None:
        return store.access
    region = configured_server().region
    return S3Access.model_validate(store.access.model_dump() | {"region": region})


def _endpoint(session: Any, *, ignore_configured: bool | None) -> str:
    """Return the URL that a client for S3 would use, which is AWS's own if configured ones are ignored."""
    from botocore.config import Config

    # The credentials are never used. Without any, botocore would look for some, on the network too.
    client = session.create_client(
        "s3",
        aws_access_key_id="unused",
        aws_secret_access_key="unused",
        config=Config(ignore_configured_endpoint_urls=True if ignore_configured else None),
    )
    return client.meta.endpoint_url


def require_plain_endpoint(url: str) -> str:
    """Return the URL of a server, or refuse it, without repeating one that may hold a secret.

    Raises:
        InputError: It is not ``http(s)://host[:port][/path]``.
    """
    if re.fullmatch(r"https?://[^/\s@?#][^\s@?#]*", url):
        return url
    raise bad_endpoint(url)


def bad_endpoint(url: str) -> InputError:
    """Make the error for an endpoint that cannot be used; its URL is repeated only if it can hold no secret."""
    is_harmless = not re.search(r"[@?#]", url)
    return InputError(
        f"{url!r} is not the URL of a server."
        if is_harmless
        else "the URL of the server holds credentials, a query or a fragment.",
        code="bad_endpoint",
        field=_ENDPOINT_FIELD,
        hint="Write http://host:port or https://host, there or in AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or the AWS "
        "profile; set credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    )
