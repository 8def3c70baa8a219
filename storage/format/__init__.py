"""What a store's objects are called and hold: paths, JSON records, Parquet tables."""
