"""Objects that concern a whole run: its record, leases, commit records, index and status."""
