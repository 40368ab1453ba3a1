"""Settings of the unit tests."""

from hypothesis import HealthCheck, settings

# A busy machine may exceed the deadline of an example, and take long to make one.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
