"""Many runs of one preset: seeds, grids and searches, on this machine or on Ray."""
