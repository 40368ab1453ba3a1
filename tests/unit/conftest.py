"""Settings of the unit tests."""

from hypothesis import settings

# A busy machine may exceed the deadline of an example.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
