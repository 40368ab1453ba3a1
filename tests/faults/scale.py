"""The duration of the tests: seconds in `make test`, minutes in `make soak`."""

import os

SOAKING = bool(os.environ.get("TILECACHE_SOAK"))

ROUNDS = 20 if SOAKING else 1
"""How often faults are repeated."""
OUTAGE_S = 60.0 if SOAKING else 1.0
"""The duration of an outage."""
