"""Pools of worker processes that run trials and the jobs of grids."""
