"""What to run: spec, catalog, units, plan, ledger. Pure data and arithmetic; knows no Ray, torch, S3 or clock."""
