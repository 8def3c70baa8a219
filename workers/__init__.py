"""Run a model: loading, chat rendering, generation and capture. Imports neither Ray nor the store."""
