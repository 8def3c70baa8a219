"""Kill a driver over one of its requests to the S3 server."""

from __future__ import annotations

from fault_proxy import Exchange
from plain_driver import Driver


class Executioner:
    """A fault that kills the driver."""

    def __init__(self, *, is_done: bool) -> None:
        self._is_done = is_done
        self.driver: Driver | None = None

    def __call__(self, exchange: Exchange) -> None:
        if self._is_done:
            exchange.forward()
        assert self.driver is not None
        self.driver.strike()
        exchange.cut()
