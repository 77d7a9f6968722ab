"""Frames finished as they come: enlarged in tiles, resized, interpolated. Memory does not grow with the video."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cogvx_jax.finishing.ahead import ahead
from cogvx_jax.finishing.colour import to_bytes
from cogvx_jax.finishing.cuts import is_cut
from cogvx_jax.finishing.fit import fit
from cogvx_jax.finishing.interpolate import between, between_all, middle_program, middles_program, pairs_at_once
from cogvx_jax.finishing.networks import Loaded, load_interpolator, load_upscaler
from cogvx_jax.finishing.options import Finish, Geometry
from cogvx_jax.finishing.packaged import INTERPOLATORS, UPSCALERS, find_weights
from cogvx_jax.finishing.rates import frame_count, last_count, levels, parts
from cogvx_jax.finishing.source import Opened, open_source
from cogvx_jax.finishing.upscale import upscale_program
from cogvx_jax.nn.pixels import LEVELS, as_levels
from cogvx_jax.sharding import parse_mesh

Way = tuple[jax.Array, jax.Array, Sequence[Fraction]]  # from a picture to the next, and the moments that are shown


@dataclasses.dataclass(frozen=True)
class Job:
    """A video that is about to be finished, all of it checked and its networks loaded."""

    options: Finish
    source: Opened
    geometry: Geometry
    rate: Fraction
    upscaler: Loaded | None
    interpolator: Loaded | None
    mesh: Mesh | None

    @property
    def count(self) -> int | None:
        """Frames that come out; None where those that go in are not known."""
        read = self.source.count
        return None if read is None else frame_count(read, self.source.fps, self.rate, self.options.hold)

    @property
    def estimate(self) -> str:
        """What is to be done, in words."""
        (h, w), (height, width) = self.geometry.source, self.geometry.final
        come, go = self.source.count, self.count
        text = f"{'frames' if come is None else f'{come} frames'} of {h}x{w} at {float(self.source.fps):g} fps become "
        text += f"{'some' if go is None else go} of {height}x{width} at {float(self.rate):g} fps"
        work = [f"{name} {teraflops:,.2f} TFLOP" for name, teraflops in self._work() if teraflops]
        return text + (f"; {', '.join(work)}" if work and come is not None else "")

    def _work(self) -> Iterator[tuple[str, float]]:
        come, go = self.source.count or 0, self.count or 0
        first = self.options.interpolate_first
        if self.upscaler is not None:
            pixels = self.geometry.source[0] * self.geometry.source[1] * (go if first else come)
            yield "to enlarge", 2e-12 * pixels * self.upscaler.network.multiplications
        if self.interpolator is not None:
            height, width = self.geometry.source if first else self.geometry.final
            each = 2 ** levels(self.source.fps, self.rate) - 1  # the most
            yield "to interpolate", 2e-12 * height * width * self.interpolator.network.multiplications * each * come


@contextlib.contextmanager
def open_job(
    video: Any,
    options: Finish,
    source_fps: float | Fraction | None = None,
    *,
    even: bool = True,
    source_count: int | None = None,
) -> Iterator[Job]:
    """Opens a video, checks all that is asked of it, and loads the networks.

    Args:
      video, source_fps, source_count: see `open_source`.
      even: sides of the result are even.
    Raises: FileNotFoundError, also for weights that are not there; ValueError.
    """
    mesh = None if options.mesh is None else parse_mesh(options.mesh)
    upscaler = find_weights(options.upscaler, UPSCALERS) if options.scale > 1 else None
    with open_source(video, source_fps, source_count) as source:
        rate = source.fps if options.rate is None else options.rate
        geometry = Geometry.of(options, source.height, source.width, even)
        flow = find_weights(options.interpolator, INTERPOLATORS) if levels(source.fps, rate) else None
        yield Job(
            options,
            source,
            geometry,
            rate,
            None if upscaler is None else load_upscaler(upscaler),
            None if flow is None else load_interpolator(flow),
            mesh,
        )


def finished_pictures(job: Job, begin: int = 0) -> Generator[jax.Array, None, None]:
    """The pictures of a finished video, (H, W, 3) uint16 as of `nn.pixels`, on the device, in order.

    Some wait for those between them: as floats, those of 4K would take 100 MB each.

    Args:
      begin: number of the source's frame with which they begin.
    """
    enlarge, fill = _enlarge(job), _fill(job)
    first = job.options.interpolate_first
    with ahead(job.source.frames_from(begin)) as frames:
        made = _timed(job, frames, _waiting if first else enlarge, fill, begin)
        yield from map(enlarge, made) if first else made


def _timed(
    job: Job, frames: Iterator[np.ndarray], enlarge: Callable, fill: Callable[[Iterator[Way]], Iterator], begin: int
) -> Iterator[jax.Array]:
    """Every frame at its moments, and what lies between it and the next."""
    number, last = begin - 1, None

    def ways() -> Iterator[Way]:
        nonlocal number, last
        before = None
        for number, frame in enumerate(frames, begin):
            held = frame is before  # a file of variable rate shows it for longer
            picture = last if held and last is not None else enlarge(frame)
            if before is not None and last is not None:
                moments = parts(number - 1, job.source.fps, job.rate)
                if held or (job.options.cuts and any(moments) and is_cut(before, frame)):
                    moments = (Fraction(0),) * len(moments)
                yield last, picture, moments
            before, last = frame, picture

    yield from fill(ways())
    if last is not None:  # else the source ends where it was to begin
        yield from [last] * last_count(number + 1, job.source.fps, job.rate, job.options.hold)


def _fill(job: Job) -> Callable[[Iterator[Way]], Iterator[jax.Array]]:
    """Of the ways from frame to frame, the pictures on them."""
    network = job.interpolator
    if network is None:
        return lambda ways: (first for first, _, moments in ways for _ in moments)
    size = job.geometry.source if job.options.interpolate_first else job.geometry.final
    if job.mesh is None:
        middle = functools.partial(middle_program(network.network, *size), network.params)
        return lambda ways: (picture for way in ways for picture in between(*way, middle))
    middles = functools.partial(middles_program(network.network, *size, job.mesh), network.params)
    at_once = pairs_at_once(job.mesh)

    def together(ways: Iterator[Way]) -> Iterator[jax.Array]:
        while some := list(itertools.islice(ways, at_once)):
            yield from between_all(some, middles)

    return together


def _enlarge(job: Job) -> Callable[[Any], jax.Array]:
    """Of a frame, uint8 or uint16, the picture in its last size, uint16."""
    geometry = job.geometry
    if job.upscaler is None:
        return lambda frame: fit(geometry, _waiting(frame))
    how: dict[str, Any] = {"tile": job.options.tile, "mesh": job.mesh, "store": as_levels}
    program = upscale_program(job.upscaler.network, *geometry.source, **how)
    params = job.upscaler.params
    return lambda frame: fit(geometry, program(params, _as_float(frame)))


@jax.jit
def _as_float(frame: jax.Array) -> jax.Array:
    return frame.astype(jnp.float32) / jnp.iinfo(frame.dtype).max


@jax.jit
def _waiting(frame: jax.Array) -> jax.Array:
    """uint16 of uint8 or uint16."""
    return frame if frame.dtype == jnp.uint16 else frame.astype(jnp.uint16) * (LEVELS // 255)


def as_bytes(picture: jax.Array) -> np.ndarray:
    """(H, W, 3) uint16 or float in [0, 1] -> uint8, dithered."""
    return np.asarray(to_bytes(picture))
