"""The Python client of tilecache-daemon."""
