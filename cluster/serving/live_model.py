"""A loaded model and the axis that its replies are placed on."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from jinja2 import TemplateError

from ...analysis.axis_source import AxisSource
from ...analysis.intervening.resolve import resolve
from ...jobs.errors import InputError
from ...jobs.interventions import Intervention
from ...jobs.messages import ChatMessage
from ...jobs.specs.interventions_spec import EditSetting
from ...workers.chat.renderer import ChatRenderer
from ...workers.engine import StreamingResponder
from .placed_reply import Placing

_REMEMBERED = 64
"""Settings whose edits are kept, so that a percentile is read from the axis's store once."""


class LiveModel:
    """A loaded model and the axis that its replies are placed on.

    Args:
        name: Name of the model for people and clients.
        responder: The engine, with the model.
        decode: Decodes token ids with the engine's tokenizer; called in the engine's thread.
        renderer: Renders chats for the checks before a request reaches the engine. It has a tokenizer of its own, as
            the engine's is in use in another thread.
        sizes: Decoder layers, width of the residual stream, and longest conversation in tokens.
        axis: The axis.
        placing: Places replies on it.
        note: What must be said beside every number, as where the axis is another model's; None for nothing.
    """

    def __init__(
        self,
        name: str,
        responder: StreamingResponder,
        decode: Callable[[Sequence[int]], str],
        renderer: ChatRenderer,
        sizes: tuple[int, int, int],
        axis: AxisSource,
        placing: Placing,
        note: str | None = None,
    ) -> None:
        self.name = name
        self.responder = responder
        self.decode = decode
        self.renderer = renderer
        self.axis = axis
        self.placing = placing
        self.note = note
        self._n_layers, self._d_model, self.max_context = sizes
        # Neither an axis, which reads its store when it must, nor a tokenizer is made for several threads.
        self._lock = threading.Lock()
        self._resolved: OrderedDict[str, Intervention] = OrderedDict()

    def close(self) -> None:
        """End the processes of the engine, and free what it holds."""
        self.responder.reader.close()

    def prompt_length(self, messages: Sequence[ChatMessage]) -> int:
        """Count the tokens of a prompt.

        Args:
            messages: The chat up to the response.

        Raises:
            InputError: The model's chat template cannot render it.
        """
        with self._lock:
            try:
                return len(self.renderer.render(messages))
            except (TemplateError, ValueError) as error:
                raise InputError(
                    f"the model's chat template does not take the chat: {error}.", code="not_rendered", field="messages"
                ) from error

    def intervention(self, settings: tuple[EditSetting, ...]) -> Intervention | None:
        """Return the edits that a user asks for; may read the store of the axis.

        Args:
            settings: What to do along the axis, in order; empty for nothing.

        Raises:
            InputError: The axis or the model does not have what is asked for; names the field.
        """
        if not settings:
            return None
        asked = json.dumps([setting.asked for setting in settings], sort_keys=True)
        with self._lock:
            if asked not in self._resolved:
                found = [resolve(setting, self.axis, self._n_layers, self._d_model) for setting in settings]
                self._resolved[asked] = Intervention(tuple(edit for one in found for edit in one.edits))
                if len(self._resolved) > _REMEMBERED:
                    self._resolved.popitem(last=False)
            self._resolved.move_to_end(asked)
            return self._resolved[asked]
