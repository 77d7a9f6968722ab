"""CogVideo (2022) makes a video: a first frame, key frames, frames in between again and again, larger frames, pixels.

Rows of a batch are sequences: prompts, their guides, and pairs of frames with something between. A row's result depends
on its key alone, so it is the same in any batch, up to rounding.

Shapes: B prompts, F frames, n codes of a frame.

Source: branch CogVideo of zai-org/CogVideo, `cogvideo_pipeline.py`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cogvx_jax.json_files import quoted
from cogvx_jax.models.cogvideo2022.transformer import Frames, Text
from cogvx_jax.pipelines.cogvideo2022.clusters import Draw
from cogvx_jax.pipelines.cogvideo2022.kinds import check_number, check_switch, check_whole
from cogvx_jax.pipelines.cogvideo2022.programs import decoded, enlarged, first_pass, fold, frame
from cogvx_jax.pipelines.cogvideo2022.system import INTERPOLATION, SEQUENTIAL, SUPER_RESOLUTION, System
from cogvx_jax.pipelines.cogvideo2022.text import GUIDE, batch_of, check_texts, first_frame_text, frames_text
from cogvx_jax.pipelines.options import MAX_GUIDANCE
from cogvx_jax.sharding import replicate

KEY_FRAMES_SECONDS = 4.0
FPS = 8.0  # of 33 frames
MAX_DEPTH = 3  # of the reference
MAX_BIAS = 1000.0  # far beyond all use


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a video is made. The defaults are the reference's.

    Attributes:
      depth: how often frames are put between those that are there: 5, 9, 17, 33 frames.
      guidance: of key frames; None leaves it out, and the bias of the text stands in for it.
      guidance_between: the same of frames in between.
      text_bias: added to the scores between codes and text, where there is no guidance.
      training_mask: given frames see what they see in training; the reference lets them see across the frame's edge.
      guide_shift: with `guidance_between`, the guide gets the given frames where the prompt's text would end, as in the
        reference, and not where its own does.
      rows: sequences that go through the transformer together, guides among them. Caches of one take 1.5 GB in 16 bit.
    Raises: ValueError, which names the field, for what is not of its kind, or out of range.
    """

    depth: int = 3
    first: Draw = Draw()
    frames: Draw = Draw(12, 1.05)
    large: Draw = Draw(6, 1.0, 0.6)
    guidance: float | None = 3.0
    guidance_between: float | None = None
    text_bias: float = 1.4
    training_mask: bool = False
    guide_shift: bool = False
    rows: int = 8

    def __post_init__(self) -> None:
        check_whole("depth", self.depth, 0, MAX_DEPTH)
        check_whole("rows", self.rows, 1)
        check_number("text_bias", self.text_bias, -MAX_BIAS, MAX_BIAS)
        for name in ("guidance", "guidance_between"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), -MAX_GUIDANCE, MAX_GUIDANCE)
        for name in ("training_mask", "guide_shift"):
            check_switch(name, getattr(self, name))
        for name in ("first", "frames", "large"):
            if not isinstance(value := getattr(self, name), Draw):
                raise ValueError(f"{name} is {quoted(value)}; it must be a draw: clusters, temperature, inner")


Told = Callable[[int], object]  # is called with the number of frames that were just made


def untold(frames: int) -> None:
    """Nobody is told."""


def make_codes(
    system: System,
    prompts: Sequence[str],
    settings: Settings,
    *,
    seed: int = 0,
    first: np.ndarray | None = None,
    told: Told = untold,
) -> np.ndarray:
    """The codes of all frames, (B, 1 + 4 * 2**depth, n).

    Args:
      first: (B, n), those of the first frames; None makes them.
      told: as all of these functions have it.
    Raises: ValueError for prompts that the model cannot read, and for numbers that are not finite.
    """
    check_texts(system.tokenizer, prompts)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(_key(system, seed), jnp.arange(len(prompts)))
    codes = first_frames(system, prompts, settings, keys, told) if first is None else np.asarray(first, np.int32)
    frames = key_frames(system, prompts, codes, settings, fold(keys, 1), told)
    seconds = KEY_FRAMES_SECONDS
    for level in range(settings.depth):
        seconds /= 2
        frames = between(system, prompts, frames, seconds, settings, fold(keys, 2 + level), told)
    return frames


