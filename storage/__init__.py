"""Storage of runs: layout, arrays, commit records, leases, queries, verification. Imports neither Ray nor torch."""

from __future__ import annotations

from .query.activations import Activations
from .query.run import Query, Run, open_run

__all__ = ["Activations", "Query", "Run", "open_run"]
