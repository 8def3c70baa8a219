"""A run that an earlier version split over two prefixes is explained, and whole again once its objects are together."""

from __future__ import annotations

import uuid

import boto3
import pytest
from persona_atlas.jobs.errors import StoreError
from persona_atlas.storage.query.run import open_run
from persona_atlas.storage.run.run_store import read_run_record
from persona_atlas.storage.verification.verify import verify_run

from fakes import small_plan, small_spec
from stored_runs import store_run

pytestmark = pytest.mark.s3


@pytest.fixture
def client(s3_endpoint: str):
    return boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")


def move(client, bucket: str, source: str, target: str) -> None:
    client.copy_object(Bucket=bucket, CopySource={"Bucket": bucket, "Key": source}, Key=target)
    client.delete_object(Bucket=bucket, Key=source)


@pytest.mark.usefixtures("s3_store_url")
def test_a_split_run_is_explained_and_read_once_it_is_in_one_place(client, s3_bucket: str):
    place = uuid.uuid4().hex[:12]
    typed = f"s3://{s3_bucket}/{place}//run"
    # The record names the URL as typed; earlier versions kept the objects that Zarr writes under that prefix.
    location = store_run(typed, small_plan(small_spec(typed)))
    moved = [path for path in location.sizes("") if path.endswith("zarr.json")]
    assert len(moved) > 2
    for path in moved:
        move(client, s3_bucket, f"{place}/run/{path}", f"{place}//run/{path}")
    for url in (typed, location.url):
        with pytest.raises(StoreError) as caught:
            open_run(url)
        assert (caught.value.code, caught.value.file) == ("split_store", location.url)
        assert f"aws s3 cp --recursive {typed}/ {location.url}/" in str(caught.value)
    for path in moved:
        move(client, s3_bucket, f"{place}//run/{path}", f"{place}/run/{path}")
    assert open_run(typed).activations(layer="all").shape[0] > 0
    assert {problem.kind for problem in verify_run(location).problems} == {"lag"}


@pytest.mark.usefixtures("s3_store_url")
def test_a_run_that_is_whole_is_read_by_every_form_of_its_url(s3_bucket: str):
    place = uuid.uuid4().hex[:12]
    typed = f"s3://{s3_bucket}/{place}/./run/"
    store_run(typed, small_plan(small_spec(typed)))
    for url in (typed, f"s3://{s3_bucket}/{place}/run", f"s3://{s3_bucket}//{place}//run"):
        assert open_run(url).completeness.is_complete
    record = read_run_record(open_run(typed).location)
    assert record is not None
    assert record.spec.store.url == typed
