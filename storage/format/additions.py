"""``additions/<number>.json``: what was added to a run after it was begun. One record each, never changed."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from ...jobs.specs.endpoint_keys import from_store
from ...jobs.specs.spec import JobSpec
from .sealed import Sealed


class AdditionRecord(Sealed):
    """The record of one addition. Model, sampling, capture and encoding are those of the run; only rollouts are more.

    Attributes:
        number: Its place among the additions, from 1; part of its name.
        grown_from: Digest of the plan that it was added to, so that an addition of another run is not believed.
        plan_digest: Digest of the plan of the whole run since: identity of ``spec`` and model, and every text.
        spec: The spec of the whole run since, with defaults filled in.
        num_units: Number of units that were added.
        units_sha256: SHA-256 of the list of these units, as hexadecimal digits.
        num_rollouts: Number of rollouts that were added.
        rows: Rows of the whole run whose texts are not taken as they are; see ``TextSurvey.counts``.
        versions: Software that made the addition, by name of the package.
        created_at: ISO 8601, in UTC.
    """

    number: int
    grown_from: str
    plan_digest: str
    spec: Annotated[JobSpec, AfterValidator(from_store)]
    num_units: int
    units_sha256: str
    num_rollouts: int
    rows: dict[str, int]
    versions: dict[str, str]
    created_at: str
