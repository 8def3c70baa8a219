"""What is learnt: means, the Assistant Axis, PCA, thresholds, plots, the report. Knows neither Ray nor models."""
