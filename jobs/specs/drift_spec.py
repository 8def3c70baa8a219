"""The section ``drift`` of a job spec: conversations with a simulated user, and who plays that user."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PrivateAttr, field_validator, model_validator

from ..dialogues.topics import BUILTIN
from ..files.yaml_file import NO_BOOLEAN
from .spec_parts import MAX_COUNT, GenerationSpec, SamplingSpec, SpecSection

SAME = "same"
"""Name of the user's model where it is the model under study."""

_Count = Annotated[int, Field(ge=1, le=MAX_COUNT), NO_BOOLEAN]
_SERVER_FIELDS = ("concurrency", "timeout_s", "api_key_env")


class SimulatedUserSpec(SpecSection):
    """Who plays the user: a model on a server, or one that the workers run beside the model under study.

    Attributes:
        endpoint: Base URL of a server with the OpenAI protocol; None: the workers run the user's model.
        model: Name of the model on the server; without one ``same``, or a model as ``model.source`` names it.
        max_new_tokens: Most tokens of a message.
        temperature: Sampling temperature; 0 is greedy decoding.
        top_p: Nucleus sampling.
        concurrency: Requests in flight of each replica; of a server only, as the next two.
        timeout_s: Timeout of one request in seconds.
        api_key_env: Name of the environment variable that holds the API key; see ``GenerationSpec``.
    """

    endpoint: str | None = None
    model: Annotated[str, Field(min_length=1)]
    max_new_tokens: _Count = 160
    temperature: Annotated[float, Field(ge=0, le=10), NO_BOOLEAN] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1), NO_BOOLEAN] = 0.9
    concurrency: Annotated[int, Field(ge=1, le=1024), NO_BOOLEAN] = 32
    timeout_s: Annotated[float, Field(gt=0), NO_BOOLEAN] = 600.0
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    _is_from_store: bool = PrivateAttr(default=False)

    @field_validator("endpoint")
    @classmethod
    def _is_a_plain_url(cls, url: str | None) -> str | None:
        return None if url is None else GenerationSpec.model_validate({"endpoint": url}).endpoint

    @model_validator(mode="after")
    def _has_what_it_uses(self) -> SimulatedUserSpec:
        SamplingSpec.model_validate(self.sampling.model_dump())
        if self.endpoint is None and self.api_key_env is not None:
            raise ValueError("api_key_env is sent to a server, and there is no endpoint")
        return self

    @property
    def sampling(self) -> SamplingSpec:
        """How the user's messages are sampled."""
        return SamplingSpec(temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_new_tokens)

    @property
    def server(self) -> GenerationSpec | None:
        """The server that plays the user; None where a model of the workers does."""
        if self.endpoint is None:
            return None
        fields = {name: getattr(self, name) for name in _SERVER_FIELDS}
        server = GenerationSpec(endpoint=self.endpoint, model=self.model, **fields)
        return server.marked(is_from_store=self._is_from_store)

    @property
    def is_same(self) -> bool:
        """Whether the model under study plays the user too."""
        return self.endpoint is None and self.model == SAME

    def marked(self, *, is_from_store: bool) -> SimulatedUserSpec:
        """Copy it, and remember whether it was read from a store or a job; see ``GenerationSpec.marked``."""
        copied = self.model_copy()
        copied._is_from_store = is_from_store
        return copied

    @property
    def is_from_store(self) -> bool:
        """Whether it was read from a store or a job, so that others than the user may have written it."""
        return self._is_from_store

    def identity(self) -> dict[str, Any]:
        """Return what decides its messages: not where the server is, nor how it is reached."""
        names = ("model", "max_new_tokens", "temperature", "top_p")
        return {name: getattr(self, name) for name in names} | {"is_served": self.endpoint is not None}


class DriftSpec(SpecSection):
    """Conversations between the model and a simulated user.

    Attributes:
        conversations: ``builtin``, or a directory with a file for each domain.
        domains: Names of domains; None: all.
        per_domain: Conversations of each domain, of every person the first topic, then the second, and so on; None:
            all.
        exchanges: Most exchanges of a conversation, each a message of the user and an answer.
        user: Who plays the user.
    """

    conversations: Annotated[str, Field(min_length=1)] = BUILTIN
    domains: Annotated[list[str], Field(min_length=1)] | None = None
    per_domain: _Count | None = None
    exchanges: Annotated[int, Field(ge=1, le=1000), NO_BOOLEAN] = 15
    user: SimulatedUserSpec

    @field_validator("domains")
    @classmethod
    def _each_once(cls, names: list[str] | None) -> list[str] | None:
        if names is not None and len(set(names)) != len(names):
            raise ValueError("an entry is listed twice")
        return names

    def marked(self, *, is_from_store: bool) -> DriftSpec:
        """Copy it, and remember whether it was read from a store or a job; see ``GenerationSpec.marked``."""
        return self.model_copy(update={"user": self.user.marked(is_from_store=is_from_store)})

    def identity(self) -> dict[str, Any]:
        """Return what decides the results; the texts count, which the plan's digest covers, and not their place."""
        return {"exchanges": self.exchanges, "user": self.user.identity()}
