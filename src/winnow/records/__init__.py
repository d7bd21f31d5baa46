"""Records of runs as plain files: what a run is, what it measured, how it was made. No torch."""
