"""Judges: a model on a server that speaks the OpenAI protocol, or one that an engine of this project runs."""
