"""The command line `cogvx`: a file for each verb."""

from cogvx_jax.cli.generate import main, parse_size, read_jobs

__all__ = ["main", "parse_size", "read_jobs"]
