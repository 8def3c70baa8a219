"""Copy the tensors of a layer from main memory to where it is computed.

On a CPU that is a copy of bytes. On a GPU a tensor goes to pinned memory first, and from there on a stream of its own,
so that the device fetches one tensor while the host copies the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_THREADS = 8
"""Threads that copy to pinned memory: one alone copies less than a GPU fetches."""

_CHUNK_BYTES = 8 * 2**20
"""Bytes that one thread copies at a time."""

Copy = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Copies a value to an offset, with the type and shape of a parameter on the meta device."""


class HostCopies:
    """Copies to one device.

    Args:
        device: ``cpu`` or ``cuda``.
        most_bytes: Bytes of the largest layer.
    """

    def __init__(self, device: str, most_bytes: int) -> None:
        self._is_gpu = device == "cuda"
        self._pinned = torch.empty(most_bytes, dtype=torch.uint8, pin_memory=True) if self._is_gpu else None
        self._stream: Any = torch.cuda.Stream() if self._is_gpu else None
        self._pool = ThreadPoolExecutor(_THREADS, "layer-copies") if self._is_gpu else None

    def close(self) -> None:
        """End the threads, and let go of the pinned memory."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pinned = None

    def mark(self) -> Any:
        """Return a mark of what the device was given to do so far; None on a CPU, which has done it."""
        if not self._is_gpu:
            return None
        event: Any = torch.cuda.Event()
        event.record()
        return event

    def wait_on_device(self) -> None:
        """Let the device begin nothing further before the copies so far have ended."""
        if self._is_gpu:
            torch.cuda.current_stream().wait_stream(self._stream)

    @contextmanager
    def into(self, flat: torch.Tensor, used: Any) -> Iterator[Copy]:
        """Copy values into the bytes of a layer; at the end of the context they are there.

        Args:
            flat: The bytes on the device.
            used: Mark behind what reads the bytes that are there now; None: nothing does.

        Yields:
            A function that copies one value.
        """
        if not self._is_gpu:
            yield lambda offset, like, value: self._on_host(_part(flat, offset, like), like, value)
            return
        pinned = self._pinned
        assert pinned is not None
        with torch.cuda.stream(self._stream):
            if used is not None:
                self._stream.wait_event(used)

            def copy(offset: int, like: torch.Tensor, value: torch.Tensor) -> None:
                part = _part(pinned, offset, like)
                self._on_host(part, like, value)
                _part(flat, offset, like).copy_(part, non_blocking=True)

            yield copy
        self._stream.synchronize()

    def _on_host(self, part: torch.Tensor, like: torch.Tensor, value: torch.Tensor) -> None:
        """Copy a value to its bytes in main memory, in the type of the parameter."""
        if value.shape != like.shape:
            raise ValueError(f"a tensor of shape {tuple(value.shape)} is no parameter of shape {tuple(like.shape)}")
        if value.dtype != like.dtype or not value.is_contiguous():
            part.view(like.dtype).view(like.shape).copy_(value)
            return
        # By numpy, which copies in this thread: torch would take the threads that compute the present layer.
        target, source = part.numpy(), value.reshape(-1).view(torch.uint8).numpy()
        if self._pool is None or len(target) <= _CHUNK_BYTES:
            np.copyto(target, source)
            return
        starts = range(0, len(target), _CHUNK_BYTES)
        for done in [self._pool.submit(_copy_chunk, target, source, start) for start in starts]:
            done.result()


def _part(flat: torch.Tensor, offset: int, like: torch.Tensor) -> torch.Tensor:
    return flat[offset : offset + like.nbytes]


def _copy_chunk(target: npt.NDArray[np.uint8], source: npt.NDArray[np.uint8], start: int) -> None:
    stop = start + _CHUNK_BYTES
    np.copyto(target[start:stop], source[start:stop])
