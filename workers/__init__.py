"""Where a model runs: loading, chat rendering, generation, capture. Knows neither Ray nor the store."""
