"""What a study leaves: tables, the confirmed best config, files, W&B."""
