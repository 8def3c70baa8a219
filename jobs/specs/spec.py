"""The job spec: one YAML file that says what to run, validated before anything runs.

The fields that decide the results (which rollouts, of which model, how sampled and captured) are the *identity* of a
run. All others (where it is stored, how it is distributed) may differ between two starts of one run. Knows nothing of a
model's architecture: whether a layer exists is checked by the plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from ..dialogues.topics import BUILTIN
from ..errors import InputError
from ..files.spec_file import GivenSpec, read_spec
from ..files.store_url import normal_store_url
from ..files.yaml_file import NO_BOOLEAN, validate
from ..poolings import POOLINGS, prompt_poolings
from .derived_fields import with_derived_fields
from .drift_spec import DriftSpec
from .harm_spec import HarmSpec
from .interventions_spec import InterventionSpec
from .spec_parts import (
    COMPLETION_TEMPLATE,
    CaptureSpec,
    GenerationSpec,
    ModelSpec,
    PersonasSpec,
    PlacementSpec,
    PromptsSpec,
    SamplingSpec,
    SpecSection,
)
from .store_spec import StoreSpec
from .texts_spec import ConversationsSpec, PrefillsSpec

_TURNS = ("conversations", "prompts", "drift", "prefills", "harm")
"""Sections of which a job has one at most, in the place of personas: its rollouts are turns of conversations."""


class JobSpec(SpecSection):
    """A job. ``docs/spec.md`` lists every field with its default.

    Attributes:
        model: The model.
        personas: Personas, and the number of rollouts of each.
        conversations: Existing conversations to read instead; None: rollouts are generated.
        prompts: Prompts of a file to answer instead of the personas'; None: rollouts of the personas are generated.
        drift: Conversations with a simulated user to have instead; None: rollouts of the personas are generated.
        prefills: Openings of text to complete instead, without a chat template; None: as for ``prompts``.
        harm: Roles that answer a neutral question and then a request of a file; None: as for ``prompts``.
        generation: Server that generates; None: the workers generate.
        sampling: How responses are sampled.
        capture: Which activations are stored.
        interventions: Edits of the residual stream while the model runs, applied in this order; None for none.
        placement: How the work is distributed.
        store: Where the run is stored.
        seed: Seed from which, with its address, the seed of every rollout is derived.

    Example:
        >>> spec = load_spec("job.yaml")
        >>> spec.model.source, spec.personas.roles.names
        ('models/tiny', ['pirate', 'poet', 'teacher'])
    """

    model: ModelSpec
    personas: PersonasSpec = PersonasSpec()
    conversations: ConversationsSpec | None = None
    prompts: PromptsSpec | None = None
    drift: DriftSpec | None = None
    prefills: PrefillsSpec | None = None
    harm: HarmSpec | None = None
    generation: GenerationSpec | None = None
    sampling: SamplingSpec = SamplingSpec()
    capture: CaptureSpec = CaptureSpec()
    interventions: Annotated[list[InterventionSpec], Field(min_length=1)] | None = None
    placement: PlacementSpec = PlacementSpec()
    store: StoreSpec
    seed: Annotated[int, Field(ge=0, lt=2**63), NO_BOOLEAN] = 0

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, data: Any) -> Any:
        return with_derived_fields(data) if isinstance(data, dict) else data

    @field_validator("capture")
    @classmethod
    def _pools_what_exists(cls, capture: CaptureSpec, info: ValidationInfo) -> CaptureSpec:
        conversations = info.data.get("conversations")
        if conversations is not None and conversations.rendering == "tokens" and capture.needs_user_spans:
            raise ValueError(
                "poolings has user_mean, and where the user's message is among stored token ids is not known; leave it "
                "out, or choose another conversations.rendering"
            )
        if conversations is None or not conversations.prompts_only:
            return capture
        undefined = [name for name in capture.poolings if not POOLINGS[name].defined_without_response]
        if undefined:
            raise ValueError(
                f"poolings has {', '.join(undefined)}, but with conversations.prompts_only (extract: --prompts-only) "
                f"there is no response to pool; choose among {', '.join(prompt_poolings())}"
            )
        return capture

    @field_validator("interventions")
    @classmethod
    def _by_the_model_that_answers(cls, interventions: Any, info: ValidationInfo) -> Any:
        if interventions is not None and info.data.get("generation") is not None:
            raise ValueError(
                "a server would generate the responses without them, and they would be read with them; leave "
                "generation out, or capture texts that exist with conversations"
            )
        return interventions

    @model_serializer(mode="wrap")
    def _without_what_is_unused(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A spec without one of these has the bytes that it had before there were any.
        fields = write(self)
        for name in ("interventions", "prompts", "drift", "prefills", "harm"):
            if getattr(self, name) is None:
                fields.pop(name, None)
        if not self.capture.before_intervention and "capture" in fields:
            fields["capture"].pop("before_intervention", None)
        if self.capture.canary.action is None and "canary" in fields.get("capture", {}):
            fields["capture"]["canary"].pop("action", None)
        if self.placement.weights == "auto" and "placement" in fields:
            fields["placement"].pop("weights", None)
        return fields

    @model_validator(mode="after")
    def _is_consistent(self) -> JobSpec:
        by_prefill = self.conversations is not None or self.generation is not None
        if by_prefill != (self.capture.mode == "prefill_pass"):
            asks = "texts from elsewhere need prefill_pass" if by_prefill else "nothing gives it texts"
            raise ValueError(f"capture.mode is {self.capture.mode}, but {asks}; leave it out, it follows from the rest")
        sections = [name for name in _TURNS if getattr(self, name) is not None]
        sections += ["personas"] if self.personas != PersonasSpec() else []
        if len(sections) > 1:
            raise ValueError(f"a job has either {' or '.join(sections)}: leave one of the two out")
        if self.conversations is not None and self.generation is not None:
            raise ValueError("conversations need no generation: leave generation out")
        if self.drift is not None:
            self._require_user(self.drift)
        if self.prefills is not None:
            self._require_no_template()
        if self.has_turns:
            return self
        if not self.personas.roles.names and not self.personas.traits.names and self.personas.default.prompts == 0:
            raise ValueError("personas selects nobody: name roles or traits, or give the default at least one prompt")
        return self

    def _require_user(self, drift: DriftSpec) -> None:
        """Refuse a user whom the engine of the job cannot run."""
        if drift.user.is_same and self.generation is not None:
            raise ValueError(
                "drift.user.model is same, but a server generates; name that server in drift.user.endpoint too"
            )
        if drift.user.endpoint is None and self.placement.engine == "vllm":
            raise ValueError(
                "placement.engine is vllm, and a simulated user without drift.user.endpoint needs the built-in engine; "
                "serve the user's model, or set placement.engine to builtin"
            )

    def _require_no_template(self) -> None:
        """Refuse what would put a chat template around the openings of ``prefills``."""
        if self.model.chat_template != COMPLETION_TEMPLATE:
            raise ValueError("prefills are completed without a chat template: leave model.chat_template out")
        if self.generation is not None:
            raise ValueError("prefills are completed by the workers, a server would render them: leave generation out")

    def replaced(self, **sections: Mapping[str, Any]) -> JobSpec:
        """Return a copy with other values of some fields, validated like a spec that was read.

        Args:
            **sections: New values by field, for each section that changes.

        Raises:
            InputError: A value is invalid; names its field.

        Example:
            >>> load_spec("job.yaml").replaced(store={"url": "s3://bucket/run"}).store.url
            's3://bucket/run'
        """
        data = self.model_dump()
        for section, changes in sections.items():
            data[section] = data[section] | changes
        changed = validate(JobSpec, data, text="", file="")
        # The mark is no field, and must not be lost: it keeps keys from a server that others have written in.
        marked: dict[str, Any] = {}
        if self.generation is not None and changed.generation is not None:
            marked["generation"] = changed.generation.marked(is_from_store=self.generation.is_from_store)
        if self.drift is not None and changed.drift is not None:
            marked["drift"] = changed.drift.marked(is_from_store=self.drift.user.is_from_store)
        return changed.model_copy(update=marked) if marked else changed

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide the results, as JSON values; two specs of one run must agree in them."""
        whole = self.model_dump(mode="json")
        keep = {key: whole[key] for key in ("model", "capture")}
        keep["mantissa_bits"] = self.store.mantissa_bits
        # Runs from before a field existed must keep their digest.
        # What is checked changes no stored value.
        del keep["capture"]["canary"]
        # The text counts and not the path it was read from; the plan's digest covers the text.
        del keep["model"]["chat_template"]
        if not self.capture.keeps_tokens:
            del keep["capture"]["token_layers"]
        if self.model.adapter is None:
            del keep["model"]["adapter"]
        # What the entries resolve to counts, and not how they are written; the plan's digest covers that.
        if self.interventions is not None:
            keep["interventions"] = True
        # The texts count and not the path they were read from; the plan's digest covers the texts.
        if self.conversations is not None:
            # A key of its own beside ``conversations``, which is true in runs from before the field existed.
            prompts = {"conversations.prompts_only": True} if self.conversations.prompts_only else {}
            rendering = {"conversations.rendering": self.conversations.rendering} if self.replays else {}
            return keep | {"conversations": True} | prompts | rendering
        keep |= {key: whole[key] for key in ("personas", "sampling", "seed")}
        if self.has_turns:
            del keep["personas"]
            # The plan's digest covers the texts of a file.
            asked = next((name for name in ("prefills", "harm") if getattr(self, name) is not None), "prompts")
            keep |= {asked: True} if self.drift is None else {"drift": self.drift.identity()}
        else:
            del keep["personas"]["catalog"]
        if self.generation is not None:
            keep["generation"] = {"model": self.served_model}
        return keep

    @property
    def replays(self) -> bool:
        """Whether the texts are those of a stored run."""
        return self.conversations is not None and self.conversations.texts_of is not None

    @property
    def reads_stored_tokens(self) -> bool:
        """Whether the texts are those of a stored run, by the token ids that they have there."""
        return self.conversations is not None and self.conversations.rendering == "tokens"

    @property
    def has_turns(self) -> bool:
        """Whether its rollouts are turns of conversations, which exist or are generated."""
        return any(getattr(self, name) is not None for name in _TURNS)

    @property
    def has_texts_in_files(self) -> bool:
        """Whether its texts are read from files of the user that are no catalog of personas."""
        return self.texts_path is not None

    @property
    def texts_path(self) -> str | None:
        """The user's file or directory with its texts; None where they are stored, built in, or of personas."""
        if self.drift is not None:
            return self.drift.conversations if self.drift.conversations != BUILTIN else None
        if self.prefills is not None:
            return self.prefills.source if self.prefills.source != BUILTIN else None
        if self.harm is not None:
            return self.harm.requests
        given = self.conversations or self.prompts
        return None if given is None else given.source

    @property
    def texts_field(self) -> str:
        """The field that says where the job's texts come from, for messages about them."""
        if self.conversations is not None:
            return "conversations.texts_of" if self.replays else "conversations.source"
        if self.drift is not None:
            return "drift.conversations"
        if self.prefills is not None:
            return "prefills.source"
        if self.harm is not None:
            return "harm.requests"
        return "personas.catalog" if self.prompts is None else "prompts.source"

    @property
    def served_model(self) -> str:
        """Name of the model on the server that generates."""
        return (self.generation and self.generation.model) or self.model.source

    @property
    def digest(self) -> str:
        """SHA-256 of the identity."""
        return digest_of(self.identity())


