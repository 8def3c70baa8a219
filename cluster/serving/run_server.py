"""Run the HTTP interface on a port of this machine until it is stopped."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress

import uvicorn

from ...jobs.errors import InputError
from .app import ServerSettings, create_app
from .engine_loop import EngineLoop
from .live_model import LiveModel

_BACKLOG = 2048
"""Connections that may wait to be accepted."""

_GRACE_S = 5
"""Seconds that connections have to end once their requests were ended."""


class StoppableServer(uvicorn.Server):
    """A server that ends its requests before it waits for their connections.

    Args:
        config: The server's configuration.
        loop: Runs the engine; closed when the server stops.
    """

    def __init__(self, config: uvicorn.Config, loop: EngineLoop) -> None:
        super().__init__(config)
        self._loop = loop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End all requests, then the connections."""
        await asyncio.to_thread(self._loop.close)
        await super().shutdown(sockets)


def server_of(model: LiveModel, settings: ServerSettings) -> StoppableServer:
    """Make a server, and start the engine behind it.

    Args:
        model: The model that answers.
        settings: How it answers.
    """
    loop = EngineLoop(model.responder)
    config = uvicorn.Config(
        create_app(model, loop, settings),
        # Requests are not logged: they would hide what the command says, and hold what people ask.
        log_level="warning",
        access_log=False,
        ws="none",
        # There is none, and its task would be cancelled with a traceback by the signal that stops the server.
        lifespan="off",
        timeout_graceful_shutdown=_GRACE_S,
    )
    return StoppableServer(config, loop)


def run_server(
    model: LiveModel, settings: ServerSettings, listening: socket.socket, say: Callable[[str], None]
) -> None:
    """Serve until a signal stops it.

    Args:
        model: The model that answers.
        settings: How it answers.
        listening: The socket, as ``listen_on`` returns it.
        say: Called with a line of text once it serves, and when it stops.
    """
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    say(f"Serving {model.name} at http://{shown}:{port}/v1; Ctrl-C stops it.")
    if settings.api_key is None and not is_loopback(host):
        say("No API key is set: everybody who reaches this port can use the model (--api-key-env).")
    # The signal that stops the server is raised again once it has ended.
    with suppress(KeyboardInterrupt):
        server_of(model, settings).run(sockets=[listening])
    say("Stopped.")


def listen_on(host: str, port: int) -> socket.socket:
    """Listen on a port, before a model is loaded for it.

    Args:
        host: Name or address of an interface of this machine.
        port: The port; 0 for a free one.

    Raises:
        InputError: There is no such interface, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as unless_it_listens:
            listening = unless_it_listens.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(_BACKLOG)
            unless_it_listens.pop_all()
            return listening
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{port}: {error.strerror or error}.",
            code="port_taken",
            field="--port",
            hint="Choose another port, or 0 for a free one; --host is an address of this machine.",
        ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
