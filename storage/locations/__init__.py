"""Where a store lies: a directory or an S3 prefix, behind one protocol."""
