"""Blocks of tiles in memory, in their wire form."""
