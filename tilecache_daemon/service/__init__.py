"""The use cases. Independent of gRPC and psycopg."""
