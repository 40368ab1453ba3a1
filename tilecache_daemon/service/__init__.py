"""The use cases. They know neither gRPC nor psycopg."""
