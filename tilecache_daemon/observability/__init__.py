"""What can be seen of the daemon from outside: metrics, traces, the log of calls."""
