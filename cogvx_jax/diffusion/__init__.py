"""The diffusion process: its schedule, samplers, guidance and training objective."""
