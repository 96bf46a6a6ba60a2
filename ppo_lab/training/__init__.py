"""The training loop over a stack of lanes, and what it records."""
