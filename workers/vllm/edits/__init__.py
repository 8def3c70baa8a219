"""Interventions in vLLM, on its outside: what workers are told of them, and what of its cache they may share."""
