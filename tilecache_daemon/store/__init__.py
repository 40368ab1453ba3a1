"""Access to PostgreSQL: one method per query."""
