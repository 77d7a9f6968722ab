"""The programs of a video, lowered from shapes alone: `plan`, `compile` and `scripts/tpu_cost.py` compile them.

They are the ones that `generate` runs: text encoder, denoising step or all steps in one, and the VAE's first two
frame batches, which the others are like.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cogvx_jax import sharding
from cogvx_jax.configs import Compute, ControlNetConfig, ModelSpec, ToraConfig
from cogvx_jax.diffusion.guiders import Guider, kind_of, lay_out
from cogvx_jax.diffusion.samplers import SAMPLERS, Method, columns
from cogvx_jax.diffusion.update import SamplerState
from cogvx_jax.diffusion.windows import Laid
from cogvx_jax.models.controlnet import ControlBranch
from cogvx_jax.models.t5 import T5Encoder
from cogvx_jax.models.taehv import vae_of
from cogvx_jax.models.tiling import Tiling
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.nn.backend import BY_PLATFORM, using
from cogvx_jax.pipelines import latents, shortcuts, step_programs, text
from cogvx_jax.pipelines.conditions import Condition, Control
from cogvx_jax.pipelines.controlnets import abstract_beside, branch_of
from cogvx_jax.pipelines.noise import SeededNoise
from cogvx_jax.pipelines.shortcuts import Wanted
from cogvx_jax.pipelines.tora import abstract_motion
from cogvx_jax.pipelines.weights import abstract_weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beside:
    """What all steps are given beside the noisy latents and one prompt."""

    nets: tuple[ControlNetConfig, ...] = ()  # of ControlNets, whose states they add
    tora: ToraConfig | None = None  # whose fusers let the video follow trajectories
    texts: int = 1  # prompts side by side: the video's own, and one of each region

    def branches(self, spec: ModelSpec, compute: Compute) -> tuple[ControlBranch, ...]:
        """The modules of the ControlNets."""
        return tuple(branch_of(cfg, spec, compute) for cfg in self.nets)

    def named(self, compute: Compute, mesh: Mesh | None, shape: tuple[int, ...]) -> dict[str, Any]:
        """Arguments by name of a step on latents (B, T, h, w, C), or of all steps, which share them."""
        found: dict[str, Any] = {}
        if self.nets:
            found["control"] = _controlled(self.nets, compute, mesh, shape)
        if self.tora is not None:
            found["motion"] = abstract_motion(self.tora, compute, mesh, shape)
        if self.texts > 1:
            found["regions"] = _everywhere(shape[:4], "int32", mesh)
        return found


NOTHING = Beside()


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoPrograms:
    """All inputs that programs depend on: videos of equal values run the same programs."""

    spec: ModelSpec
    compute: Compute
    mesh: Mesh | None
    shape: tuple[int, ...]  # of the sampled latents (B, T, h, w, C)
    padding: int = 0  # latent frames that are dropped before decoding
    guided: bool = True
    sampler: str | None = None  # None: the model's own
    guider: Guider | None = None  # any numbers of its kind run the same programs
    enhance: float | None = None
    steps: int | None = None  # evaluations in one program; None is one a program
    source: tuple[int, ...] | None = None  # (B, F, H, W, 3) of a video to start from
    tiling: bool = False  # the VAE runs in tiles
    short: Wanted | None = None  # steps that are made of what others computed
    edit: bool = False  # steps look at a clip, which is inverted before
    windows: Laid | None = None  # of the evaluations, of which the shapes count; None: the whole clip is seen at once
    beside: Beside = NOTHING

    def names(self) -> tuple[str, ...]:
        """The programs of a video, in the order of use."""
        encodes = self.spec.kind == "i2v" or self.source is not None
        return ("text", *(["encode"] if encodes else []), *self.step_names(), "decode")

    def step_names(self) -> tuple[str, ...]:
        """The programs of sampling."""
        if self.short is not None:
            return self.short.names(one_program=self.steps is not None)
        return ("step",) if self.steps is None else ("loop",)

    def lower(self, name: str) -> Iterator[Any]:
        """The program, or the programs of the first and of later frame batches, lowered; of tiles, for each size.

        Of steps that are made of what others computed, "step" is a computed one and "skipped" a skipped one. A step of
        the inversion of an edit's clip is "inversion".
        """
        spec, compute, mesh, shape = self.spec, self.compute, self.mesh, self.shape
        if name == "text":
            yield lower_text(spec, compute, mesh, shape[0], guided=self.guided, more=self.beside.texts - 1)
        elif self.short is not None and name in ("step", "skipped", *self.step_names()):
            own = {"step": f"computed-{self.short.mode}", "skipped": f"skipped-{self.short.mode}"}
            yield lower_short(self, own.get(name, name))
        elif name == "step":
            yield lower_step(spec, compute, mesh, shape, edit=self.edit, **self._asked)
        elif name == "inversion":
            yield lower_step(spec, compute, mesh, shape, guided=False, sampler="ddim", windows=self.windows)
        elif name == "loop":
            assert self.steps is not None
            yield lower_loop(spec, compute, mesh, shape, self.steps, **self._asked)
        elif name == "decode":
            for height, width in self._sizes():
                part = (*shape[:2], height, width, shape[4])
                yield from lower_decode(spec, compute, mesh, part, self.padding)
        else:
            scale, frames = spec.vae.spatial_compression, 1 if self.source is None else self.source[1]
            for height, width in self._sizes():
                yield from lower_encode(spec, compute, mesh, (1, frames, height * scale, width * scale, 3))

    @property
    def _asked(self) -> dict[str, Any]:
        guiding = dict(guided=self.guided, sampler=self.sampler, guider=self.guider, enhance=self.enhance)
        return guiding | {"windows": self.windows, "beside": self.beside}

    def _sizes(self) -> list[tuple[int, int]]:
        """Heights and widths in latents that the VAE runs on, the largest first."""
        whole = self.shape[2], self.shape[3]
        return Tiling.of(self.spec.vae).sizes(*whole) if self.tiling else [whole]


@contextlib.contextmanager
def compiling_for(platform: str, mesh: Mesh) -> Iterator[None]:
    """Inside, programs are traced as they would be on `platform`, and kernels see the mesh's devices."""
    with using(BY_PLATFORM[platform]), jax.set_mesh(mesh):
        yield


