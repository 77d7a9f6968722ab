"""`python -m cogvx_jax.cli`."""

from cogvx_jax.cli.main import main

main()
