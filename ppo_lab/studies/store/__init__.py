"""Where a study's trials are stored, and who owns them."""
