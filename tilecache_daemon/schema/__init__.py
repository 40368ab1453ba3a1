"""The database schema: migrations and their state."""
