"""The spec of a sweep: a job spec, and in a section ``sweep`` the settings under which its questions are asked.

Each setting becomes a job of its own: the same spec with the setting's ``interventions``. How a setting may be written
is resolved here to the entries that ``interventions`` has; what they do to a model is resolved later, with the axis.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ..errors import InputError
from ..files.spec_file import GivenSpec, read_spec
from ..files.store_url import normal_store_url
from ..files.yaml_file import validate
from ..interventions import Positions
from .interventions_spec import AbsoluteStrength, InterventionSpec, LayersAsked, parse_layers
from .spec import JobSpec
from .spec_parts import SpecSection

PLAIN = "plain"
"""Name of the setting without interventions, and one way to write it."""

_MOST_SETTINGS = 1000
_SHARED = ("axis", "reduction", "layers", "positions", "transfer")


class SweepSetting(SpecSection):
    """One setting: edits under which every question is asked.

    Attributes:
        name: How it is called in tables, and from which the folder of its run is named.
        interventions: The edits, applied in this order; none: the model as it is.
    """

    name: Annotated[str, Field(min_length=1, max_length=80)]
    interventions: tuple[InterventionSpec, ...] = ()

    @property
    def folder(self) -> str:
        """Name of the folder of its run: the name, with a dash for everything but letters, digits, ``.+-_``."""
        return re.sub(r"[^A-Za-z0-9.+_-]+", "-", self.name).strip("-.") or "setting"

    @property
    def strength(self) -> float | None:
        """The fraction of the norm that it steers by: 0 without edits; None where it does something else."""
        if not self.interventions:
            return 0.0
        only = self.interventions[0]
        return only.steer if len(self.interventions) == 1 and isinstance(only.steer, float) else None


class SweepSection(SpecSection):
    """The section ``sweep``.

    Attributes:
        axis: What the entries of settings name as their axis unless they say otherwise; None: each says it.
        reduction: Likewise the id of a reduction.
        layers: Likewise the layers.
        positions: Likewise the tokens.
        transfer: Likewise whether the axis may be another model's.
        settings: The settings, at least one. Each is a number (steer by this fraction of the norm; 0 does nothing), a
            label such as ``p0.25`` (cap), ``plain``, an entry of ``interventions``, a list of them, or a mapping of
            ``name`` and ``interventions``.
        rubric: Name or file of the rubric by which replies are judged; None: ``role_adoption``.
    """

    axis: Annotated[str, Field(min_length=1)] | None = None
    reduction: Annotated[str, Field(min_length=1)] | None = None
    layers: Annotated[LayersAsked, BeforeValidator(parse_layers)] | None = None
    positions: Positions = "all"
    transfer: bool = False
    settings: Annotated[list[SweepSetting], Field(min_length=1, max_length=_MOST_SETTINGS)]
    rubric: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("settings"), list):
            return data
        shared = {name: data[name] for name in _SHARED if data.get(name) is not None}
        return {**data, "settings": [_setting(asked, shared) for asked in data["settings"]]}


class _SweepFile(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    sweep: SweepSection


@dataclass(frozen=True)
class SweepSpec:
    """A sweep.

    Attributes:
        job: What is asked, of which model, how sampled and captured; its store is the folder of the whole sweep.
        section: The settings.

    Example:
        >>> sweep = make_sweep({
        ...     "model": {"source": "models/tiny"},
        ...     "personas": {"roles": {"names": ["pirate"]}},
        ...     "sweep": {"axis": "models/tiny-axis", "settings": [-0.3, 0, "p0.25"]},
        ...     "store": {"url": "runs/sweep"},
        ... })
        >>> [setting.name for setting in sweep.settings], sweep.job_of(sweep.settings[0]).store.url
        (['steer -0.3', 'plain', 'cap p0.25'], 'runs/sweep/settings/steer--0.3')
    """

    job: JobSpec
    section: SweepSection

    @property
    def settings(self) -> Sequence[SweepSetting]:
        """The settings, in the order of the spec."""
        return self.section.settings

    def job_of(self, setting: SweepSetting) -> JobSpec:
        """Return the job of one setting, whose store is a folder of the sweep's.

        Args:
            setting: One of ``settings``.
        """
        data = self.job.model_dump(exclude_none=True)
        data["store"]["url"] = setting_url(self.job.store.url, setting)
        if setting.interventions:
            data["interventions"] = [entry.model_dump(exclude_none=True) for entry in setting.interventions]
        return validate(JobSpec, data, text="", file="")


def setting_url(sweep_url: str, setting: SweepSetting) -> str:
    """Return the URL of a setting's run."""
    return f"{sweep_url}/settings/{setting.folder}"


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """Read and validate the spec of a sweep.

    Args:
        path: The YAML file: a job spec with a section ``sweep``.
        overrides: ``key.path=value`` assignments, applied one after the other before validation.

    Raises:
        InputError: The file, a field or an override is wrong; names file, line and field.
    """
    return sweep_of(read_spec(path, "the spec of a sweep").overridden(overrides))