def first_frames(
    system: System, prompts: Sequence[str], settings: Settings, keys: jax.Array, told: Told = untold
) -> np.ndarray:
    """(B, n): pictures, by the base alone."""
    texts = [first_frame_text(system.tokenizer, prompt) for prompt in prompts]

    def some(rows: slice, keys: jax.Array) -> np.ndarray:
        nothing = np.zeros((len(texts[rows]), 0, system.stages[SEQUENTIAL].frame_codes), np.int32)
        run = _Run(system, SEQUENTIAL, texts[rows], None, settings.text_bias, temporal=False, told=told)
        return run.frames(nothing, [0], settings.first, None, keys)[:, 0]

    return _in_parts(some, len(texts), settings.rows, keys)


def key_frames(
    system: System, prompts: Sequence[str], first: np.ndarray, settings: Settings, keys: jax.Array, told: Told = untold
) -> np.ndarray:
    """(B, n) -> (B, F, n) with the first frame, F as many as the transformer sees at once."""
    guided = settings.guidance is not None
    asked = [f"{prompt} {GUIDE}" if guided else prompt for prompt in prompts]
    texts = [frames_text(system.tokenizer, prompt, KEY_FRAMES_SECONDS) for prompt in asked]
    guide = frames_text(system.tokenizer, GUIDE, KEY_FRAMES_SECONDS) if guided else None
    bias = 0.0 if guided else settings.text_bias

    def some(rows: slice, keys: jax.Array) -> np.ndarray:
        run = _Run(system, SEQUENTIAL, texts[rows], guide, bias, told=told)
        slots = range(1, system.stages[SEQUENTIAL].frames)
        made = run.frames(first[rows, None], slots, settings.frames, settings.guidance, keys)
        return np.concatenate([first[rows, None], made], axis=1)

    return _in_parts(some, len(texts), _rows(settings.rows, guided), keys)


def between(
    system: System,
    prompts: Sequence[str],
    frames: np.ndarray,
    seconds: float,
    settings: Settings,
    keys: jax.Array,
    told: Told = untold,
) -> np.ndarray:
    """(B, F, n) -> (B, 2 F - 1, n): of three neighbours each, one frame is made before the middle one and one after.

    Args:
      seconds: that five frames take now.
    Raises: ValueError for an even F.
    """
    count = frames.shape[1]
    if count < 3 or count % 2 == 0:
        raise ValueError(f"frames are put between an odd number of 3 or more, not between {count}")
    triples = np.stack([frames[:, i : i + 3] for i in range(0, count - 2, 2)], axis=1)  # (B, pairs, 3, n)
    pairs = triples.shape[1]
    texts = [frames_text(system.tokenizer, prompt, seconds) for prompt in prompts for _ in range(pairs)]
    guided = settings.guidance_between is not None
    guide = frames_text(system.tokenizer, GUIDE, seconds) if guided else None
    bias = 0.0 if guided else settings.text_bias
    given = triples.reshape(-1, *triples.shape[2:])
    own = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(pairs)))(keys).reshape(-1)

    def some(rows: slice, keys: jax.Array) -> np.ndarray:
        quirks = dict(training_mask=settings.training_mask, guide_shift=settings.guide_shift)
        run = _Run(system, INTERPOLATION, texts[rows], guide, bias, told=told, **quirks)
        return run.frames(given[rows], [3, 4], settings.frames, settings.guidance_between, keys)

    made = _in_parts(some, len(texts), _rows(settings.rows, guided), own)
    made = made.reshape(len(prompts), pairs, 2, -1)
    whole = np.stack([triples[:, :, 0], made[:, :, 0], triples[:, :, 1], made[:, :, 1]], axis=2)
    return np.concatenate([whole.reshape(len(prompts), 4 * pairs, -1), frames[:, -1:]], axis=1)


def enlarge(
    system: System, prompts: Sequence[str], frames: np.ndarray, settings: Settings, *, seed: int = 0, first: int = 0
) -> np.ndarray:
    """(B, F, n) codes -> (B, F, 9 n), by a pass over each frame.

    Args:
      first: number of the first of these frames among all of a request, on which its noise depends.
    """
    network, length = system.super_resolution, system.stages[SUPER_RESOLUTION].text_length
    texts = [system.tokenizer.encode(prompt) for prompt in prompts for _ in range(frames.shape[1])]
    text, flat = batch_of(system.tokenizer, texts, length), frames.reshape(-1, frames.shape[-1])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(_key(system, seed), first + jnp.arange(len(flat)))
    params, clusters, mesh = system.params[SUPER_RESOLUTION], system.clusters, system.mesh

    def some(rows: slice, keys: jax.Array) -> np.ndarray:
        own = _everywhere(Text(text.ids[rows], text.real[rows]), mesh)
        codes, finite = enlarged(
            params, own, replicate(flat[rows], mesh), clusters, keys, network=network, how=settings.large, mesh=mesh
        )
        _check(finite, "super-resolution", system.dtype)
        return np.asarray(codes)

    return _in_parts(some, len(flat), 1, keys).reshape(*frames.shape[:2], -1)


