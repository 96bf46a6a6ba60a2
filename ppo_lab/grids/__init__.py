"""Grids of runs: Hydra's own, and stacked into lanes."""
