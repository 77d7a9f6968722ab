"""The diffusion process: its schedule, samplers, guidance and training objective."""

from cogvx_jax.diffusion import guidance, objective, samplers, schedule

__all__ = ["guidance", "objective", "samplers", "schedule"]
