"""No secret of a known form is printed or stored, and nothing else is hidden."""

from __future__ import annotations

import pickle

import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.redaction import value_without_secrets, without_secrets
from persona_atlas.jobs.scheduling.ledger import Failure

SECRET = "geheim99"

WITH_SECRETS = [
    f"http://user:{SECRET}@host:9000/x failed",
    f"cannot reach 'https://{SECRET}@host/v1'",
    f"http://user:{SECRET}/with/slashes@host:9000",
    f"http://user:{SECRET}?and=more@host",
    f"socks5://user:{SECRET}@proxy:1080 refused",
    f"s3://KEY:{SECRET}/x@bucket/run",
    f"https://host/key?X-Amz-Algorithm=AWS4&X-Amz-Credential={SECRET}&X-Amz-Date=1",
    f"https://host/key?X-Amz-Signature={SECRET}",
    f"https://host/key?a=1&X-Amz-Security-Token={SECRET}&b=2",
    f"https://host/key?AWSAccessKeyId=1&Signature={SECRET}&Expires=1",
    f"https://host/v1?api_key={SECRET}",
    f"https://host/v1?api-key={SECRET}#top",
    f"AWS_SECRET_ACCESS_KEY={SECRET} and more",
    f"aws_session_token = {SECRET}",
    f"Illegal header value b'Bearer {SECRET}'",
    f"Authorization: Basic {SECRET}==",
]

HARMLESS = [
    "http://host:9000/a@b",
    "s3://bucket/me@host/run",
    "s3://bucket/a:b/c@d",
    "https://host:443/x?versionId=3&prefix=a",
    "write to me@host or to http://host/x",
    "max_new_tokens=512 and token_layers=[12]",
    "sampling.temperature=0.7",
    "the bearer of news",
]


@pytest.mark.parametrize("text", WITH_SECRETS)
def test_a_secret_is_replaced(text: str):
    found = without_secrets(text)
    assert SECRET not in found
    assert "***" in found
    assert without_secrets(found) == found


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str):
    assert without_secrets(text) == text


@pytest.mark.parametrize("text", WITH_SECRETS)
def test_errors_and_failures_hold_none(text: str):
    error = InputError(f"failed: {text}", code="bad_value", file=text, hint=f"Look at {text}")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    failure = Failure("unit", 1, text, f"Traceback\n{text}")
    for found in (str(error), str(error.as_dict()), repr(error), str(copy), str(failure)):
        assert SECRET not in found


def test_values_keep_their_shape():
    value = {"a": [WITH_SECRETS[0], 3, None, {"b": HARMLESS[0]}], "c": 1.5, "d": True}
    found = value_without_secrets(value)
    assert found == {"a": ["http://***@host:9000/x failed", 3, None, {"b": HARMLESS[0]}], "c": 1.5, "d": True}
