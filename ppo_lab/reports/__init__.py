"""The page and the pictures of finished runs: loading, statistics, figures, HTML."""
