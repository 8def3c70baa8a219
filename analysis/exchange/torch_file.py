"""Read what ``torch.save`` wrote, as long as it is tensors, numbers, texts and containers of them: no code is run."""

from __future__ import annotations

import io
from typing import Any

from ...jobs.errors import InputError


def load_plain(data: bytes, file: str) -> Any:
    """Decode a file of ``torch.save`` without running any code that it may hold.

    Args:
        data: The file's bytes.
        file: Its path or URL, for errors.

    Raises:
        InputError: It holds other objects, or is no such file.
    """
    import torch

    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # A damaged file raises errors of many types.
    except Exception as error:
        reason = " ".join(str(error).split())
        # What tells a pickle of other objects from bytes that are no pickle: torch refuses to look up a name.
        is_unsafe = "unsupported global" in reason.lower() or "unsupported class" in reason.lower()
        raise InputError(
            "holds more than tensors, numbers and texts, and was not read: a pickle can run any code."
            if is_unsafe
            else f"cannot be read as a file of torch.save: {reason[:200].rstrip('.')}.",
            code="unsafe_pickle" if is_unsafe else "unreadable_file",
            file=file,
            hint="Save plain tensors with torch.save." if is_unsafe else "Fetch it again.",
        ) from error
