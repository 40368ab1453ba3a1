"""How long the tests go on: seconds in `make test`, minutes in `make soak`."""

import os

SOAKING = bool(os.environ.get("TILECACHE_SOAK"))

ROUNDS = 20 if SOAKING else 2
"""How often what can be repeated is."""
OUTAGE_S = 60.0 if SOAKING else 1.0
"""How long PostgreSQL stays away."""
