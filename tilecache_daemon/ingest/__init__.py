"""Imports tiles: a source yields them, the importer sends them to the daemon."""
