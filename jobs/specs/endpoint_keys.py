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
    return _marked(spec, is_from_store=True)


def servers_of(spec: JobSpec) -> list[tuple[str, GenerationSpec]]:
    """Return the servers that a job sends requests to, each with the section of the spec that names it.

    Args:
        spec: The job.
    """
    user = None if spec.drift is None else spec.drift.user.server
    named = (("generation", spec.generation), ("drift.user", user))
    return [(section, server) for section, server in named if server is not None]


def refuse_keys(spec: JobSpec) -> None:
    """Refuse keys that a job may not send; see ``refuse_key``.

    Args:
        spec: The job.

    Raises:
        InputError: A variable may not be named, or the spec comes from a store or a job.
    """
    for section, server in servers_of(spec):
        refuse_key(server, f"{section}.api_key_env")


def _marked(spec: JobSpec, *, is_from_store: bool) -> JobSpec:
    generation, drift = spec.generation, spec.drift
    marked = {
        "generation": None if generation is None else generation.marked(is_from_store=is_from_store),
        "drift": None if drift is None else drift.marked(is_from_store=is_from_store),
    }
    return spec.model_copy(update={name: section for name, section in marked.items() if section is not None})


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
    keyed = [server for _, server in servers_of(spec) if server.api_key_env is not None]
    if not keyed:
        raise InputError(
            "the spec sends no key to any server.", code="no_receiver", field="--send-key-to", hint="Leave it out."
        )
    others = [server for server in keyed if receiver.rstrip("/") not in (server.host, server.endpoint)]
    if others:
        raise InputError(
            f"is {receiver}, but the spec sends the key in {others[0].api_key_env} to {others[0].endpoint}.",
            code="other_receiver",
            field="--send-key-to",
            hint="Run the job from a spec file of your own, with the server that you mean.",
        )
    return _marked(spec, is_from_store=False)


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
