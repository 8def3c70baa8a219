"""Open the source that a spec names: personas of a catalog, conversations that exist, or dialogues. Reads files.

Texts of a stored run need its store, and are opened by ``cluster/run/open_source.py``.
"""

from __future__ import annotations

from ..catalog import load_catalog
from ..dialogues.topics import load_conversations
from ..specs.spec import JobSpec
from .conversation_source import ConversationSource
from .dialogue_source import DialogueSource
from .drift_source import drift_dialogues
from .harm_dialogues import REQUESTS_FIELD, harm_dialogues
from .persona_source import PersonaSource
from .read_prefills import read_prefills
from .read_prompts import read_prompts
from .reading.read_conversations import read_conversations
from .source import RequestSource


def load_source(spec: JobSpec, catalog_directory: str | None = None) -> RequestSource:
    """Open the source of a job's requests.

    Args:
        spec: The job.
        catalog_directory: Path of the catalog on this machine if it differs from that in the spec; None: the spec's.

    Raises:
        InputError: A file is missing or breaks its format; names it.
        ValueError: The spec names the texts of a stored run.

    Example:
        >>> from persona_atlas.jobs.specs.spec import load_spec
        >>> load_source(load_spec("examples/demo.yaml")).generates
        True
    """
    if spec.conversations is not None:
        asked = spec.conversations
        if asked.source is None:
            raise ValueError("texts of a stored run are opened with its store")
        return ConversationSource.of(
            read_conversations(asked.source, skip_invalid=asked.skip_invalid, prompts_only=asked.prompts_only)
        )
    if spec.prompts is not None:
        return DialogueSource(read_prompts(spec.prompts.source), spec)
    if spec.drift is not None:
        catalog = load_conversations(spec.drift.conversations)
        return DialogueSource(drift_dialogues(catalog, spec.drift), spec, "drift.exchanges")
    if spec.prefills is not None:
        return DialogueSource(read_prefills(spec.prefills), spec, spec.texts_field)
    if spec.harm is not None:
        catalog = load_catalog(catalog_directory or spec.harm.catalog, "harm.catalog")
        dialogues = harm_dialogues(spec.harm, catalog, spec.seed, spec.model.display_name)
        return DialogueSource(dialogues, spec, REQUESTS_FIELD)
    return PersonaSource(spec, load_catalog(catalog_directory or spec.personas.catalog))
