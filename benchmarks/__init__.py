"""Measurements of speed and learning; ``results/`` holds what they last found, and where."""
