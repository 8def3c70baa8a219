"""Paths and contents of a store's objects: JSON records and Parquet tables."""