def make_sweep(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> SweepSpec:
    """Validate the spec of a sweep that was built in Python; arguments and errors as for ``load_sweep``.

    Args:
        data: The spec as a nested mapping.
        overrides: See ``load_sweep``.
    """
    return sweep_of(GivenSpec(dict(data)).overridden(overrides))


def sweep_of(given: GivenSpec) -> SweepSpec:
    """Validate the spec of a sweep.

    Args:
        given: A job spec with a section ``sweep``.

    Raises:
        InputError: A field is wrong; names file, line and field.
    """
    section = validate(_SweepFile, given.data, text=given.text, file=given.file).sweep
    rest = {key: value for key, value in given.data.items() if key != "sweep"}
    job = validate(JobSpec, rest, text=given.text, file=given.file)
    _refuse_what_is_no_sweep(job)
    _refuse_equal_names(section.settings)
    job = job.replaced(store={"url": normal_store_url(job.store.url)})
    return SweepSpec(job, section)


def _refuse_what_is_no_sweep(job: JobSpec) -> None:
    """Refuse sections with which no setting would change what is generated."""
    hints = {
        "interventions": "Write what every setting has into each of them.",
        "generation": "A server generates without interventions: leave it out.",
        "conversations": "Ask personas; texts that exist are read under edits by extract.",
        "harm": "Ask the requests as prompts, which may have system prompts; persona-atlas harm runs this section.",
    }
    for field, hint in hints.items():
        if getattr(job, field) is not None:
            raise InputError(
                "cannot stand beside sweep: the settings say under which edits replies are generated.",
                code="not_in_a_sweep",
                field=field,
                hint=hint,
            )


def _refuse_equal_names(settings: Sequence[SweepSetting]) -> None:
    seen: dict[str, int] = {}
    for number, setting in enumerate(settings):
        first = seen.setdefault(setting.folder.casefold(), number)
        if first != number:
            raise InputError(
                f"settings {first} and {number}, {settings[first].name!r} and {setting.name!r}, would have the same "
                "folder.",
                code="equal_settings",
                field=f"sweep.settings.{number}",
                hint="Leave one of them out, or give it another name: {name: ..., interventions: [...]}.",
            )


def _setting(asked: Any, shared: Mapping[str, Any]) -> Any:
    """Write a setting out as name and interventions; what cannot be one is left for validation to refuse."""
    if isinstance(asked, SweepSetting):
        return asked
    if asked is None or asked == PLAIN:
        return {"name": PLAIN, "interventions": []}
    if isinstance(asked, int | float) and not isinstance(asked, bool):
        asked = [{"steer": asked}]
    elif isinstance(asked, str):
        asked = [{"cap": asked}]
    elif isinstance(asked, Mapping) and "interventions" not in asked:
        asked = [asked]
    if isinstance(asked, list):
        asked = {"interventions": asked}
    if not isinstance(asked, Mapping) or not isinstance(asked.get("interventions"), list):
        return asked
    entries = [_filled(entry, shared) for entry in asked["interventions"] if not _does_nothing(entry)]
    name = asked.get("name")
    if name is None:
        name = " and ".join(_name_of(entry) for entry in asked["interventions"] if not _does_nothing(entry)) or PLAIN
    return {**asked, "name": name, "interventions": entries}


def _filled(entry: Any, shared: Mapping[str, Any]) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    taken = {"axis", "positions"} if entry.get("experiment") is not None else set(_SHARED)
    return {name: value for name, value in shared.items() if name in taken} | dict(entry)


def _does_nothing(entry: Any) -> bool:
    if not isinstance(entry, Mapping):
        return False
    steer = entry.get("steer")
    steer = steer.get("absolute") if isinstance(steer, Mapping) else steer
    return not isinstance(steer, bool | str) and steer == 0


def _name_of(entry: Any) -> str:
    if isinstance(entry, InterventionSpec):
        entry = entry.asked
    if not isinstance(entry, Mapping):
        return "?"
    kind = next((name for name in ("cap", "steer", "ablate", "experiment") if entry.get(name) is not None), "?")
    value = entry.get(kind)
    if isinstance(value, Mapping | AbsoluteStrength):
        value = f"{dict(value).get('absolute')} absolute"
    elif isinstance(value, float | int) and not isinstance(value, bool):
        value = f"{value:+g}" if kind == "steer" else f"{value:g}"
    where = [f"{name} {entry[name]}" for name in ("layers", "positions") if entry.get(name) is not None]
    return " ".join([f"{kind} {value}", *where])[:80]
