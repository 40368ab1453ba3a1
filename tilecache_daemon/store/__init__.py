"""Access to PostgreSQL: one method a query."""
