"""Text as an environment: an episode is a sentence, an action its next token."""
