"""Load a worker's engine on the worker's machine, after checking that it can work there."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from ...jobs.errors import InputError
from ...storage.locations.location import Location
from ...workers.chat.spans import load_renderer
from ...workers.engine import EngineSettings, Reader, Responder
from ...workers.models.memory import free_bytes, require_memory
from ...workers.models.model_files import find_model
from ...workers.responders.given import GivenResponder
from ...workers.responders.stored import StoredResponder
from ...workers.vllm.versions import installed_version, require_known_version
from ..retry import with_retries
from .dialogues import DialogueSetup
from .worker_settings import WorkerSettings

if TYPE_CHECKING:
    from ...workers.builtin.builtin_engine import BuiltinEngine
    from ...workers.vllm.vllm_engine import VllmEngine

_SENTINEL_PAUSES_S = (0.5, 1.0, 2.0)
"""Pauses between checks for the sentinel: a shared file system may show a new file with a delay."""


def load_engine(settings: WorkerSettings, on_wait: Callable[[str], None]) -> Responder:
    """Load the model and make the responder that the settings ask for.

    Args:
        settings: The model, and whether it generates, its texts are given, or a server generates.
        on_wait: Called by the engine, in any thread, with a sentence when it waits for another program and tries again,
            and with ``""`` once it goes on.

    Returns:
        The engine; or a responder for given texts or for a server, which captures with the engine.

    Raises:
        InputError: The model does not fit the memory or cannot be loaded, vLLM is not here in a version that is known,
            or the server does not serve the model.
    """
    settings = replace(settings, weights=_weights_here(settings))
    engine = engine_here(settings)
    if settings.dialogues is not None:
        setup = DialogueSetup(settings.dialogues, engine, on_wait)
        responder = _load_responder(settings, engine, on_wait)
        return setup.responder(responder, load_renderer(engine.directory, engine.chat_template).renderer)
    return _load_responder(settings, engine, on_wait)


def _load_responder(settings: WorkerSettings, engine: EngineSettings, on_wait: Callable[[str], None]) -> Responder:
    """Load the model and make the responder that answers single requests; see ``load_engine``."""
    if not settings.reads_given and settings.generation is None:
        return _load_model(settings, engine, generates=True)
    conversations = load_renderer(engine.directory, engine.chat_template)
    user_spans = conversations.user_spans() if engine.capture.needs_user_spans else None
    if settings.reads_stored:
        return StoredResponder(_load_reader(settings, engine), conversations.decode)
    if settings.generation is None:
        return GivenResponder(_load_reader(settings, engine), conversations, user_spans)
    # The HTTP client is imported only if a server generates.
    from ...workers.responders.endpoint import EndpointResponder, check_endpoint

    # The server is checked first, because the model may take minutes to load.
    left_out = check_endpoint(settings.generation, settings.served_model, conversations.renderer)
    reader = _load_reader(settings, engine)
    return EndpointResponder(
        reader,
        conversations,
        settings.generation,
        settings.served_model,
        engine.sampling,
        user_spans=user_spans,
        left_out=left_out,
        on_wait=on_wait,
        # Reading few tokens takes loading all weights, too.
        held_tokens=reader.tokens_per_capture if settings.weights == "streamed" else 0,
    )


def engine_here(settings: WorkerSettings) -> EngineSettings:
    """Check that this machine can run the engine, and find the model's files on it.

    Args:
        settings: The model and how to run it.

    Returns:
        The settings of the engine, with the model's directory on this machine.

    Raises:
        InputError: vLLM is not here in a version that is known, torch cannot use the GPU, the memory has no room for
            the model, or its files cannot be found.
    """
    if settings.engine_name == "vllm":
        require_known_version(settings.engine.device)
    _require_gpu(settings)
    if settings.engine_name != "vllm" or settings.engine.device == "cpu":
        # vLLM counts the memory of its GPUs itself; asking for it here would take some of the first.
        needed = settings.streamed_bytes if settings.weights == "streamed" else settings.needed_bytes
        require_memory(needed, 1, settings.engine.device)
    engine = settings.engine
    if settings.model is not None and not engine.directory.is_dir():
        engine = replace(engine, directory=find_model(settings.model, lambda _: None))
    return engine


def _weights_here(settings: WorkerSettings) -> Literal["resident", "streamed"]:
    """Decide by the memory of this machine where the settings leave it open."""
    if settings.weights != "auto":
        return settings.weights
    _require_gpu(settings)
    fit = settings.copies * settings.needed_bytes <= free_bytes(settings.engine.device)
    return "resident" if fit else "streamed"


def _require_gpu(settings: WorkerSettings) -> None:
    """Check that torch can use the GPU, if there has to be one, before its memory is asked for."""
    if settings.engine.device != "cuda":
        return
    if settings.engine_name != "vllm":
        # A KV cache that grows would leave holes otherwise. Read when torch first takes memory of the GPU.
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            "the worker's machine has a GPU, but its torch cannot use it.",
            code="no_gpu",
            field="placement.device",
            hint="Install a CUDA build of torch there, or use placement.device: cpu.",
        )


def engine_label(settings: WorkerSettings) -> str:
    """Name the engine of a worker on this machine as commit records do: ``builtin``, or ``vllm`` and its version."""
    return "builtin" if settings.engine_name == "builtin" else f"vllm {installed_version()}"


def _load_reader(settings: WorkerSettings, engine: EngineSettings) -> Reader:
    """Load a model that only reads texts."""
    if settings.weights != "streamed":
        return _load_model(settings, engine, generates=False)
    from ...workers.builtin.streaming.reader import StreamedReader

    reader = StreamedReader(replace(engine, batch_tokens=settings.walk_tokens), rule=settings.canary)
    # Said when the model is loaded, and kept in the run's record.
    told = f"Weights are loaded layer by layer, once for every {reader.tokens_per_capture:,} tokens."
    reader.passes = f"{reader.passes} {told}".lstrip()
    return reader


def _load_model(settings: WorkerSettings, engine: EngineSettings, *, generates: bool) -> BuiltinEngine | VllmEngine:
    # Torch and vLLM are imported only where a model is loaded, not by the driver or the command line.
    if settings.engine_name == "vllm":
        from ...workers.vllm.vllm_engine import VllmEngine

        return VllmEngine(engine, generates=generates, place=settings.place)
    from ...workers.builtin.builtin_engine import BuiltinEngine

    return BuiltinEngine(engine)


def require_same_store(location: Location, sentinel: str) -> None:
    """Check that this machine is connected to the same store as the driver, before a model is loaded.

    Args:
        location: The run's store, opened on this machine.
        sentinel: Path of an object that the driver has written; empty: no check.

    Raises:
        InputError: The object does not exist here: the machines do not share the directory, or use other endpoints.
        TransientError: The store failed.
    """
    for pause_s in (*_SENTINEL_PAUSES_S, None):
        if not sentinel or with_retries(lambda: location.size(sentinel)) is not None:
            return
        if pause_s is not None:
            time.sleep(pause_s)
    raise InputError(
        f"{socket.gethostname()} does not see the run at {location.url}: {sentinel}, which the driver wrote, is not "
        "there.",
        code="other_store",
        field="store.url",
        hint="Use s3://, or a directory that every machine shares under the same path.",
    )
