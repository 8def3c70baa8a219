"""Refuse checkpoints that transformers could read only by running code that the checkpoint brings along.

Every ``from_pretrained`` is given ``trust_remote_code=False``: without it, transformers asks on the terminal and runs
the code if the answer is yes.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..jobs.errors import InputError

_UNKNOWN = ("does not recognize this architecture", "Unrecognized")
"""Words in transformers' errors about an architecture that it does not have."""


def refuse_own_code(directory: Path, error: Exception) -> None:
    """Refuse a checkpoint if transformers failed because it would need the checkpoint's code.

    A checkpoint may name its own code and yet be read without it, when transformers has the architecture; so only a
    failure tells.

    Args:
        directory: Directory of the checkpoint.
        error: What transformers raised.

    Raises:
        InputError: The checkpoint needs its own code.
    """
    reason = str(error)
    is_unknown = isinstance(error, ValueError) and any(words in reason for words in _UNKNOWN)
    if "trust_remote_code" in reason or (is_unknown and _names_own_code(directory / "config.json")):
        raise InputError(
            f"the checkpoint in {directory} needs code of its own, and this project never runs a checkpoint's code.",
            code="custom_code",
            field="model.source",
            hint="Use a checkpoint of an architecture that transformers has; a newer transformers may have this one.",
        ) from None


def _names_own_code(config: Path) -> bool:
    try:
        return bool(json.loads(config.read_text(encoding="utf-8")).get("auto_map"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
