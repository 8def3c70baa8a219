"""Activations as Zarr arrays: encode and write the shards of a unit, read chunks by byte range."""
