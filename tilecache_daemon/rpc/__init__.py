"""The gRPC interface: sockets, request validation, and mapping to and from messages."""
