"""A store URL has one meaning, or is refused with the field and the reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.files.store_url import normal_store_url
from persona_atlas.jobs.specs.spec import make_spec


@pytest.mark.parametrize(
    "url",
    [
        "s3://b3/a/b",
        "s3://b3//a//b",
        "s3://b3/a/b/",
        "s3://b3/a/b///",
        "s3://b3/./a/b",
        "s3://b3/a/././b/.",
        "s3:////b3/a/b",
    ],
)
def test_empty_parts_and_dots_of_a_prefix_are_dropped(url: str):
    assert normal_store_url(url) == "s3://b3/a/b"


@pytest.mark.parametrize(
    "prefix", ["a b", "ä/ü", "a%2Fb", "a%20b", "a?b", "a#b", "a+b", "a*b[c]", "~/x", "...", "a..b", "a\\b"]
)
def test_everything_else_in_a_prefix_is_kept_as_it_is(prefix: str):
    assert normal_store_url(f"s3://bucket/{prefix}") == f"s3://bucket/{prefix}"


@pytest.mark.parametrize(
    "path", ["runs/mine", "./runs//mine/../other", "/a/./b/", "C:/runs", "~/x", "a b?#%20", "runs/s3:/x"]
)
def test_a_directory_is_the_file_systems_to_resolve(path: str):
    assert normal_store_url(path) == path


@given(st.lists(st.text("ab./ %?#ü", max_size=4).filter(lambda text: ".." not in text.split("/")), max_size=5))
def test_a_normal_url_stays_as_it_is(parts: list[str]):
    normal = normal_store_url("s3://bucket/" + "/".join(parts))
    assert normal_store_url(normal) == normal
    assert not {"", ".", ".."} & set(normal.removeprefix("s3://").split("/"))


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("", "bad_path"),
        ("  ", "bad_path"),
        ("runs/a\0b", "bad_path"),
        ("s3://bucket/a/../b", "bad_store_url"),
        ("s3://bucket/..", "bad_store_url"),
        ("s3://bucket/a\nb", "bad_store_url"),
        ("s3://bucket/a\x7fb", "bad_store_url"),
        ("s3://bucket/a\udcffb", "bad_store_url"),
        ("s3://bucket/a?versionId=1", "bad_store_url"),
        ("s3://KEY:hunter2@bucket/x", "bad_store_url"),
        ("s3://", "no_bucket"),
        ("s3:///", "no_bucket"),
        ("s3://./a", "no_bucket"),
        ("s3://my bucket/a", "no_bucket"),
        ("s3://bücket/a", "no_bucket"),
        ("s3://../a", "no_bucket"),
        ("s3:/bucket/a", "unknown_scheme"),
        ("s3:bucket/a", "unknown_scheme"),
        ("S3://bucket/a", "unknown_scheme"),
        ("s3a://bucket/a", "unknown_scheme"),
        ("file:///runs/mine", "unknown_scheme"),
        ("file:/runs/mine", "unknown_scheme"),
        ("gs://bucket/a", "unknown_scheme"),
        ("https://KEY:hunter2@host/a", "unknown_scheme"),
    ],
)
def test_what_has_no_one_meaning_is_refused(url: str, code: str):
    with pytest.raises(InputError) as caught:
        normal_store_url(url)
    assert (caught.value.code, caught.value.field) == (code, "store.url")
    assert caught.value.hint
    assert "hunter2" not in str(caught.value)


def test_a_spec_holds_the_normal_form():
    spec = make_spec({"model": {"source": "m"}, "store": {"url": "s3://bucket//a/./b/"}})
    assert spec.store.url == "s3://bucket/a/b"
