"""Published checkpoints (the layout of diffusers and transformers) to and from our parameters."""

from cogvx_jax.convert.checkpoint import expected_shapes, load_params
from cogvx_jax.convert.config import write_configs
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.export import export
from cogvx_jax.convert.lora import read_lora
from cogvx_jax.convert.lora_file import open_lora
from cogvx_jax.convert.lora_write import convert_lora, write_lora
from cogvx_jax.convert.lpips import read_lpips
from cogvx_jax.convert.orbax import verify
from cogvx_jax.convert.orbax_export import write_orbax
from cogvx_jax.convert.quantize import write_quantized
from cogvx_jax.convert.sources import read_spec

__all__ = [
    "ConversionError",
    "convert_lora",
    "expected_shapes",
    "export",
    "load_params",
    "open_lora",
    "read_lora",
    "read_lpips",
    "read_spec",
    "verify",
    "write_configs",
    "write_lora",
    "write_orbax",
    "write_quantized",
]
