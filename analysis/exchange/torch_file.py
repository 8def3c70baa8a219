"""Read what ``torch.save`` wrote, as long as it is tensors, numbers, texts and containers of them: no code is run."""

from __future__ import annotations

import io
from typing import Any

from ...jobs.errors import InputError

ONE_TENSOR = "one tensor of floating-point numbers (n_layers, d_model)"
"""What a file of one vector holds."""
CAPPING_SETTINGS = "capping settings, plain tensors in a dict with vectors and experiments,"
"""What a file of capping settings holds."""


def load_plain(data: bytes, file: str, expected: str) -> Any:
    """Decode a file of ``torch.save`` without running any code that it may hold.

    Args:
        data: The file's bytes.
        file: Its path or URL, for errors.
        expected: What it should hold, as part of a sentence, for errors.

    Raises:
        InputError: It holds other objects, or is no such file.
    """
    import torch

    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # A damaged file raises errors of many types.
    except Exception as error:
        # What else torch says is about its own code, and differs between versions.
        reason = " ".join(str(error).split()).lower()
        # What tells a pickle of other objects from bytes that are no pickle: torch refuses to look up a name.
        is_unsafe = "unsupported global" in reason or "unsupported class" in reason
        raise InputError(
            "holds more than tensors, numbers and texts, and was not read: a pickle can run any code."
            if is_unsafe
            else "is not a file of torch.save, or was cut short.",
            code="unsafe_pickle" if is_unsafe else "unreadable_file",
            file=file,
            hint=f"Expected is {expected}, saved with torch.save. Fetch the file again, if it was downloaded.",
        ) from error
