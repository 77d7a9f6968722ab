"""`python -m cogvx_jax.cli`."""

from cogvx_jax.cli import main

main()
