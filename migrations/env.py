"""How Alembic runs the revisions.

Online, on the connection (and within the transaction) of whoever calls; there
is no alembic.ini. Offline, it writes the SQL without a transaction of its own.
"""

from alembic import context

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", transactional_ddl=False)
else:
    context.configure(connection=context.config.attributes["connection"])

with context.begin_transaction():
    context.run_migrations()