def lower_text(
    spec: ModelSpec, compute: Compute, mesh: Mesh | None, videos: int, *, guided: bool, more: int = 0
) -> Any:
    """The text encoder over the prompts, with guidance over the negative prompts, and over more that videos share."""
    ids = (videos * (1 + guided) + more, spec.transformer.text_length)
    encode = text.encode_program(T5Encoder(spec.text_encoder, compute.of("text_encoder")), mesh)
    return encode.lower(abstract_weights(spec, compute, "text_encoder", mesh), _everywhere(ids, "int32", mesh))


def lower_step(
    spec: ModelSpec,
    compute: Compute,
    mesh: Mesh | None,
    shape: tuple[int, ...],
    *,
    guided: bool,
    sampler: str | None = None,
    guider: Guider | None = None,
    enhance: float | None = None,
    edit: bool = False,
    windows: Laid | None = None,
    beside: Beside = NOTHING,
) -> Any:
    """One denoising step on latents (B, T, h, w, 16)."""
    transformer = Transformer(spec.transformer, compute.of("transformer"))
    branches = beside.branches(spec, compute)
    step = step_programs.step_program(transformer, guided, mesh, guider=kind_of(guider), branches=branches)
    method, drawn = _method(spec, sampler), _everywhere(shape, "float32", mesh)
    guiding: dict[str, Any] = dict(guided=guided, guider=guider, enhance=enhance, texts=beside.texts)
    arguments = _denoising(spec, compute, mesh, shape, (), method, **guiding)
    named = _windowed(windows, (), mesh) | beside.named(compute, mesh, shape)
    named |= {"reference": drawn} if edit else {}  # latents like the noise
    return step.lower(*arguments, drawn if method.stochastic else None, **named)


def lower_loop(
    spec: ModelSpec,
    compute: Compute,
    mesh: Mesh | None,
    shape: tuple[int, ...],
    steps: int,
    *,
    guided: bool,
    sampler: str | None = None,
    guider: Guider | None = None,
    enhance: float | None = None,
    windows: Laid | None = None,
    beside: Beside = NOTHING,
) -> Any:
    """All denoising steps as one program, which draws its noise itself."""
    transformer = Transformer(spec.transformer, compute.of("transformer"))
    branches = beside.branches(spec, compute)
    loop = step_programs.loop_program(transformer, guided, mesh, kind_of(guider), branches)
    method = _method(spec, sampler)
    guiding: dict[str, Any] = dict(guided=guided, guider=guider, enhance=enhance, texts=beside.texts)
    arguments = _denoising(spec, compute, mesh, shape, (steps,), method, **guiding)
    noise = SeededNoise.abstract() if method.stochastic else None
    named = _windowed(windows, (steps,), mesh) | beside.named(compute, mesh, shape)
    return loop.lower(*arguments, noise, None, **named)


