"""Where a run's requests come from: a catalog of personas, or conversations that exist already."""
