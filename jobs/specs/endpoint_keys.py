"""Which environment variable may be sent as a key to which server.

``generation.api_key_env`` names a variable of the workers' environment, whose value goes to ``generation.endpoint``. So
only variables that hold keys of chat servers may be named, and a spec that was read from a store or from a job, which
others may have written, sends none unless the user names the receiver. Pure: reads no environment.
"""

from __future__ import annotations

from ..errors import InputError
from .spec import JobSpec
from .spec_parts import GenerationSpec

OWN_PREFIX = "PERSONA_ATLAS_"
"""Variables with this prefix may be named, whatever follows it."""

SERVER_KEYS = ("OPENAI_API_KEY", "SGLANG_API_KEY", "VLLM_API_KEY")
"""Other variables that may be named: by their names they hold the key of a chat server, and nothing else."""


def from_store(spec: JobSpec) -> JobSpec:
    """Mark a spec as read from a store or a job."""
    if spec.generation is None:
        return spec
    return spec.model_copy(update={"generation": spec.generation.marked(is_from_store=True)})


def with_receiver(spec: JobSpec, receiver: str | None) -> JobSpec:
    """Let a spec from a store or a job send its key, if the user has named the server that receives it.

    Args:
        spec: The spec.
        receiver: The server that the user has named, as ``host:port`` or as the endpoint's URL; None: the user has
            named none, and the spec is returned as it is.

    Raises:
        InputError: The spec sends no key, or sends it to another server.
    """
    if receiver is None:
        return spec
    generation = spec.generation
    if generation is None or generation.api_key_env is None:
        raise InputError(
            "the spec sends no key to any server.", code="no_receiver", field="--send-key-to", hint="Leave it out."
        )
    if receiver.rstrip("/") not in (generation.host, generation.endpoint):
        raise InputError(
            f"is {receiver}, but the spec sends the key in {generation.api_key_env} to {generation.endpoint}.",
            code="other_receiver",
            field="--send-key-to",
            hint="Run the job from a spec file of your own, with the server that you mean.",
        )
    return spec.model_copy(update={"generation": generation.marked(is_from_store=False)})


def refuse_key(generation: GenerationSpec | None, field: str = "generation.api_key_env") -> None:
    """Refuse to send the value of an environment variable that is no key, or to a server that the user did not choose.

    Args:
        generation: The server; None where no server generates.
        field: Field of the spec or option that names the variable, for the error.

    Raises:
        InputError: The variable may not be named, or the spec comes from a store or a job.
    """
    if generation is None or generation.api_key_env is None:
        return
    name = generation.api_key_env
    if not name.startswith(OWN_PREFIX) and name not in SERVER_KEYS:
        raise InputError(
            f"is {name}, and only variables that hold the key of a chat server may be sent to one: "
            f"{', '.join(SERVER_KEYS)}, and names that begin with {OWN_PREFIX}.",
            code="no_such_key",
            field=field,
            hint=f"Set {OWN_PREFIX}KEY to the key where it is needed, and name that.",
        )
    if generation.is_from_store:
        raise InputError(
            f"the spec was read from a store or a job, and would send the key in {name} to {generation.endpoint}.",
            code="key_not_confirmed",
            field=field,
            hint=f"If that is your server, add --send-key-to {generation.host}; or run the job from your spec file.",
        )
