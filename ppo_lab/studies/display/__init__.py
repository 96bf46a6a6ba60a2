"""The progress of a study while it runs: a live table or log lines."""
