"""Memory before a run: a dry run on fake tensors, counted by category."""
