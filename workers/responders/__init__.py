"""Responders whose text comes from elsewhere: given conversations, or a chat completions server."""
