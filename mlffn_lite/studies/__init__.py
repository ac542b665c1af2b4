"""Studies: grids of independent cells (Tables 3 and 4 of the paper), run anywhere, kept one file per cell."""
