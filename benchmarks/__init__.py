"""Benchmarks of speed, memory and learning; ``results/`` holds the latest results."""
