"""Principal components of persona vectors: their fit, loadings, and coordinates that dominate them."""
