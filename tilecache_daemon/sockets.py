"""Sockets that belong to somebody else."""

import os
import socket


def shut_down(descriptor: int) -> None:
    """Ends a socket's connection, so that whoever waits on it fails at once; the descriptor
    stays open. May be called from any thread. Raises OSError."""
    with socket.socket(fileno=os.dup(descriptor)) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)
