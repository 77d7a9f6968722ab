"""Sizes of CogVideo (2022). The defaults are the published model's.

Frames have numbers 0 to 4, in the order of time. A sequence holds them in slots: in training and in the first stage
slot s holds frame s; where frames are interpolated, the given ones come first.
"""

import dataclasses
from typing import Literal

Stage = Literal["sequential", "interpolation", "super_resolution"]
PAD, START_OF_IMAGE, LINE_BREAK = "<pad>", "<start_of_image>", "<n>"
TEXT_OFFSET = 20_000  # ids below are codes of pictures
MAX_TEXT = 74  # of a prompt with what is put around it, as many as the reference's caches hold
ADDED = (START_OF_IMAGE, "<start_of_english>", "<start_of_chinese>")  # after the pieces of the tokenizer, in this order


@dataclasses.dataclass(frozen=True, kw_only=True)
class CogVideo2022Config:
    """Sizes of a stage: the base, which all have in common, and its own channel.

    Raises: ValueError, which names the field, for sizes that do not go together.
    """

    stage: Stage = "sequential"
    layers: int = 48
    heads: int = 48  # A
    head_dim: int = 64  # K
    vocab: int = 150_010
    codes: int = 20_000  # ids of pictures, the first of the vocabulary; no others are predicted
    start_of_image: int = 150_000  # the first input of every frame
    base_positions: int = 1024
    extra_positions: int = 2000  # of the channel
    grid: int = 20  # rows and columns of a frame's codes
    first_position: int = 512  # of a frame 0's first code
    frames: int = 5
    window: int = 10  # of the interpolation's temporal channel, in rows and columns of the grid
    text_length: int = 64  # of training
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        frame = f"a frame of grid {self.grid} by {self.grid}"
        last = self.first_position + self.frame_codes
        _at_least(
            "base_positions", self.base_positions, last, f"for {frame} after first_position {self.first_position}"
        )
        _at_least("base_positions", self.base_positions, MAX_TEXT, "for the text of a prompt")
        _at_least("base_positions", self.base_positions, self.text_length, f"for text_length {self.text_length}")
        _at_least("start_of_image", self.start_of_image, self.codes, f"after {self.codes} codes")
        _at_least("vocab", self.vocab, self.start_of_image + 1, f"to hold start_of_image {self.start_of_image}")
        self._check_channel(frame)

    def _check_channel(self, frame: str) -> None:
        others = (self.frames - 1) * self.frame_codes
        _at_least("frames", self.frames, 2, "for a video")
        _at_least("extra_positions", self.extra_positions, others, f"for {self.frames - 1} times {frame}")
        if self.stage != "interpolation":
            return
        if self.frames != 5:
            raise ValueError(f"frames is {self.frames}, but an interpolation puts 2 between 3, so it must be 5")
        _at_least("window", self.window, 2, "to be moved in every other layer")
        if self.grid % self.window:
            raise ValueError(f"window is {self.window}, which does not divide grid {self.grid}")

    @property
    def width(self) -> int:  # D
        return self.heads * self.head_dim

    @property
    def mlp(self) -> int:  # M
        return 4 * self.width

    @property
    def frame_codes(self) -> int:
        return self.grid**2

    @property
    def order(self) -> tuple[int, ...]:
        """The frame in each slot of a sequence that is generated."""
        if self.stage == "interpolation":
            return (*range(0, self.frames, 2), *range(1, self.frames, 2))
        return tuple(range(self.frames))

    @property
    def given(self) -> int:
        """Slots whose frames an interpolation is given."""
        return (self.frames + 1) // 2 if self.stage == "interpolation" else 0

    @property
    def window_side(self) -> int:
        """Rows and columns that the temporal channel sees together."""
        return self.window if self.stage == "interpolation" else self.grid

    @property
    def shift(self) -> int:
        """By how many rows and columns the windows of layers 1, 3, 5, ... are moved; 0: all layers are alike."""
        return self.window // 2 if self.stage == "interpolation" else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperResolutionConfig(CogVideo2022Config):
    """CogView2's direct super-resolution: 20x20 codes to 60x60 in one pass."""

    stage: Stage = "super_resolution"
    extra_positions: int = 3600
    text_length: int = 96
    first_position: int = 513  # one more than in the other stages
    scale: int = 3  # of the grid
    near: tuple[int, int] = (9, 5)  # rows and columns of the large grid that a code sees, with itself in the middle
    near_small: tuple[int, int] = (5, 5)  # the same of the small grid

    def _check_channel(self, frame: str) -> None:
        large = f"for a frame of {self.large_grid} by {self.large_grid}"
        _at_least("extra_positions", self.extra_positions, self.large_grid**2, large)
        _at_least("text_length", self.text_length, MAX_TEXT, "for the text of a prompt")

    @property
    def large_grid(self) -> int:
        return self.scale * self.grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTokenizerConfig:
    """The hierarchical VQ-VAE: one encoder and codebook, a decoder for each rate."""

    codes: int = 20_000
    code_width: int = 256
    channels: int = 128
    encoder: tuple[int, ...] = (1, 2, 4)  # channels of each level, in multiples; the rate is 4
    encoder_blocks: int = 2  # of a level
    # By rate. The reference names its decoders 0, 1, 2 from the coarsest.
    decoders: tuple[tuple[int, tuple[int, ...]], ...] = ((16, (1, 1, 1, 2, 4)), (8, (1, 1, 2, 4)), (4, (1, 2, 4)))
    attends: int = 16  # the rate whose decoder has attention in its lowest level, too
    groups: int = 32
    norm_eps: float = 1e-6

    @property
    def rates(self) -> tuple[int, ...]:
        return tuple(rate for rate, _ in self.decoders)

    @property
    def rate(self) -> int:
        """That of frames, small and large: 8 or, where there is none, the finest."""
        return 8 if 8 in self.rates else min(self.rates)


IMAGE_TOKENIZER = ImageTokenizerConfig()  # the published one


def _at_least(name: str, size: int, least: int, why: str) -> None:
    if size < least:
        raise ValueError(f"{name} is {size}, but must be {least} at least {why}")
