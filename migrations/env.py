"""Runs the revisions for Alembic, without an alembic.ini.

Online, on the caller's connection and in its transaction. Offline, it writes the SQL
without BEGIN and COMMIT.
"""

from alembic import context

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", transactional_ddl=False)
else:
    context.configure(connection=context.config.attributes["connection"])

with context.begin_transaction():
    context.run_migrations()
