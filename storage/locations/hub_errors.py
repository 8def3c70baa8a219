"""Errors of the Hugging Face Hub's client as ``AtlasError``. The only place that knows their types."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...jobs.errors import AtlasError, InputError, TransientError
from ...jobs.machine_faults import refuse_machine_fault

_FIELD = "store.url"

_TOKEN_HINT = "Check the name; a private dataset needs a token that may read it: set HF_TOKEN, or run hf auth login."


@contextmanager
def hub_errors(url: str) -> Iterator[None]:
    """Raise what the hub's client raises as ``AtlasError``.

    Args:
        url: The URL that is read or written, for the message.
    """
    try:
        yield
    except AtlasError:
        raise
    except Exception as error:
        # A file that is missing is an answer, which the caller deals with.
        if type(error) is FileNotFoundError:
            raise
        refuse_machine_fault(error)
        # An upload that fails in a thread of the client is raised as a RuntimeError from its cause.
        cause = error.__cause__ if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception) else error
        found = _translate(cause, url)
        if found is None:
            raise
        raise found from error


def _translate(error: Exception, url: str) -> AtlasError | None:
    from huggingface_hub import errors

    reason = " ".join(str(error).split())[:200].rstrip(".")
    if isinstance(error, errors.GatedRepoError):
        return InputError(
            f"{url} is open only to those who were given access.",
            code="hub_denied",
            field=_FIELD,
            hint="Ask for access on the dataset's page, and set HF_TOKEN.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(
            f"there is no dataset at {url}, or it is private.", code="no_repo", field=_FIELD, hint=_TOKEN_HINT
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(
            f"{url} has no such branch, tag or commit.",
            code="no_revision",
            field=_FIELD,
            hint="Check what is behind the @.",
        )
    if isinstance(error, errors.LocalTokenNotFoundError):
        return InputError(
            "there is no token for the Hugging Face Hub.",
            code="no_token",
            field=_FIELD,
            hint="Set HF_TOKEN, or run hf auth login.",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return InputError(
            f"{url} cannot be reached: the hub's client is offline.",
            code="hub_offline",
            field=_FIELD,
            hint="Unset HF_HUB_OFFLINE.",
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            return InputError(
                f"the hub refused access to {url}: {status}.", code="hub_denied", field=_FIELD, hint=_TOKEN_HINT
            )
        if status == 429 or status >= 500:
            return TransientError(
                f"the hub is busy: {status}.", code="hub_busy", field=_FIELD, hint="Try again in some minutes."
            )
        return InputError(f"the hub refused a request about {url}: {reason}.", code="hub_refused", field=_FIELD)
    if isinstance(error, errors.HFValidationError):
        return InputError(f"{url} cannot be a dataset: {reason}.", code="bad_store_url", field=_FIELD)
    # Errors of the connection, of whichever HTTP library the client uses.
    if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.split(".")[0].startswith("httpx"):
        return TransientError(
            f"the hub cannot be reached: {reason}.",
            code="hub_unreachable",
            field=_FIELD,
            hint="Check the network and HF_ENDPOINT.",
        )
    if isinstance(error, RuntimeError):
        return TransientError(f"the hub's client failed: {reason}.", code="hub_failed", field=_FIELD, hint="Try again.")
    return None
