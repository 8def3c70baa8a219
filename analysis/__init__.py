"""Analysis of stored activations: means, Assistant Axis, PCA, thresholds, plots, report. Knows no Ray and no models."""
