"""Object access: a directory or an S3 prefix, behind the protocol ``Location``."""
