"""Parts of the fault tests: an S3 server behind a proxy that takes faults, and a job on it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from persona_atlas.jobs.specs.spec import JobSpec

from fault_jobs import small_job, tiny_job
from fault_proxy import FaultProxy, fault_proxy


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[FaultProxy]:
    """A proxy in front of the S3 server, without faults so far."""
    with fault_proxy(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture
def tiny(proxy: FaultProxy, s3_bucket: str) -> JobSpec:
    """A job of two units whose store is reached through the proxy."""
    return tiny_job(f"s3://{s3_bucket}/{uuid.uuid4().hex[:12]}", proxy.endpoint_url)


@pytest.fixture
def small(proxy: FaultProxy, s3_bucket: str) -> JobSpec:
    """A job of twelve units whose store is reached through the proxy."""
    return small_job(f"s3://{s3_bucket}/{uuid.uuid4().hex[:12]}", proxy.endpoint_url)
