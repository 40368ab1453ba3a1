"""Synchronisation of two daemons, as a client of both."""
