"""Where arrays live: one table from the names of axes to the axes of a mesh."""

from cogvx_jax.sharding.rules import RULES, activate, place, spec

__all__ = ["RULES", "activate", "place", "spec"]
