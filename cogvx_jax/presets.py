"""The five published models as values. `HUB` says where their weights are, `LICENCES` under which licence.

`SHIPPED` names the models that come with the package.
"""

import dataclasses

from cogvx_jax.configs import GenerationDefaults, ModelSpec, ScheduleConfig, TransformerConfig, VAEConfig

_ROPE = TransformerConfig(layers=42, heads=48, position="rope")
_ROPE_IMAGE = TransformerConfig(layers=42, heads=48, position="rope+learned", in_channels=32)
# Its sizes are the limits of the positions, not a native size: 2400x2400 pixels.
_SLICE = TransformerConfig(
    layers=42, heads=48, position="rope_slice", patch_t=2, sample_height=300, sample_width=300, sample_frames=81
)
_LARGE = GenerationDefaults(height=768, width=1360, num_frames=81, fps=16, sampler="dpm")
_NO_SHIFT = ScheduleConfig(snr_shift=1.0)

PRESETS = {
    "2b": ModelSpec(),
    "5b": ModelSpec(
        name="CogVideoX-5b",
        transformer=_ROPE,
        vae=VAEConfig(scaling_factor=0.7),
        schedule=_NO_SHIFT,
        defaults=GenerationDefaults(sampler="dpm"),
        trained_dtype="bfloat16",
    ),
    "5b-i2v": ModelSpec(
        name="CogVideoX-5b-I2V",
        transformer=_ROPE_IMAGE,
        vae=VAEConfig(scaling_factor=0.7),
        schedule=_NO_SHIFT,
        defaults=GenerationDefaults(sampler="dpm"),
        trained_dtype="bfloat16",
    ),
    "1.5-5b": ModelSpec(
        name="CogVideoX1.5-5B",
        transformer=_SLICE,
        vae=VAEConfig(scaling_factor=0.7, invert_scale_latents=True),
        schedule=_NO_SHIFT,
        defaults=_LARGE,
        trained_dtype="bfloat16",
    ),
    "1.5-5b-i2v": ModelSpec(
        name="CogVideoX1.5-5B-I2V",
        transformer=dataclasses.replace(_SLICE, in_channels=32, ofs_dim=512),
        vae=VAEConfig(scaling_factor=0.7, invert_scale_latents=True),
        schedule=_NO_SHIFT,
        defaults=_LARGE,
        trained_dtype="bfloat16",
    ),
}

SHIPPED = ("tiny", "tiny-inp")  # folders of these names lie in `assets`; they are Apache-2.0
SHIPPED_2022 = ("tiny2022",)  # the same of CogVideo (2022), whose parts are others
PUBLISHED_2022 = "cogvideo2022"  # CogVideo (2022) where no files are needed, as for `cogvx plan`
HUB = {preset: f"zai-org/{spec.name}" for preset, spec in PRESETS.items()}
LICENCES = {preset: "Apache-2.0" if preset == "2b" else "CogVideoX LICENSE" for preset in PRESETS}
