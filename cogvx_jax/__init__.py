"""cogvx_jax: CogVideoX in JAX and Flax.

    import cogvx_jax as cx
    model = cx.load("tiny")
    cx.generate(model, "a red circle moves right on a white background").save("out.mp4")

Below this layer everything is functions on arrays and Flax modules: `cogvx_jax.models`,
`cogvx_jax.diffusion`, `cogvx_jax.convert`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cogvx_jax.data.regions import Region
    from cogvx_jax.data.video import Video
    from cogvx_jax.diffusion.guiders import APG, CFG, PAG, SLG, STG, ZeroStar
    from cogvx_jax.diffusion.warped import WarpedNoise
    from cogvx_jax.diffusion.windows import Windows
    from cogvx_jax.finishing.finish import finish, finish_stream
    from cogvx_jax.finishing.generate import generate
    from cogvx_jax.finishing.keywords import finish_to
    from cogvx_jax.finishing.refine import refine
    from cogvx_jax.pipelines.controlnets import ControlNet, load_controlnet
    from cogvx_jax.pipelines.lora import find_lora, load_lora
    from cogvx_jax.pipelines.model import Model, load_spec
    from cogvx_jax.pipelines.on_step import Cancelled, Change, Step
    from cogvx_jax.pipelines.previews import Preview
    from cogvx_jax.pipelines.record import Record, read_record
    from cogvx_jax.planning.compile import compile_programs
    from cogvx_jax.planning.load import load
    from cogvx_jax.planning.plan import plan
    from cogvx_jax.prompting.enhance import enhance_prompt
    from cogvx_jax.sharding import make_mesh

__version__ = "0.1.0"
__all__ = [
    "APG",
    "CFG",
    "Cancelled",
    "Change",
    "ControlNet",
    "Model",
    "PAG",
    "Preview",
    "Record",
    "Region",
    "SLG",
    "STG",
    "Step",
    "Video",
    "WarpedNoise",
    "Windows",
    "ZeroStar",
    "compile_programs",
    "enhance_prompt",
    "find_lora",
    "finish",
    "finish_stream",
    "finish_to",
    "generate",
    "load",
    "load_controlnet",
    "load_lora",
    "load_spec",
    "make_mesh",
    "plan",
    "read_record",
    "refine",
]

# Imported when first asked for: jax and flax take seconds, and the command line checks its arguments before that.
_HOMES = {
    **dict.fromkeys(("APG", "CFG", "PAG", "SLG", "STG", "ZeroStar"), "diffusion.guiders"),
    **dict.fromkeys(("Cancelled", "Change", "Step"), "pipelines.on_step"),
    "Model": "pipelines.model",
    "Region": "data.regions",
    "Video": "data.video",
    "WarpedNoise": "diffusion.warped",
    "Record": "pipelines.record",
    "Windows": "diffusion.windows",
    "ControlNet": "pipelines.controlnets",
    "Preview": "pipelines.previews",
    "compile_programs": "planning.compile",
    "enhance_prompt": "prompting.enhance",
    "find_lora": "pipelines.lora",
    "finish": "finishing.finish",
    "finish_stream": "finishing.finish",
    "finish_to": "finishing.keywords",
    "generate": "finishing.generate",
    "load": "planning.load",
    "load_controlnet": "pipelines.controlnets",
    "load_lora": "pipelines.lora",
    "load_spec": "pipelines.model",
    "make_mesh": "sharding",
    "plan": "planning.plan",
    "read_record": "pipelines.record",
    "refine": "finishing.refine",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
