"""Frozen configurations of the model's parts. The defaults are CogVideoX-2B."""

import dataclasses
import math
from typing import Literal, get_args

from cogvx_jax.quantization import find_quantization

Position = Literal["sincos", "rope", "rope+learned", "rope_slice"]
Kind = Literal["t2v", "i2v", "control", "inpaint"]
Remat = Literal["none", "products", "block", "offload"]
DType = Literal["float32", "bfloat16", "float16"]  # to compute in
DTYPES: tuple[str, ...] = get_args(DType)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and options of the expert transformer. Lengths are in latent units unless said."""

    layers: int = 30
    heads: int = 30  # A
    head_dim: int = 64  # K
    in_channels: int = 16  # 32 where image latents are concatenated
    out_channels: int = 16  # C
    patch: int = 2  # in height and width
    patch_t: int | None = None  # in time; None: per frame, as a convolution in the checkpoint
    text_dim: int = 4096  # width of the text encoder
    text_length: int = 226  # L
    time_dim: int = 512
    control: bool = False  # as many channels again hold the latents of a control video, not of an image
    ofs_dim: int | None = None  # width of the `ofs` embedding of 1.5-I2V
    position: Position = "sincos"
    sample_height: int = 60  # native size; the position tables are anchored to it
    sample_width: int = 90
    sample_frames: int = 49  # pixel frames
    temporal_compression: int = 4
    spatial_interpolation: float = 1.875  # sincos only
    temporal_interpolation: float = 1.0
    riflex: bool = False  # clips longer than trained have RIFLEx's rotary positions; asked for, never of a checkpoint
    norm_eps: float = 1e-5  # q/k norms have their own, 1e-6

    @property
    def width(self) -> int:  # D
        return self.heads * self.head_dim

    @property
    def mlp(self) -> int:  # M
        return 4 * self.width

    @property
    def sample_latent_frames(self) -> int:
        return (self.sample_frames - 1) // self.temporal_compression + 1

    @property
    def rotates(self) -> bool:
        """Whether positions are rotary alone, so that clips of other lengths have some."""
        return self.position in ("rope", "rope_slice")

    @property
    def conditions_on_image(self) -> bool:
        return self.in_channels == 2 * self.out_channels and not self.control

    @property
    def inpaints(self) -> bool:
        """Whether channels of a mask and of a masked video come after the noise."""
        return self.in_channels == 2 * self.out_channels + 1

    @property
    def condition_channels(self) -> int:
        """How many channels come after those of the noise."""
        return self.in_channels - self.out_channels

    @property
    def resizes_positions(self) -> bool:
        """Whether sincos positions of other sizes are the native ones resized, as CogVideoX-Fun trains its models."""
        return self.position == "sincos" and (self.control or self.inpaints)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToraConfig:
    """Sizes of Tora's modules beside an expert transformer. The defaults are those for 5B."""

    layers: int = 42  # of the transformer, each of which has a fuser
    width: int = 3072
    channels: int = 128  # of features
    latent_channels: int = 16
    blocks: int = 2  # of the extractor for a layer
    patch: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlNetConfig:
    """Sizes of a ControlNet beside an expert transformer, as TheDenk makes them. The defaults are those for 2B."""

    layers: int = 8  # fewer than the transformer's, whose first blocks it adds to
    heads: int = 30
    head_dim: int = 64
    latent_channels: int = 16
    downscale: int = 8  # of frames, in height and width
    patch: int = 2
    text_dim: int = 4096
    time_dim: int = 512
    adds_positions: bool = True  # sincos ones, also beside a transformer of rotary ones, whose angles it uses, too
    out_dim: int | None = None  # width of what projectors make of each block's tokens; None: there are none
    spatial_interpolation: float = 1.875
    temporal_interpolation: float = 1.0
    norm_eps: float = 1e-5

    @property
    def frame_channels(self) -> int:
        """Of a pixel-unshuffled frame."""
        return 3 * self.downscale**2

    @property
    def control_channels(self) -> int:
        """Of what the frames' encoder gives."""
        return self.frame_channels // 4

    @property
    def state_width(self) -> int:
        """Of what it adds to a transformer's tokens."""
        return self.transformer.width if self.out_dim is None else self.out_dim

    @property
    def transformer(self) -> TransformerConfig:
        """That its embeddings and blocks are of."""
        channels = self.latent_channels + self.control_channels
        return TransformerConfig(
            layers=self.layers,
            heads=self.heads,
            head_dim=self.head_dim,
            in_channels=channels,
            out_channels=channels,
            patch=self.patch,
            text_dim=self.text_dim,
            time_dim=self.time_dim,
            position="sincos",
            spatial_interpolation=self.spatial_interpolation,
            temporal_interpolation=self.temporal_interpolation,
            norm_eps=self.norm_eps,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Sizes of the 3D causal VAE: 8x8 in space for four levels, `temporal_compression` in time."""

    channels: tuple[int, ...] = (128, 256, 256, 512)  # encoder levels, finest first
    layers: int = 3  # resnets per encoder level; the decoder has one more
    latent_channels: int = 16
    groups: int = 32
    norm_eps: float = 1e-6
    temporal_compression: int = 4
    scaling_factor: float = 1.15258426  # model latents = posterior sample * scaling_factor
    invert_scale_latents: bool = False  # 1.5-I2V divides its image latents instead
    sample_height: int = 480  # pixels; tiles are half of it
    sample_width: int = 720
    # The norms take their statistics over one frame batch, so these two change the result: they
    # are semantics, not memory knobs. None is the whole clip at once.
    encode_frames: int | None = 8  # pixel frames per batch, the remainder joins the first
    decode_frames: int | None = 2  # latent frames per batch
    taehv: bool = False  # it is the tiny autoencoder of `models.taehv`, whose widths are fixed

    @property
    def spatial_compression(self) -> int:
        return 2 ** (len(self.channels) - 1)

    @property
    def time_levels(self) -> int:
        """How many of the levels halve (encoder) or double (decoder) time: the first ones."""
        return self.temporal_compression.bit_length() - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Sizes of the T5 v1.1 encoder. The defaults are T5-XXL."""

    layers: int = 24
    width: int = 4096
    heads: int = 64
    head_dim: int = 64
    mlp: int = 10240
    vocab: int = 32128
    buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The noise schedule. All five models share these numbers but for `snr_shift`."""

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    snr_shift: float = 3.0  # 2B; 1.0 for the others
    zero_terminal_snr: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """Defaults of `generate` for one model. Sizes are pixels."""

    height: int = 480
    width: int = 720
    num_frames: int = 49
    fps: int = 8
    num_inference_steps: int = 50
    guidance_scale: float = 6.0
    sampler: str = "ddim"  # of `diffusion.samplers.SAMPLERS`
    image_noise: float = 0.0  # deviation of noise on pictures, in pixels of -1 to 1
    # how it was made a model of few steps, by `cogvx distill`; those above are what it is for. "": it was not
    distilled: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distilled:
    """How a model is sampled from with a LoRA of few steps, which says so in its run or its file's metadata.

    Raises: ValueError for numbers that cannot be.
    """

    method: str  # of `train.transformer.settings.METHODS`
    steps: int
    sampler: str  # of `diffusion.samplers.SAMPLERS`
    guidance_scale: float = 1.0

    def __post_init__(self):
        if not 1 <= self.steps <= 1000:
            raise ValueError(f"its steps must be 1 to 1000, got {self.steps}")
        if not 0 <= self.guidance_scale <= 1000:
            raise ValueError(f"its guidance scale must be 0 to 1000, got {self.guidance_scale:g}")
        if not 1 <= len(self.method) <= 40:
            raise ValueError(f"its method must be a word, got {self.method[:40]!r}")

    def __str__(self) -> str:
        return f"{self.steps} steps of {self.sampler} at guidance scale {self.guidance_scale:g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """How a model is computed. It changes speed, memory and rounding, and is no part of the model's spec."""

    dtype: str = "float32"  # of activations; norms, softmax and the time embedding stay float32
    remat: Remat = "none"  # the transformer's: which activations the backward pass recomputes; see `nn.remat`
    # The transformer's: no attention logit is above it, by the weights of the q/k norms. `load` fills it in, as a
    # kernel must know it when it is compiled. None: unknown, as where those weights are trained.
    logit_bound: float | None = None
    # The VAE's: how many strips of rows a large frame is worked through in; see `nn.strips`. 1: whole frames.
    strips: int = 1
    # What saves memory where nothing is trained; see `nn.stacked`. `pipelines.memory_modes` chooses among them.
    rows_apart: bool = False  # the transformer's: rows of the batch go through a layer one after the other
    mlp_tokens: int | None = None  # the transformer's: so many go through an MLP at a time; None: all
    streamed: bool = False  # the kernels of blocks, also the text encoder's, wait in the host's memory
    quantize: str | None = None  # how the transformer and the text encoder are quantised; see `quantization`

    @property
    def quantizes_tokens(self) -> bool:
        """Whether the transformer's products take integers."""
        return self.quantize is not None and find_quantization(self.quantize).tokens

    @property
    def quantizes_scores(self) -> bool:
        """Whether the transformer's attention multiplies integers, on devices that gain by it."""
        return self.quantize is not None and find_quantization(self.quantize).scores

    def of(self, component: str) -> "Compute":
        """The options of one component, "transformer", "vae" or "text_encoder"; those it does not read are defaults."""
        if component == "transformer":
            return dataclasses.replace(self, strips=1)
        # T5 overflows in float16.
        safe = "float32" if component == "text_encoder" and self.dtype == "float16" else self.dtype
        text = component == "text_encoder"
        return Compute(
            dtype=safe,
            strips=self.strips if component == "vae" else 1,
            streamed=self.streamed and text,
            quantize=self.quantize if text else None,
        )

    def parameter_dtype(self, component: str) -> str:
        """The type of a component's parameters that are not quantised: its activations', but float32 for the VAE."""
        return "float32" if component == "vae" else self.of(component).dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything about a model but its numbers: a variant is a value of this class."""

    name: str = "CogVideoX-2b"
    transformer: TransformerConfig = TransformerConfig()
    vae: VAEConfig = VAEConfig()
    text_encoder: T5Config = T5Config()
    schedule: ScheduleConfig = ScheduleConfig()
    defaults: GenerationDefaults = GenerationDefaults()
    trained_dtype: str = "float16"

    def distilled(self, how: Distilled | None) -> "ModelSpec":
        """The same model with steps, sampler and guidance of a LoRA that makes it one of few steps; None has none."""
        if how is None:
            return self
        defaults = dataclasses.replace(
            self.defaults,
            distilled=how.method,
            num_inference_steps=how.steps,
            sampler=how.sampler,
            guidance_scale=how.guidance_scale,
        )
        return dataclasses.replace(self, defaults=defaults)

    @property
    def kind(self) -> Kind:
        if self.transformer.inpaints:
            return "inpaint"
        if self.transformer.control:
            return "control"
        return "i2v" if self.transformer.conditions_on_image else "t2v"


TARGETS = {  # as PEFT users name them -> kernels of the transformer
    "to_q": ("blocks/attention/q/kernel",),
    "to_k": ("blocks/attention/k/kernel",),
    "to_v": ("blocks/attention/v/kernel",),
    "to_out.0": ("blocks/attention/out/kernel",),
    "ff": ("blocks/mlp/up/kernel", "blocks/mlp/down/kernel"),
}
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """What to adapt, and by how much. The defaults but for the rank are those of the authors' trainer.

    Raises: ValueError for a rank below 1, an alpha that is not positive, an unknown target, or none.
    """

    rank: int = 64  # of the adapters
    alpha: float | None = None  # alpha / rank is the factor of the adapters; None is the rank
    targets: tuple[str, ...] = ATTENTION  # what to adapt: to_q, to_k, to_v, to_out.0, ff

    def __post_init__(self):
        if self.alpha is None:
            object.__setattr__(self, "alpha", float(self.rank))
        if self.rank < 1:
            raise ValueError(f"the rank of a LoRA must be at least 1, got {self.rank}")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"the alpha of a LoRA must be a positive number, got {self.alpha:g}")
        unknown = [t for t in self.targets if t not in TARGETS]
        if unknown or not self.targets:
            named = f"unknown LoRA target {unknown[0]!r}" if unknown else "a LoRA needs a target"
            raise ValueError(f"{named}; the known ones are {', '.join(TARGETS)}")

    @property
    def scale(self) -> float:
        """Factor of the adapters."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(path for target in self.targets for path in TARGETS[target])


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Sizes of the patch discriminator."""

    width: int = 64  # channels of its first layer; each further one doubles them, up to 8 times
    layers: int = 3  # that halve height and width
    groups: int | None = None  # of the norms; None is 32, or the width if that is smaller
    norm_eps: float = 1e-6

    def __post_init__(self):
        object.__setattr__(self, "groups", self.norm_groups)
        if self.layers < 1 or self.norm_groups < 1 or 2 * self.width % self.norm_groups:
            raise ValueError(
                f"a discriminator of width {self.width} and {self.layers} layers cannot have {self.groups} groups"
            )

    @property
    def norm_groups(self) -> int:
        return min(32, self.width) if self.groups is None else self.groups
