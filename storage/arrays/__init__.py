"""Activations as Zarr arrays: encoding, writing a unit's shards, reading chunks back."""
