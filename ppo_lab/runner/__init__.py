"""Configs to finished run folders."""
