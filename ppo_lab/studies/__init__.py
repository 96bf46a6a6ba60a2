"""Studies: search spaces, samplers, pruning, trials and their storage, on Optuna."""