def to_pixels(system: System, frames: np.ndarray, *, stretch: bool = False) -> np.ndarray:
    """(B, F, codes) -> (B, F, H, W, 3) uint8.

    Args:
      stretch: each picture's darkest and brightest values become 0 and 255, as in the reference: brightness jumps from
        frame to frame. Else values are clamped.
    """
    side = math.isqrt(frames.shape[-1])
    made = []
    for codes in frames.reshape(-1, 1, side, side):
        pixels = np.asarray(decoded(system.image_params, replicate(codes, system.mesh), network=system.images))[0]
        if stretch:
            pixels = (pixels - pixels.min()) / max(float(pixels.max() - pixels.min()), 1e-5)
        made.append(np.uint8(np.clip(pixels * 255 + 0.5, 0, 255)))
    return np.stack(made).reshape(*frames.shape[:2], *made[0].shape)


class _Run:
    """Texts of a batch, with a guide for each if there is one, through one stage."""

    def __init__(
        self,
        system: System,
        stage: str,
        texts: Sequence[Sequence[int]],
        guide: Sequence[int] | None,
        text_bias: float,
        *,
        temporal: bool = True,
        training_mask: bool = False,
        guide_shift: bool = False,
        told: Told = untold,
    ):
        self.network, self.params, self.clusters = system.network(stage), system.params[stage], system.clusters
        self.mesh, self.told = system.mesh, told
        self.text = batch_of(system.tokenizer, [*texts, *([] if guide is None else [guide] * len(texts))])
        self.shifts = [len(text) - len(guide) for text in texts] if guide is not None and guide_shift else None
        self.guided, self.dtype, self.stage = guide is not None, system.dtype, stage
        self.how = Frames((), 0, training_mask, temporal, text_bias)

    def frames(
        self, given: np.ndarray, slots: Sequence[int], how: Draw, guidance: float | None, keys: jax.Array
    ) -> np.ndarray:
        """(B, given, n) -> (B, slots, n)."""
        both = np.concatenate([given, self._guide_frames(given)]) if self.guided else given
        order = self.network.cfg.order[: given.shape[1]]
        frames = self.how._replace(order=order, given=len(order))
        text, mesh = _everywhere(self.text, self.mesh), self.mesh
        cache = first_pass(self.params, text, replicate(both, mesh), network=self.network, frames=frames, mesh=mesh)
        made = []
        for slot in slots:
            codes, cache, finite = frame(
                self.params, cache, text.real, self.clusters, fold(keys, slot),
                network=self.network, slot=slot, how=how, guidance=guidance, text_bias=self.how.text_bias, mesh=mesh,
            )  # fmt: skip
            _check(finite, f"the {self.stage} stage", self.dtype)
            made.append(np.asarray(codes))
            self.told(len(codes))
        return np.stack(made, axis=1)

    def _guide_frames(self, given: np.ndarray) -> np.ndarray:
        """What the guide is given: the same frames, or those later by the difference of the texts' lengths."""
        if self.shifts is None:
            return given
        flat, shifts = given.reshape(len(given), -1), (max(shift, 0) for shift in self.shifts)
        moved = [np.pad(row, (n, 0), constant_values=-1)[: len(row)] for row, n in zip(flat, shifts, strict=True)]
        return np.stack(moved).reshape(given.shape)


def _check(finite: jax.Array, what: str, dtype: str) -> None:
    if not bool(finite):
        why = "its weights are damaged" if dtype == "float32" else f"{dtype} may be too narrow; compute in float32"
        why = "float16 overflows there; compute in bfloat16 or float32" if dtype == "float16" else why
        raise ValueError(f"{what} of CogVideo gave numbers that are not finite: {why}")


def _key(system: System, seed: int) -> jax.Array:
    """The key of a seed, on all devices of the system."""
    return jax.random.wrap_key_data(replicate(jax.random.key_data(jax.random.key(seed)), system.mesh))


def _everywhere(text: Text, mesh: Mesh | None) -> Text:
    return Text(*(replicate(part, mesh) for part in text))


def _rows(rows: int, guided: bool) -> int:
    return max(rows // 2, 1) if guided else rows


def _in_parts(function: Callable[[slice, jax.Array], np.ndarray], count: int, most: int, keys: jax.Array) -> np.ndarray:
    """`function` of rows and their keys, at most so many at a time; parts are about as large as each other."""
    size = -(-count // -(-count // most))
    return np.concatenate([function(slice(i, i + size), keys[i : i + size]) for i in range(0, count, size)])
