"""What the paper does not have: blemishes, the density of good features, and the ensemble of methods."""
