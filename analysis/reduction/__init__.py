"""The steps of a reduction: which rollouts count, sums of each persona, vectors by layer, projections."""
