"""Set up a worker's dialogues: who plays the user, and a responder that has the turns follow one another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from ...jobs.errors import InputError
from ...jobs.sizing.estimate import BYTES_PER_PARAMETER, DEFAULT_BATCH_TOKENS, HEADROOM, resolved_dtype
from ...jobs.specs.drift_spec import SimulatedUserSpec
from ...jobs.specs.spec_parts import CaptureSpec, ModelSpec
from ...workers.chat.renderer import ChatRenderer
from ...workers.engine import EngineSettings, Responder, StreamingResponder
from ...workers.models.memory import require_memory
from ...workers.models.model_files import find_model, read_facts
from ...workers.responders.dialogues import ChatRoom, DialogueResponder, RowShape
from ...workers.responders.users import OwnEngineUser, SameEngineUser, User

if TYPE_CHECKING:
    from ...workers.builtin.builtin_engine import BuiltinEngine

_PROBE = ({"role": "user", "content": "Hi"},)


@dataclass(frozen=True, slots=True)
class DialogueSettings:
    """What a worker has to know for dialogues.

    Attributes:
        d_model: Width of the model's residual stream.
        max_context: Longest sequence that it takes, in tokens.
        user: Who plays the user; None where all turns are scripted.
        user_kept_turns: ``EngineSettings.kept_turns`` of an engine of the user's own.
    """

    d_model: int
    max_context: int
    user: SimulatedUserSpec | None = None
    user_kept_turns: float = 0.0


class DialogueSetup:
    """What a worker's dialogues need besides the model under study.

    Made before that model is loaded: a server is asked for one token, so that a wrong address is found at once, and a
    model of the user's own is loaded, because the model under study takes what is left of a GPU's memory.

    Args:
        settings: The dialogues.
        engine: The model under study and how it runs.
        on_wait: Called with a sentence when the user's server does not answer, and with ``""`` once it does.

    Raises:
        InputError: The user's server does not serve its model, or the user's model cannot be loaded here.
    """

    def __init__(self, settings: DialogueSettings, engine: EngineSettings, on_wait: Callable[[str], None]) -> None:
        self._settings = settings
        self._engine = engine
        self._on_wait = on_wait
        self._own: BuiltinEngine | None = None
        self._left_out: tuple[str, ...] = ()
        user = settings.user
        if user is not None and user.server is not None:
            self._left_out = check_user(user)
        elif user is not None and not user.is_same:
            self._own = _load_user(user, engine, settings.user_kept_turns)

    def responder(self, responder: Responder, renderer: ChatRenderer) -> DialogueResponder:
        """Wrap the responder of the model under study.

        Args:
            responder: Answers complete requests.
            renderer: Renders chats for the model.
        """
        settings, user = self._settings, self._settings.user
        shape = RowShape(self._engine, settings.d_model)
        room = ChatRoom(renderer, settings.max_context, self._engine.sampling.max_new_tokens)
        if user is None:
            return DialogueResponder(responder, shape, room)
        user_room: ChatRoom | None = None
        if self._own is not None:
            user_room = ChatRoom(self._own.renderer, self._own.loaded.max_context, user.max_new_tokens)
        elif user.is_same:
            user_room = ChatRoom(renderer, settings.max_context, user.max_new_tokens)
        return DialogueResponder(responder, shape, room, self._user(responder, user), user_room)

    def _user(self, responder: Responder, user: SimulatedUserSpec) -> User:
        if user.server is not None:
            # The HTTP client is imported only if a server plays the user.
            from ...workers.responders.served_user import ServedUser

            return ServedUser(responder, user.server, user.sampling, left_out=self._left_out, on_wait=self._on_wait)
        if self._own is not None:
            return OwnEngineUser(responder, self._own)
        return SameEngineUser(cast("StreamingResponder", responder), self._engine.sampling, user.sampling)


def check_user(user: SimulatedUserSpec) -> tuple[str, ...]:
    """Check that a server answers and serves the model of the user.

    Args:
        user: Who plays the user: a model on a server.

    Returns:
        Fields of a request that the server does not take.

    Raises:
        InputError: It does not; names the field of the spec.
    """
    from ...workers.responders.chat_client import CHECK_RETRIES, ChatClient

    server = user.server
    assert server is not None

    async def ask() -> tuple[str, ...]:
        async with ChatClient(server, user.model, {}, CHECK_RETRIES) as client:
            return (await client.check(_PROBE)).left_out

    try:
        return asyncio.run(ask())
    except InputError as error:
        field = (error.field or "").replace("generation.", "drift.user.")
        raise InputError(error.message, code=error.code, field=field or None, hint=error.hint) from None


def _load_user(user: SimulatedUserSpec, engine: EngineSettings, kept_turns: float) -> BuiltinEngine:
    """Load the user's own model, on the device of the model under study."""
    from ...workers.builtin.builtin_engine import BuiltinEngine

    try:
        directory = find_model(ModelSpec(source=user.model), lambda _: None)
        facts = read_facts(directory)
    except InputError as error:
        raise InputError(error.message, code=error.code, field="drift.user.model", hint=error.hint) from None
    dtype = resolved_dtype("auto", facts.dtype)
    require_memory(int(HEADROOM * facts.num_parameters * BYTES_PER_PARAMETER[dtype]), 1, engine.device)
    return BuiltinEngine(
        EngineSettings(
            directory=directory,
            dtype=dtype,
            device=engine.device,
            threads=engine.threads,
            batch_tokens=engine.batch_tokens or DEFAULT_BATCH_TOKENS,
            # An engine captures something; the mean at the first layer is the least, and is dropped.
            layers=(0,),
            sampling=user.sampling,
            capture=CaptureSpec(layers=[0]),
            kept_turns=kept_turns,
        )
    )
