"""What to run: spec, catalog, units, plan, scheduling. Pure data and arithmetic, without Ray, torch, S3 or a clock."""
