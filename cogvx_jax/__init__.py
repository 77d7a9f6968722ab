"""cogvx_jax: CogVideoX in JAX and Flax."""
