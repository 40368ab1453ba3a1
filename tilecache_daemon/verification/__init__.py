"""Comparison of stored tiles with the files of their directory."""
