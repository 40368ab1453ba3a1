"""Exports tiles: their images are read, checked and written into a bundle or an MBTiles file."""
