"""Small pictures of what is being sampled: a linear map from latents to colours, which costs next to nothing.

The map belongs to one VAE. It is fitted to what that VAE encodes, and kept under the hash of its weights.
"""

import base64
import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from cogvx_jax import cache
from cogvx_jax.data.video import to_uint8
from cogvx_jax.json_files import parse_json
from cogvx_jax.models import vae as vaes
from cogvx_jax.pipelines.latents import decode_frames, encode_moments
from cogvx_jax.pipelines.model import Model, check_model
from cogvx_jax.pipelines.on_step import Step
from cogvx_jax.pipelines.seldom import Seldom
from cogvx_jax.presets import SHIPPED
from cogvx_jax.sharding import of_all, params_digest
from cogvx_jax.storage import read_file, write_whole
from cogvx_jax.tiny import shapes

FORMAT = "cogvx preview 1"
BESIDE = 5  # places in the palette from a shape's colour to its background's
RIDGE = 1e-3
MAX_BYTES = 2**16  # of a map's file
SEED = 16
SHARE = 1 / 50  # of the time that showing takes at most
SHOWN, MILLISECONDS = 240, 500  # pixels of a shown frame's height, and how long each is shown


class Preview:
    """Makes frames of a `Step`, from what the model took for the clean latents.

    Args:
      model: whose steps are looked at; its VAE is needed, unless a map of it is kept already or `decoder` is given.
      decoder: a model whose VAE decodes instead, in the video's own size, such as `taecvx`'s:
        `load(MODEL, components=("vae",), vae="taecvx.safetensors")`. None: one colour for each latent.
    Raises: ValueError for a decoder of other latents; NotFiniteError.
    """

    def __init__(self, model: Model, decoder: Model | None = None):
        check_model(model)
        if decoder is not None:
            check_model(decoder)
            ours, theirs = model.spec.vae.latent_channels, decoder.spec.vae.latent_channels
            if ours != theirs:
                raise ValueError(f"the decoder of previews must take latents of {ours} channels, it takes {theirs}")
        self._decoder, self._colours = decoder, None if decoder is not None else colour_map(model)
        self._seldom, self._shown, self._last = Seldom(SHARE), None, (0, 0)

    def __call__(self, step: Step) -> np.ndarray:
        """Frames of all videos, uint8: (B, T, H / 8, W / 8, 3), or with a decoder (B, F, H, W, 3)."""
        x0 = step.x0[:, step.padding :]
        if self._decoder is None:
            return np.asarray(_coloured(x0, self._colours))
        videos = [list(decode_frames(self._decoder, x0[i : i + 1])) for i in range(len(x0))]
        return np.stack([np.concatenate(frames) for frames in videos])

    def show(self, step: Step) -> None:
        """Shows the frames in a notebook's output, in place of those before: a function for `on_step`.

        It takes a fiftieth of the time at most, so that steps may be passed over.
        Raises: ValueError outside of notebooks.
        """
        now = step.segment, step.number
        if now <= self._last:  # another generation
            self._shown = None
        self._last = now
        if step.number < step.count and not self._seldom.due():
            return
        try:
            from IPython.display import HTML, display
        except ImportError:
            raise ValueError("`show` is for notebooks, and IPython is not there; call the preview instead") from None
        with self._seldom.doing():
            pictures = "".join(map(_picture, self(step)))
            page = HTML(f"<div>step {step.number} of {step.count}</div>{pictures}")
            if self._shown is None:
                self._shown = display(page, display_id=True)
            else:
                self._shown.update(page)


def _picture(frames: np.ndarray) -> str:
    """An animation of frames (F, H, W, 3), as HTML that holds it."""
    pictures, file = [PIL.Image.fromarray(frame) for frame in frames], io.BytesIO()
    pictures[0].save(file, "WEBP", save_all=True, append_images=pictures[1:], duration=MILLISECONDS, loop=0)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img style="height:{SHOWN}px;image-rendering:pixelated" src="data:image/webp;base64,{data}">'


