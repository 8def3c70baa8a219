"""Check a store against its commit records, and find and delete garbage."""
