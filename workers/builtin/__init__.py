"""The built-in engine: packed forward passes of a Hugging Face model, with capture."""