def digest_of(value: Any) -> str:
    """Hash a JSON value in canonical form: SHA-256 in hexadecimal.

    Example:
        >>> digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1})
        True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> JobSpec:
    """Read and validate a spec file.

    Args:
        path: The YAML file.
        overrides: ``key.path=value`` assignments, applied one after the other before validation.

    Raises:
        InputError: The file or an override is invalid; names the file, line and field.

    Example:
        >>> load_spec("examples/demo.yaml", ["seed=7"]).seed
        7
    """
    return _validated(read_spec(path, "a job spec").overridden(overrides))


def make_spec(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> JobSpec:
    """Validate a spec that was built from the options of a command.

    Args:
        data: The spec as a nested mapping.
        overrides: ``key.path=value`` assignments, applied one after the other before validation.

    Raises:
        InputError: A field is invalid; names it.

    Example:
        >>> spec = make_spec({"model": {"source": "models/tiny"}, "store": {"url": "runs/mine"}})
        >>> spec.sampling.temperature
        0.7
    """
    return _validated(GivenSpec(dict(data), file="the command line").overridden(overrides))


_STUDIES = (("sweep", "a sweep", "sweep"), ("pareto", "a Pareto study", "pareto"))
"""Sections that make several jobs of one spec: name, in words, and the command that runs them."""


def _validated(given: GivenSpec) -> JobSpec:
    for section, kind, command in _STUDIES:
        if isinstance(given.data, dict) and section in given.data:
            raise InputError(
                f"is a section of {kind}, and this command takes a single job.",
                code=f"is_a_{section}",
                field=section,
                file=given.file,
                hint=f"Run it with persona-atlas {command}.",
            )
    spec = validate(JobSpec, given.data, text=given.text, file=given.file)
    return spec.replaced(store={"url": normal_store_url(spec.store.url)})
