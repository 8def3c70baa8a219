"""Read texts with a model whose weights are loaded layer by layer, while the layer before is computed."""
