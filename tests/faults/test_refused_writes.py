"""A bucket or a directory that may be read and not written: told before the model is loaded; what is there stays."""

from __future__ import annotations

import json
import os
import uuid

import boto3
import pytest
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.storage.locations.location import open_location

from fault_jobs import straight, tiny_job
from fault_proxy import Fault, FaultProxy, answer
from plain_driver import finish, run_driver
from whole_run import assert_whole

pytestmark = pytest.mark.s3

DENIED: Fault = answer(403, "AccessDenied")
ALWAYS = 10**6


def test_a_read_only_bucket_is_refused_before_the_model_is_loaded(proxy: FaultProxy, tiny: JobSpec):
    for method in ("PUT", "POST", "DELETE"):
        proxy.script(DENIED, method, times=ALWAYS)
    end = run_driver(tiny)
    assert (end.status, end.error["code"], end.error["field"]) == (2, "store_denied", "store.url")
    assert not end.model_was_loaded
    assert open_location(tiny.store.url, proxy.server_url).is_empty()
    proxy.clear()
    finish(tiny)
    assert_whole(straight(tiny, proxy))


def test_a_finished_run_in_a_bucket_that_became_read_only_is_still_finished_and_read(proxy: FaultProxy, tiny: JobSpec):
    finish(tiny)
    proxy.clear()
    for method in ("PUT", "POST", "DELETE"):
        proxy.script(DENIED, method, times=ALWAYS)
    finish(tiny)
    assert_whole(tiny)


@pytest.mark.parametrize("path", ["rollouts/*", "activations/*/c/*", "commits/*", "run.json", "activations/zarr.json"])
def test_rights_that_are_taken_away_in_the_middle_end_the_run_and_cost_nothing(
    proxy: FaultProxy, tiny: JobSpec, path: str
):
    proxy.script(DENIED, "PUT", f"?*/{path}", times=ALWAYS)
    end = run_driver(tiny)
    assert end.status in (1, 2)
    assert end.error.get("code") == "store_denied" or all("refused" in message for message in end.failures.values())
    assert end.error or end.failures
    proxy.clear()
    finish(tiny)
    assert_whole(straight(tiny, proxy))


@pytest.mark.skipif("ATLAS_TEST_S3" not in os.environ, reason="moto lets everybody write; a real server has policies")
def test_a_bucket_whose_policy_forbids_writing_is_refused_before_the_model_is_loaded(s3_endpoint: str):
    bucket = f"atlas-{uuid.uuid4().hex[:8]}"
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=bucket)
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:PutObject", "s3:DeleteObject"],
        "Resource": [f"arn:aws:s3:::{bucket}/*"],
    }
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    spec = tiny_job(f"s3://{bucket}/run", s3_endpoint)
    end = run_driver(spec)
    assert (end.status, end.error["code"], end.model_was_loaded) == (2, "store_denied", False)
    client.delete_bucket_policy(Bucket=bucket)
    finish(spec)
    assert_whole(spec)
