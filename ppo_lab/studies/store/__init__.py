"""Storage of a study's trials, and which process owns them."""
