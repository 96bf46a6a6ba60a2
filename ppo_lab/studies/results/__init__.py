"""What a study found: statistics, confirmation, files, the panel and its W&B run."""
