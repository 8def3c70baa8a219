"""The spec of a Pareto study: a job spec, and in a section ``pareto`` the caps to compare, the harm and the capability.

It is a sweep with a setting for each window of layers and each percentile, and one for the model as it is; what is
measured beside the sweep is here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ..errors import InputError, closest
from ..files.spec_file import GivenSpec, read_spec
from ..files.yaml_file import NO_BOOLEAN, validate
from ..interventions import Positions
from .interventions_spec import parse_cap, parse_layers
from .spec_parts import MAX_COUNT, SpecSection
from .sweep_spec import PLAIN, SweepSetting, SweepSpec, sweep_of

_Name = Annotated[str, Field(min_length=1)]


def _window(asked: Any) -> Any:
    found = parse_layers(asked)
    if not isinstance(found, str) or ":" not in found:
        raise ValueError('must be a range in quotes such as "46:54", whose end is not included')
    return found


def _label(asked: Any) -> Any:
    found = parse_cap(asked)
    if not isinstance(found, str):
        raise ValueError("must be the label of a percentile, such as p0.25")
    return found


def _without_repeats(values: list[str]) -> list[str]:
    repeated = next((value for number, value in enumerate(values) if value in values[:number]), None)
    if repeated is not None:
        raise ValueError(f"has {repeated} twice")
    return values


def _share_or_count(limit: float | None) -> float | None:
    if limit is not None and limit >= 1 and not float(limit).is_integer():
        raise ValueError("must be a whole number of documents, or a share of them below 1")
    return limit


class HarmSection(SpecSection):
    """The section ``pareto.harm``.

    Attributes:
        rubric: Name or file of the rubric by which replies are judged.
        label: Label of that rubric whose rate is the harm; None: all that the rubric counts as harm.
    """

    rubric: _Name = "harm"
    label: _Name | None = None


class CapabilitySection(SpecSection):
    """The section ``pareto.capability``.

    Attributes:
        tasks: Tasks or groups of lm-evaluation-harness, each of which counts the same.
        include_path: Directory with tasks beside those of the harness; None for none.
        results: Directory with results of the harness, a folder for each setting; None: the tasks are run here.
        limit: Documents of each task, or a share of them below 1; None: all.
        num_fewshot: Examples before each question; None: as the task says.
        apply_chat_template: Whether questions are asked in the chat template.
        batch_size: Texts that run at a time.
        metrics: Metric of a task, as the harness writes it with its filter (``exact_match,strict-match``); of a task
            that is not named, the first.
        scales: Highest value of a task's metric; of a task that is not named 1, of ``eq_bench`` 100.
    """

    tasks: Annotated[list[_Name], Field(min_length=1), AfterValidator(_without_repeats)]
    include_path: _Name | None = None
    results: _Name | None = None
    limit: Annotated[float, Field(gt=0, le=MAX_COUNT), NO_BOOLEAN, AfterValidator(_share_or_count)] | None = None
    num_fewshot: Annotated[int, Field(ge=0, le=MAX_COUNT), NO_BOOLEAN] | None = None
    apply_chat_template: bool = True
    batch_size: Annotated[int, Field(ge=1, le=MAX_COUNT), NO_BOOLEAN] = 8
    metrics: dict[_Name, _Name] = Field(default_factory=dict)
    scales: dict[_Name, Annotated[float, Field(gt=0), NO_BOOLEAN]] = Field(default_factory=dict)

    def scale(self, task: str) -> float:
        """Return the highest value of a task's metric.

        Example:
            >>> section = CapabilitySection(tasks=["gsm8k", "eq_bench"])
            >>> section.scale("gsm8k"), section.scale("eq_bench")
            (1.0, 100.0)
        """
        return self.scales.get(task, 100.0 if task == "eq_bench" else 1.0)

    @model_validator(mode="after")
    def _names_its_tasks(self) -> CapabilitySection:
        for field in ("metrics", "scales"):
            for name in getattr(self, field):
                if name not in self.tasks:
                    raise ValueError(f"{field} names {name!r}, which is none of the tasks")
        return self


class ParetoSection(SpecSection):
    """The section ``pareto``.

    Attributes:
        axis: Whose axis is capped along; see ``InterventionSpec``.
        reduction: Id of a reduction of that store; None: the current one.
        positions: Tokens that are capped.
        transfer: Whether the axis may be another model's.
        windows: Windows of consecutive layers, end exclusive.
        percentiles: Labels of thresholds of the axis; ``p0.25`` is the 75th percentile in axis sign.
        harm: How harm is measured.
        capability: How capability is measured.
        tolerance: How much of the mean score the chosen setting may cost, at least 0.
        choose: Name of the setting to choose instead, as ``layers_46:54-p0.25``; None: by the tolerance.
    """

    axis: _Name
    reduction: _Name | None = None
    positions: Positions = "all"
    transfer: bool = False
    windows: Annotated[
        list[Annotated[str, BeforeValidator(_window)]], Field(min_length=1), AfterValidator(_without_repeats)
    ]
    percentiles: Annotated[
        list[Annotated[str, BeforeValidator(_label)]], Field(min_length=1), AfterValidator(_without_repeats)
    ]
    harm: HarmSection = HarmSection()
    capability: CapabilitySection
    tolerance: Annotated[float, Field(ge=0, le=1), NO_BOOLEAN] = 0.01
    choose: _Name | None = None

    @property
    def caps(self) -> list[CapSetting]:
        """Every window with every percentile."""
        return [CapSetting(window, label) for window in self.windows for label in self.percentiles]

    @model_validator(mode="after")
    def _chooses_a_setting(self) -> ParetoSection:
        names = [cap.name for cap in self.caps]
        if self.choose is not None and self.choose not in names:
            raise ValueError(f"choose names no setting: {closest(self.choose, names) or ', '.join(names[:8])}")
        return self


@dataclass(frozen=True, slots=True)
class CapSetting:
    """One setting of a Pareto study.

    Attributes:
        window: First layer and end, exclusive, as ``46:54``.
        percentile: Label of the threshold.

    Example:
        >>> CapSetting("46:54", "p0.25").name, CapSetting("46:54", "p0.25").layers
        ('layers_46:54-p0.25', (46, 54))
    """

    window: str
    percentile: str

    @property
    def name(self) -> str:
        """Its name, as in released configurations."""
        return f"layers_{self.window}-{self.percentile}"

    @property
    def layers(self) -> tuple[int, int]:
        """First layer and end, exclusive."""
        first, _, end = self.window.partition(":")
        return int(first), int(end)


class _ParetoFile(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    pareto: ParetoSection


@dataclass(frozen=True)
class ParetoSpec:
    """A Pareto study.

    Attributes:
        sweep: The sweep: the model as it is, then every cap, in the order of ``section.caps``.
        section: What is compared and how.

    Example:
        >>> study = make_pareto({
        ...     "model": {"source": "models/tiny"},
        ...     "personas": {"roles": {"names": ["pirate"]}},
        ...     "pareto": {"axis": "models/tiny-axis", "windows": ["0:2"], "percentiles": ["p0.25", "p0.5"],
        ...                "capability": {"tasks": ["gsm8k"]}},
        ...     "store": {"url": "runs/pareto"},
        ... })
        >>> [setting.name for setting in study.sweep.settings]
        ['plain', 'layers_0:2-p0.25', 'layers_0:2-p0.5']
    """

    sweep: SweepSpec
    section: ParetoSection

    def cap_of(self, setting: SweepSetting) -> CapSetting | None:
        """Return the cap of a setting of the sweep; None for the model as it is."""
        return next((cap for cap in self.section.caps if cap.name == setting.name), None)


def load_pareto(path: str | Path, overrides: Sequence[str] = ()) -> ParetoSpec:
    """Read and validate the spec of a Pareto study.

    Args:
        path: The YAML file: a job spec with a section ``pareto``.
        overrides: ``key.path=value`` assignments, applied one after the other before validation.

    Raises:
        InputError: The file, a field or an override is wrong; names file, line and field.
    """
    return _validated(read_spec(path, "the spec of a Pareto study").overridden(overrides))


def make_pareto(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> ParetoSpec:
    """Validate the spec of a Pareto study that was built in Python; arguments and errors as for ``load_pareto``."""
    return _validated(GivenSpec(dict(data)).overridden(overrides))


def _validated(given: GivenSpec) -> ParetoSpec:
    section = validate(_ParetoFile, given.data, text=given.text, file=given.file).pareto
    if "sweep" in given.data:
        raise InputError(
            "has no place beside pareto, which is a sweep of its own.",
            code="not_in_a_sweep",
            field="sweep",
            file=given.file,
            hint="Leave one of them out.",
        )
    job = {key: value for key, value in given.data.items() if key != "pareto"}
    return ParetoSpec(sweep_of(replace(given, data=job | {"sweep": _sweep(section)})), section)


def _sweep(section: ParetoSection) -> dict[str, Any]:
    shared = {"axis": section.axis, "positions": section.positions, "transfer": section.transfer}
    if section.reduction is not None:
        shared["reduction"] = section.reduction
    caps = [
        {"name": cap.name, "interventions": [{"cap": cap.percentile, "layers": cap.window}]} for cap in section.caps
    ]
    return shared | {"settings": [PLAIN, *caps], "rubric": section.harm.rubric}


_SETTING = re.compile(r"sweep\.settings\.(\d+)\.interventions(?:\.\d+)?\.?(\w+)?")
_FIELDS = {"cap": "percentiles", "layers": "windows"}


def in_section(error: InputError, section: ParetoSection) -> InputError:
    """Return an error of the sweep with the field of the section ``pareto`` that it is about.

    Args:
        error: What preparing the sweep raised.
        section: The section.
    """
    found = None if error.field is None else _SETTING.match(error.field)
    if found is None:
        return error
    name = _FIELDS.get(found[2] or "", found[2] or "windows")
    number = int(found[1]) - 1
    at = {"windows": number // len(section.percentiles), "percentiles": number % len(section.percentiles)}.get(name)
    field = f"pareto.{name}" + ("" if at is None else f".{at}")
    return InputError(error.message, code=error.code, field=field, file=error.file, hint=error.hint)
