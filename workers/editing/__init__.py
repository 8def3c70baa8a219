"""Edits of the residual stream while a model runs: their arithmetic, and how they are applied and recorded."""
