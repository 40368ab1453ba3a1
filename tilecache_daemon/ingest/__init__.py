"""Importing tiles: sources give them, the importer sends them to the daemon."""
