"""Stores as datasets of the Hugging Face Hub: which objects are shared, push, pull, the dataset card."""
