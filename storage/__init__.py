"""What is kept: layout, row blocks, commit records, the run lease, queries. Knows neither Ray, torch nor models."""

from __future__ import annotations

from .query.activations import Activations
from .query.run import Query, Run, open_run

__all__ = ["Activations", "Query", "Run", "open_run"]
