"""What the unit tests share."""

from hypothesis import settings

# A machine with other work to do may be slow now and then.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
