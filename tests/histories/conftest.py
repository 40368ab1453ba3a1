"""Fixtures of the histories."""

from tests.faults.conftest import foreign

__all__ = ["foreign"]
