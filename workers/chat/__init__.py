"""Render messages to token ids with the model's chat template, and locate messages in the rendering."""
