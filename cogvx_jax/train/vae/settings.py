"""What makes a run of a VAE what it is, as values that need no jax: they are the command line, too."""

import dataclasses
from typing import Self

from cogvx_jax.configs import DiscriminatorConfig, GenerationDefaults


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEObjective:
    """Weights of the terms, each of them a mean: over pixels, frames, numbers of the latents, or logits.

    Raises: ValueError for numbers that cannot be.
    """

    l1: float = 1.0  # weight of the absolute error of pixels
    squared: float = 0.0  # of the squared error
    lpips: float = 1.0  # of LPIPS
    lpips_frames: int | None = None  # frames that LPIPS compares in each update, drawn at random; None is all
    kl: float = 1e-6  # of the divergence of the latents from a normal distribution, a mean over their numbers
    # weight of the adversary's gradient in the decoder's last layer, against that of the rest
    adversarial: float = 0.5
    adaptive: bool = True  # weigh it so in every update; else `adversarial` is the plain weight of its loss
    discriminator_start: int | None = None  # updates after which a 3D discriminator joins in; None is never

    def __post_init__(self):
        if min(self.l1, self.squared, self.lpips, self.kl, self.adversarial) < 0:
            raise ValueError("the weights of the VAE's loss must be at least 0")
        if self.l1 + self.squared == 0:
            raise ValueError("l1 and squared cannot both be 0: nothing would hold the colours")
        if self.lpips_frames is not None and self.lpips_frames < 1:
            raise ValueError(f"lpips_frames must be at least 1, got {self.lpips_frames}")
        if self.discriminator_start is not None and self.discriminator_start < 0:
            raise ValueError(f"discriminator_start must be at least 0, got {self.discriminator_start}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEStageSettings:
    """Of a stage of a run, all but its videos. Raises: ValueError for numbers that cannot be."""

    steps: int = 1000  # updates, those of an earlier part of the run included; with --stages, those of a stage
    height: int | None = None  # of the clips; None is 256, or the model's own if that is smaller
    width: int | None = None  # likewise
    frames: int = 17  # of each clip, 8N+1; 1 takes single frames
    fps: tuple[float, ...] = (8.0, 16.0)  # frames per second, one of which is drawn for each clip
    batch_size: int = 1  # clips an update
    learning_rate: float = 1e-5  # of the VAE, reached after `warmup` updates
    warmup: int = 100  # updates, of either network since it or the stage began

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.batch_size < 1:
            raise ValueError(f"the batch size must be at least 1, got {self.batch_size}")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"a learning rate must be above 0 and below 1, got {self.learning_rate}")
        if self.warmup < 0:
            raise ValueError(f"warmup must be at least 0, got {self.warmup}")
        if self.frames < 1 or self.frames % 8 != 1:
            raise ValueError(f"a clip must have 8N+1 frames, got {self.frames}")
        if any(size is not None and (size < 16 or size % 8) for size in (self.height, self.width)):
            raise ValueError(f"height and width must be multiples of 8 from 16 on, got {self.height}x{self.width}")
        if not self.fps or not min(self.fps) > 0:
            raise ValueError(f"fps must be positive, got {self.fps}")

    def sized(self, own: GenerationDefaults) -> Self:
        """The same with height and width, for a model of such a size."""
        height, width = self.height or min(256, own.height), self.width or min(256, own.width)
        return dataclasses.replace(self, height=height, width=width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAERunConfig:
    """What makes a run what it is, but for its stages. The defaults are the paper's first stage.

    Raises: ValueError for numbers that cannot be.
    """

    objective: VAEObjective = VAEObjective()  # The terms of the loss
    discriminator: DiscriminatorConfig = DiscriminatorConfig()  # The adversary
    decoder_only: bool = False  # keep the encoder, and so the latents, as they are
    # norms over the whole clip, as the authors trained, not over frame batches as in use
    whole_clips: bool = False
    # of the discriminator, which warms up as long when it begins
    discriminator_rate: float = 1e-4
    weight_decay: float = 1e-4  # of the VAE's optimizer
    # decay of the moving average that is exported; 0 keeps none, which saves its memory
    average: float = 0.99
    validation: float = 0.0  # videos to keep out and validate with: a share of them, or from 1 on their number
    seed: int = 0  # of all that is random

    def __post_init__(self):
        if not 0 < self.discriminator_rate < 1:
            raise ValueError(f"a learning rate must be above 0 and below 1, got {self.discriminator_rate}")
        if self.weight_decay < 0 or not 0 <= self.average < 1:
            raise ValueError("weight decay must be at least 0, the average's decay in 0..1")
