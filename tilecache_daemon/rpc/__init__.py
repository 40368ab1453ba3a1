"""The wire: what is said over gRPC, and nothing else."""
