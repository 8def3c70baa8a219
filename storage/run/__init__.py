"""The run as a whole: its record, leases, commit records, index and status."""