def lower_short(video: VideoPrograms, name: str) -> Any:
    """A program of steps that are made of what others computed, by its name of `Wanted.names`."""
    spec, mesh, shape, short = video.spec, video.mesh, video.shape, video.short
    assert short is not None
    own = video.compute.of("transformer")
    asked = short, Transformer(spec.transformer, own), video.guided, mesh
    kept = shortcuts.abstract_kept(short, spec.transformer, own.dtype, shape, guided=video.guided, mesh=mesh)
    each = () if video.steps is None else (video.steps,)
    method, kind = _method(spec, video.sampler), kind_of(video.guider)
    guiding: dict[str, Any] = dict(guided=video.guided, guider=video.guider)
    params, state, *inputs = _denoising(spec, video.compute, mesh, shape, each, method, **guiding)
    control = _everywhere((*each, short.order + 1), "float32", mesh)
    if video.steps is not None:
        noise = SeededNoise.abstract() if method.stochastic else None
        loop = shortcuts.all_steps_program(*asked, shortcuts.where(kept), kind)
        return loop.lower(params, state, kept, *inputs, noise, None, _everywhere(each, "bool", mesh), control)
    drawn = _everywhere(shape, "float32", mesh) if method.stochastic else None
    skips = name.startswith("skipped-")
    where = shortcuts.where(kept)
    step = shortcuts.skipped_program(*asked, kind) if skips else shortcuts.computed_program(*asked, where, kind)
    return step.lower(params, state, kept, *inputs, drawn, control)


def _denoising(
    spec: ModelSpec,
    compute: Compute,
    mesh: Mesh | None,
    shape: tuple[int, ...],
    steps: tuple[int, ...],
    method: Method,
    *,
    guided: bool,
    guider: Guider | None = None,
    enhance: float | None = None,
    texts: int = 1,
):
    """Arguments of step and loop, up to the weights; `steps` is the leading axis of those that differ a step."""

    def array(shape, dtype="float32"):
        return _everywhere(shape, dtype, mesh)

    cfg, condition = spec.transformer, None
    numbers = lay_out(guider, np.zeros(max((1, *steps))), layers=cfg.layers, enhance=enhance, branches=1 + guided)
    carry = array(shape) if guider is not None and guider.carries else None
    if cfg.condition_channels:
        channels = array((*shape[:-1], cfg.condition_channels))
        condition = Condition(channels) if steps else channels
    return (
        abstract_weights(spec, compute, "transformer", mesh),
        SamplerState(array(shape), (array(shape),) * method.history, carry),
        array((shape[0] * (1 + guided), texts * cfg.text_length, cfg.text_dim), compute.of("text_encoder").dtype),
        condition,
        array(steps, "int32"),
        array((*steps, columns(method.history))),
        jax.tree.map(lambda x: array((*steps, *x.shape[1:])), numbers),
    )


def _windowed(windows: Laid | None, steps: tuple[int, ...], mesh: Mesh | None) -> dict[str, Any]:
    """The argument that says which windows a step has; `steps` is the leading axis of a program of several."""
    if windows is None:
        return {}
    return {"windows": jax.tree.map(lambda x: _everywhere((*steps, *x.shape[1:]), x.dtype, mesh), windows)}


def _controlled(
    nets: tuple[ControlNetConfig, ...], compute: Compute, mesh: Mesh | None, shape: tuple[int, ...]
) -> Control:
    """The argument that holds ControlNets, which all steps have, beside latents (B, T, h, w, C)."""
    weights: Any = tuple(_everywhere((cfg.layers,), "float32", mesh) for cfg in nets)
    channels: Any = tuple(_everywhere((*shape[:4], cfg.control_channels), "float32", mesh) for cfg in nets)
    params = tuple(abstract_beside(cfg, compute, mesh) for cfg in nets)
    return Control(params=params, channels=channels, weights=weights)


def _method(spec: ModelSpec, sampler: str | None) -> Method:
    return SAMPLERS[sampler or spec.defaults.sampler]


def lower_encode(spec: ModelSpec, compute: Compute, mesh: Mesh | None, shape: tuple[int, ...]) -> Iterator[Any]:
    """The VAE's encoder on the first two frame batches of one of the clips (B, F, H, W, 3)."""
    vae = vae_of(spec.vae, compute.of("vae"))
    return latents.lower_encode(vae, mesh, abstract_weights(spec, compute, "vae", mesh), shape)


def lower_decode(
    spec: ModelSpec, compute: Compute, mesh: Mesh | None, shape: tuple[int, ...], padding: int = 0
) -> Iterator[Any]:
    """The VAE's decoder on the first frame batch of one video, and on the second, which takes its cache."""
    vae = vae_of(spec.vae, compute.of("vae"))
    return latents.lower_decode(vae, mesh, abstract_weights(spec, compute, "vae", mesh), shape, padding)


def _everywhere(shape: tuple[int, ...], dtype: str, mesh: Mesh | None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.dtype(dtype), sharding=sharding.everywhere(mesh))
