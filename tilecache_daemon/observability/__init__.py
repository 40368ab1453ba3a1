"""Metrics, traces and the log of calls."""
