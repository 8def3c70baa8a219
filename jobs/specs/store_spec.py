"""The section ``store`` of a job spec, and how a bucket is accessed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationInfo, field_validator, model_serializer

from ..errors import InputError
from ..files.hub_url import is_hub
from ..files.store_url import normal_store_url
from ..files.yaml_file import NO_BOOLEAN
from .spec_parts import SpecSection


class S3Access(SpecSection):
    """How requests to a bucket are made, apart from the server's URL. Holds no credentials.

    Attributes:
        region: Region that requests are signed for; None: that of the environment or the AWS profile.
        anonymous: Whether requests are sent unsigned, as a public bucket takes them.
        requester_pays: Whether the requester agrees to pay for requests, as the owner of some buckets demands.
        sse: Encryption at rest that the server is asked for with each object; None: the bucket's own.
        sse_kms_key_id: Key of ``aws:kms``; None: the bucket's own.
    """

    region: Annotated[str, Field(pattern=r"^[a-zA-Z0-9-]+$")] | None = None
    anonymous: bool = False
    requester_pays: bool = False
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    sse_kms_key_id: Annotated[str | None, Field(min_length=1, validate_default=True)] = None

    @field_validator("sse_kms_key_id")
    @classmethod
    def _of_kms_only(cls, key_id: str | None, info: ValidationInfo) -> str | None:
        if key_id is not None and "sse" in info.data and not (info.data["sse"] or "").startswith("aws:kms"):
            raise ValueError("is a key of aws:kms: set store.sse to aws:kms too, or leave it out")
        return key_id

    @model_serializer(mode="wrap")
    def _without_what_is_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A spec that uses none of these fields is stored as before they existed, and read by the versions of then.
        unset = {name for name, field in S3Access.model_fields.items() if getattr(self, name) == field.default}
        return {name: value for name, value in handler(self).items() if name not in unset}


class StoreSpec(S3Access):
    """Where the run is stored. Credentials are not part of it: they come from the environment or the instance's role.

    Attributes:
        url: A directory or ``s3://bucket/prefix``.
        endpoint_url: URL of an S3-compatible server; None: the one that botocore finds in the environment or the AWS
            profile, else AWS.
        mantissa_bits: Mantissa bits kept of each float32's 23; 10 gives float16's precision with float32's range.
    """

    url: Annotated[str, Field(min_length=1)]
    endpoint_url: str | None = None
    mantissa_bits: Annotated[int, Field(ge=1, le=23), NO_BOOLEAN] = 10

    @property
    def access(self) -> S3Access:
        """How requests to the bucket are made."""
        return S3Access(**{name: getattr(self, name) for name in S3Access.model_fields})

    @field_validator("url")
    @classmethod
    def _possible(cls, url: str) -> str:
        try:
            normal_store_url(url)
        except InputError as error:
            raise ValueError(f"{error.message} {error.hint or ''}".strip()) from None
        if is_hub(url):
            raise ValueError(
                "a run cannot be written to the Hugging Face Hub. Run it in a directory or on S3, then push it: "
                f"persona-atlas push STORE {url}"
            )
        return url

    @field_validator("endpoint_url")
    @classmethod
    def _no_credentials(cls, url: str | None) -> str | None:
        if url is not None and "@" in url:
            raise ValueError("an endpoint URL must not hold credentials; set them in the environment")
        return url
