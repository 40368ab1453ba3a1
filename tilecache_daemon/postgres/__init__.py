"""The PostgreSQL server that the daemon runs itself where none is configured."""
