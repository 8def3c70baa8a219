"""What results of lm-evaluation-harness say of the model that gave them, compared with the setting they are taken for.

The model ``persona_atlas`` writes the identity of its files and of its edits into them. Of the harness's other models
it is known that they cannot be capped; what a server did is known only where the requests named it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...jobs.errors import InputError
from ...jobs.interventions import Intervention
from ...jobs.specs.pareto_spec import CapSetting
from ...jobs.work.run_edits import digest_of_edits
from ..serving.edit_options import EDIT_FIELDS

RESULTS_FIELD = "pareto.capability.results"
"""Field of a spec that names the folder of the results."""

_FINGERPRINT = "model_fingerprint"
_EDITS = "model_edits"
_EDITS_SHA256 = "model_edits_sha256"
_NEVER_EDITED = ("hf", "hf-auto", "huggingface", "hf-multimodal", "vllm", "vllm-vlm", "sglang")
"""Models of the harness that run a checkpoint as it is, in its own process."""


def model_info(fingerprint: str, edits: Intervention | None) -> dict[str, Any]:
    """Make what the model ``persona_atlas`` writes of itself into the results.

    Args:
        fingerprint: Fingerprint of its files.
        edits: Its edits; None for none.
    """
    return {
        _FINGERPRINT: fingerprint,
        _EDITS: 0 if edits is None else len(edits.edits),
        _EDITS_SHA256: "" if edits is None else digest_of_edits(edits.edits),
    }


@dataclass(frozen=True, slots=True)
class SettingMade:
    """A setting, as results under it must have been made.

    Attributes:
        name: Its name.
        source: The model, as the study names it.
        info: Its ``model_info``.
        cap: The cap; None for the model as it is.
        positions: Tokens that are capped.
    """

    name: str
    source: str
    info: Mapping[str, Any]
    cap: CapSetting | None
    positions: str = "all"

    def check(self, config: Mapping[str, Any], file: str) -> bool:
        """Compare what a file says of its model.

        Args:
            config: The object ``config`` of a file of results; empty where it has none.
            file: Path of the file, for errors.

        Returns:
            Whether the file says with which edits it was made.

        Raises:
            InputError: It was made with another model or with other edits.
        """
        if config.get(_FINGERPRINT) not in (None, self.info[_FINGERPRINT]):
            raise self._refusal(f"were made with another model than {self.source}", config, file)
        # Results of earlier versions have the number of edits alone.
        for key in (_EDITS_SHA256, _EDITS):
            if key in config:
                if config[key] != self.info[key]:
                    raise self._refusal("were made with other edits", config, file)
                return key == _EDITS_SHA256 or self.cap is None
        if config.get("model") in _NEVER_EDITED:
            if self.cap is not None:
                raise self._refusal(f"were made by {config['model']}, which is not capped", config, file)
            # The fingerprint is not there, and the same model may lie in several places.
            made = _arguments(config.get("model_args"))
            return made.get("pretrained") == self.source and not made.keys() & {"peft", "delta"}
        return self._check_requests(_arguments(config.get("gen_kwargs")), config, file)

    def _check_requests(self, asked: Mapping[str, Any], config: Mapping[str, Any], file: str) -> bool:
        """Compare what each request asked of a server; whether it says anything."""
        given = {name: str(asked[name]) for name in EDIT_FIELDS if name in asked}
        if not given:
            return False
        # With null a request asks for nothing.
        is_plain = given.get("cap") in ("None", "null")
        given = {name: value for name, value in given.items() if value not in ("None", "null")}
        if is_plain and self.cap is None and not given:
            return True
        expected = {} if self.cap is None else {"cap": self.cap.percentile, "layers": self.cap.window}
        if given.get("positions", self.positions) != self.positions:
            raise self._refusal(f"were asked of a server at other positions than {self.positions}", config, file)
        # Without layers the server takes those that are usual for a cap.
        wanted = {name: value for name, value in expected.items() if name == "cap" or name in given}
        if {name: value for name, value in given.items() if name != "positions"} != wanted:
            raise self._refusal("were asked of a server with other edits", config, file)
        return "layers" in given

    def _refusal(self, what: str, config: Mapping[str, Any], file: str) -> InputError:
        made = config.get("model_args") or config.get("gen_kwargs") or {}
        shown = ", ".join(f"{name}={value}" for name, value in _arguments(made).items())
        return InputError(
            f"the results for the setting {self.name} {what}" + (f" ({shown})." if shown else "."),
            code="other_results",
            field=RESULTS_FIELD,
            file=file,
            hint="Put each setting's results into the folder of its name, or make them again.",
        )


def _arguments(given: Any) -> dict[str, Any]:
    """Return arguments that the harness writes as an object or as ``name=value,...``."""
    if isinstance(given, Mapping):
        return dict(given)
    parts = (part.partition("=") for part in str(given or "").split(",") if part)
    return {name.strip(): value for name, _, value in parts}
