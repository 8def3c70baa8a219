"""The record of a judge: what scored the rollouts of a run under one name. Holds no credentials."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ...jobs.errors import StoreError

JudgeSource = Literal["endpoint", "engine", "import"]


class JudgeRecord(BaseModel):
    """What is kept of a judge beside its scores, in ``scores/<judge>/judge.json``.

    Attributes:
        name: Name of the judge.
        source: ``endpoint``: a model on a server; ``engine``: a model that this project ran; ``import``: scores from a
            file, whose judge is not known.
        model: Name of the model on the server, or its source; None for imported scores.
        endpoint: Address of the server without credentials; None without one.
        rubrics: Digest of the judge prompt of each persona that was judged, by ``kind/name``; empty for imported
            scores.
        max_tokens: Most tokens of a reply; 0 for imported scores.
        files: Names of the imported files or directories, without their folders.
        versions: Software that judged, by name of the package.
        created_at: ISO 8601, in UTC.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    source: JudgeSource
    model: str | None = None
    endpoint: str | None = None
    rubrics: dict[str, str] = {}
    max_tokens: int = 0
    files: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    created_at: str = ""

    def to_bytes(self) -> bytes:
        """Encode as indented JSON, readable for people."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def parse_judge_record(data: bytes, url: str) -> JudgeRecord:
    """Parse a stored record.

    Args:
        data: The object.
        url: Its URL, for the error.

    Raises:
        StoreError: It is no record of a judge.
    """
    try:
        return JudgeRecord.model_validate_json(data)
    except ValidationError:
        raise StoreError(
            "is no record of a judge.",
            code="bad_record",
            file=url,
            hint="Delete it: the scores beside it stay, and only what gave them is lost.",
        ) from None
