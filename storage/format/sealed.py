"""What all JSON records of a store have in common: strict fields, a readable form, and a seal over what they say."""

from __future__ import annotations

import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from ...jobs.specs.spec import digest_of


class Record(BaseModel):
    """A record: unknown fields and later changes are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_bytes(self) -> bytes:
        """Encode as indented JSON, readable for people."""
        return (self.model_dump_json(indent=2) + "\n").encode()


class Sealed(Record):
    """A record with a digest of its other fields, ``seal``, so that parsing detects damage and edits."""

    seal: str

    @classmethod
    def sealed(cls, **body: Any) -> Self:
        """Make a record and compute its seal."""
        unsealed = cls.model_construct(seal="", **body)
        return cls(seal=digest_of(unsealed.model_dump(mode="json", exclude={"seal"})), **body)

    @staticmethod
    def is_intact(data: bytes) -> bool:
        """Whether the seal matches the stored bytes; not those of the model, so that fields may be added later."""
        body = json.loads(data)
        return body.pop("seal", None) == digest_of(body)


class VersionedRecord(Sealed):
    """A sealed record whose form has a version.

    Attributes:
        version: Version of the form; increased when an older reader would misread a new record.
    """

    version: int
