"""Sentence embeddings: a model of sentence-transformers, found, read by its own configuration files, and run."""
