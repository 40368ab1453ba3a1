"""Errors of an import."""


class SourceError(Exception):
    """A source cannot be read. The message names it."""