def colour_map(model: Model) -> np.ndarray:
    """Latents as they are sampled, and 1, to red, green and blue in [-1, 1]: (C + 1, 3) float32.

    It is fitted when it is first asked for, and kept in the folder of `cache.folder`.
    """
    file = cache.folder() / "previews" / f"{params_digest(model.params['vae'])}.json"
    found = _read(file, (model.spec.vae.latent_channels + 1, 3))
    if not of_all(found is not None) or found is None:
        found = fit_colours(model, fitting_clips(model.spec.name))
        with contextlib.suppress(OSError):  # a read-only home is no reason to stop
            write_whole(file, json.dumps({"format": FORMAT, "map": found.tolist()}).encode())
    # What is kept is of the VAE's own latents: models of one VAE scale them otherwise.
    return np.append(found[:-1] / np.float32(model.spec.vae.scaling_factor), found[-1:], axis=0)


def fit_colours(model: Model, clips: np.ndarray) -> np.ndarray:
    """The map that gives the colours of clips best from the latents that the VAE encodes, by least squares.

    Args:
      clips: (N, F, H, W, 3) uint8, F = 4 T - 3.
    """
    pixels = clips.astype(np.float32) / 127.5 - 1
    latents = np.asarray(vaes.mode(encode_moments(model, pixels)))
    colours = latent_colours(pixels, latents.shape[1:4])
    x = np.concatenate([latents, np.ones_like(latents[..., :1])], axis=-1).reshape(-1, latents.shape[-1] + 1)
    x, y = x.astype(np.float64), colours.reshape(-1, 3).astype(np.float64)
    return np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y).astype(np.float32)


def latent_colours(pixels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The mean colour of the pixels that each latent stands for: (N, F, H, W, 3) -> (N, T, h, w, 3).

    Args:
      shape: (T, h, w) of the latents. The first stands for the first frame, the others for equally many each.
    """
    t, h, w = shape
    n, f, height, width, _ = pixels.shape
    later = pixels[:, 1:].reshape(n, t - 1, (f - 1) // (t - 1), height, width, 3).mean(2)
    frames = np.concatenate([pixels[:, :1], later], axis=1)
    return frames.reshape(n, t, h, height // h, w, width // w, 3).mean((3, 5))


def fitting_clips(model: str) -> np.ndarray:
    """Clips that the map of a model is fitted to, (N, 17, 64, 64, 3) uint8: drawn shapes, and clouds of colour beside.

    The models of the package know shapes alone.
    """
    rng = np.random.default_rng(SEED)
    clips = [shapes.draw(scene, rng) for scene in _scenes(rng)]
    return np.stack(clips + ([] if model in SHIPPED else list(_clouds(rng, len(clips)))))


def _scenes(rng: np.random.Generator) -> list[shapes.Scene]:
    """Of those that `tiny` is trained on, one for each colour: every colour is seen on a shape and on a background."""
    known, colours = shapes.split()[0], list(shapes.PALETTE)
    order = [known[i] for i in rng.permutation(len(known))]
    pairs = zip(colours, [*colours[BESIDE:], *colours[:BESIDE]], strict=True)
    return [next(scene for scene in order if (scene.colour, scene.background) == pair) for pair in pairs]


def _clouds(rng: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    """Clips of noise whose amplitude falls with its frequency, as that of pictures does."""
    shape = shapes.FRAMES, shapes.SIZE, shapes.SIZE
    t, y, x = np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")
    frequency = np.sqrt(4 * t**2 + y**2 + x**2)
    frequency[0, 0, 0] = 1
    for _ in range(count):
        waves = np.fft.fftn(rng.normal(size=(*shape, 3)), axes=(0, 1, 2)) / frequency[..., None] ** 1.5
        clip = np.fft.ifftn(waves, axes=(0, 1, 2)).real
        yield to_uint8(clip / (2 * clip.std()))


def _read(file: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """The map in a file; None where there is none, or it is damaged."""
    try:
        found: Any = parse_json(read_file(file, MAX_BYTES))
        colours = np.asarray(found["map"], np.float32)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = found.get("format") == FORMAT and colours.shape == shape and np.isfinite(colours).all()
    return colours if whole else None


@jax.jit
def _coloured(latents: jax.Array, colours: jax.Array) -> jax.Array:
    """(..., C) -> (..., 3) uint8."""
    pixels = latents.astype(jnp.float32) @ colours[:-1]
    pixels += jax.lax.broadcast_to_rank(colours[-1], pixels.ndim)
    return jnp.round((jnp.clip(pixels, -1, 1) + 1) * 127.5).astype(jnp.uint8)
