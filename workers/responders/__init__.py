"""Responders that do not generate themselves: texts are given, or come from a chat completions server."""
