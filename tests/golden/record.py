"""Small random models of the reference, one of each released kind, and the arrays recorded from them.

    python tests/golden/record.py  # rewrites the recordings beside this file; needs torch and diffusers

`tests/test_golden.py` compares with the recordings and needs neither; `tests/parity/test_pipelines.py`
runs the models themselves. A recording is a folder of the published layout, written by the reference,
with `arrays.npz` beside it: inputs and outputs, all channels-last.
"""

import contextlib
import copy
import functools
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import diffusers
import numpy as np
import torch
import transformers
from diffusers.models.autoencoders import vae as diffusers_vae
from diffusers.pipelines.cogvideo import (
    pipeline_cogvideox,
    pipeline_cogvideox_fun_control,
    pipeline_cogvideox_image2video,
    pipeline_cogvideox_video2video,
)
from diffusers.schedulers import scheduling_dpm_cogvideox

from cogvx_jax.tiny.tokenizer import build_tokenizer

HERE = Path(__file__).parent
TEXT_LENGTH = 16
PROMPTS = ["a red circle moves right on a white background", "a small blue square"]

# What tells the kinds apart, as in the published files; the sizes are those of a toy. No two that could
# be confused are equal, and the native 64x96 pixels are 4x6 patches. 1.5's sample size is a limit.
SLICE = dict(use_rotary_positional_embeddings=True, patch_size_t=2, patch_bias=False)
SLICE |= dict(sample_height=20, sample_width=20, sample_frames=17)
KINDS = {
    "2b": dict(),
    "5b": dict(use_rotary_positional_embeddings=True),
    "5b-i2v": dict(use_rotary_positional_embeddings=True, use_learned_positional_embeddings=True, in_channels=16),
    "1.5": SLICE,
    "1.5-i2v": SLICE | dict(in_channels=16, ofs_embed_dim=20),
}
CONTROL = {  # CogVideoX-Fun's; nothing is recorded of them
    "2b-control": dict(in_channels=16),
    "5b-control": dict(use_rotary_positional_embeddings=True, in_channels=16),
    "1.5-control": SLICE | dict(in_channels=16),
}
CLASSES = {"ddim": diffusers.CogVideoXDDIMScheduler, "dpm": diffusers.CogVideoXDPMScheduler}


def build(kind: str, folder: Path) -> diffusers.DiffusionPipeline:
    """The reference's pipeline of a kind with random weights, saved to `folder`."""
    kinds = KINDS | CONTROL
    torch.manual_seed(list(kinds).index(kind))
    build_tokenizer(folder / "tokenizer", TEXT_LENGTH)
    tokenizer = transformers.T5Tokenizer.from_pretrained(folder / "tokenizer")
    text_encoder = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=-(-len(tokenizer) // 32) * 32,
            d_model=24,
            d_kv=12,
            d_ff=56,
            num_layers=2,
            num_heads=3,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 8, 8, 12),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=2,
        sample_height=64,
        sample_width=96,
        scaling_factor=1.15258426 if kind.startswith("2b") else 0.7,
        invert_scale_latents=kind.startswith("1.5"),
    )
    sizes = dict(
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        out_channels=8,
        time_embed_dim=20,
        text_embed_dim=24,
        max_text_seq_length=TEXT_LENGTH,
        sample_height=8,
        sample_width=12,
        sample_frames=9,
    )
    transformer = diffusers.CogVideoXTransformer3DModel(**(sizes | kinds[kind]))
    scheduler = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        set_alpha_to_one=True,
        snr_shift_scale=3.0 if kind.startswith("2b") else 1.0,
    )
    for module in (text_encoder, vae, transformer):
        randomise(module)
    makers = {"i2v": diffusers.CogVideoXImageToVideoPipeline, "control": diffusers.CogVideoXFunControlPipeline}
    make = makers.get(kind.rpartition("-")[2], diffusers.CogVideoXPipeline)
    pipe = make(tokenizer, text_encoder.eval(), vae.eval(), transformer.eval(), scheduler)
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def randomise(module: torch.nn.Module) -> None:
    """Moves what a fresh model leaves trivial: norms, biases, positions; and keeps pixels within range."""
    for name, x in module.state_dict().items():  # learned positions are a buffer; fixed ones are not in the state
        if name.endswith(("relative_attention_bias.weight", "pos_embedding")):
            x.normal_()
        elif x.ndim == 1:
            x.normal_(0, 0.3).add_(1 if "norm" in name and name.endswith("weight") else 0)
        elif name == "decoder.conv_out.conv.weight":
            x.mul_(0.5)


def switch(pipe: diffusers.DiffusionPipeline, sampler: str, make: type | None = None) -> diffusers.DiffusionPipeline:
    """The pipeline with the named scheduler, made from the saved configuration, and of class `make`."""
    components = dict(pipe.components)
    components["scheduler"] = CLASSES[sampler].from_config(copy.deepcopy(pipe.scheduler.config))
    switched = (make or type(pipe))(**components)
    switched.set_progress_bar_config(disable=True)
    return switched


class RecordedNoise:
    """The reference's random draws, and a noise source that gives them out again, channels-last."""

    def __init__(self):
        self.drawn: dict[str, list] = {}  # by purpose, in the order of the first draw
        self.asked: list[str] = []

    def draw(self, purpose: str, draw, shape, **kwargs) -> torch.Tensor:
        noise = draw(shape, **kwargs)
        array = np.moveaxis(noise.numpy(), 1 if purpose == "posterior" else 2, -1)
        if purpose == "step":  # `start_step` has opened a list
            self.drawn["step"][-1].append(array)
        else:
            self.drawn.setdefault(purpose, []).append(array)
        return noise

    def start_step(self, step, *args, **kwargs):
        self.drawn.setdefault("step", []).append([])
        return step(*args, **kwargs)

    def latents(self, shape):
        return self._give("latents", self.drawn["latents"], shape)

    def posterior(self, shape):
        return self._give("posterior", self.drawn["posterior"], shape)

    def step(self, index, shape):
        return self._give("step", self.drawn["step"][index][-1:], shape)  # all but the last of a step are dropped

    def _give(self, purpose, arrays, shape):
        self.asked = list(dict.fromkeys([*self.asked, purpose]))
        noise = np.concatenate(arrays)
        assert noise.shape == tuple(shape), f"{purpose} noise is {noise.shape}, asked for {shape}"
        return noise


@contextlib.contextmanager
def recorded_noise():
    """Inside the block all the noise that the reference draws is kept in the RecordedNoise it gives."""
    noise = RecordedNoise()
    purposes = {
        pipeline_cogvideox: "latents",
        pipeline_cogvideox_fun_control: "latents",
        pipeline_cogvideox_image2video: "latents",
        pipeline_cogvideox_video2video: "latents",
        diffusers_vae: "posterior",
        scheduling_dpm_cogvideox: "step",
    }
    with contextlib.ExitStack() as stack:
        for module, purpose in purposes.items():
            draw = functools.partial(noise.draw, purpose, module.randn_tensor)
            stack.enter_context(mock.patch.object(module, "randn_tensor", draw))
        original = CLASSES["dpm"].step

        @functools.wraps(original)  # the pipeline looks at its signature
        def step(*args, **kwargs):
            return noise.start_step(original, *args, **kwargs)

        stack.enter_context(mock.patch.object(CLASSES["dpm"], "step", step))
        yield noise


@torch.no_grad()
def transformer_arrays(pipe: diffusers.DiffusionPipeline, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """One forward pass for latents of `shape` (T, h, w), batch 2."""
    cfg, rng = pipe.transformer.config, torch.Generator().manual_seed(1)
    frames, height, width = shape
    latents = torch.randn((2, frames, cfg.in_channels, height, width), generator=rng)
    text = torch.randn((2, TEXT_LENGTH, cfg.text_embed_dim), generator=rng)
    t = torch.tensor([999, 501])
    rope = None
    if cfg.use_rotary_positional_embeddings:
        rope = pipe._prepare_rotary_positional_embeddings(8 * height, 8 * width, frames, "cpu")
    ofs = None if cfg.ofs_embed_dim is None else torch.full((1,), 2.0)
    v = pipe.transformer(latents, text, t, ofs=ofs, image_rotary_emb=rope, return_dict=False)[0]
    return {"latents": _last(latents, 2), "text": text.numpy(), "t": t.numpy(), "v": _last(v, 2)}


@torch.no_grad()
def other_arrays(pipe: diffusers.DiffusionPipeline) -> dict[str, np.ndarray]:
    """VAE both ways in frame batches, the text encoder, and two sampling runs of five steps."""
    rng = torch.Generator().manual_seed(2)
    pixels = torch.rand((1, 3, 17, 16, 24), generator=rng) * 2 - 1
    latents = torch.randn((1, 8, 5, 2, 3), generator=rng)
    ids = torch.randint(0, pipe.text_encoder.config.vocab_size, (2, 150), generator=rng)
    arrays = {
        "encode/pixels": _last(pixels, 1),
        "encode/moments": _last(pipe.vae.encode(pixels).latent_dist.parameters, 1),
        "decode/latents": _last(latents, 1),
        "decode/pixels": _last(pipe.vae.decode(latents).sample, 1),
        "text/ids": ids.numpy().astype(np.int32),
        "text/states": pipe.text_encoder(ids)[0].numpy(),
    }
    for sampler in CLASSES:
        with recorded_noise() as noise:
            out = switch(pipe, sampler)(
                PROMPTS[0],
                height=64,
                width=64,
                num_frames=9,
                num_inference_steps=5,
                guidance_scale=6.0,
                use_dynamic_cfg=True,
                max_sequence_length=TEXT_LENGTH,
                generator=torch.Generator().manual_seed(3),
                output_type="latent",
            ).frames
        arrays[f"{sampler}/noise"] = noise.drawn["latents"][0]
        arrays[f"{sampler}/steps"] = np.array([draws[-1] for draws in noise.drawn.get("step", [])])
        arrays[f"{sampler}/latents"] = _last(out, 2)
    return arrays


def main() -> None:
    # Sizes other than the native one where the kind allows, so that the crop of the positions shows.
    shapes = {"2b": (3, 8, 8), "5b": (3, 4, 12), "5b-i2v": (3, 8, 12), "1.5": (4, 6, 8), "1.5-i2v": (4, 8, 6)}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            pipe = build(kind, Path(folder))
            arrays = transformer_arrays(pipe, shapes[kind])
            if kind == "2b":
                arrays |= other_arrays(pipe)
                Path(folder, "tokenizer", "spiece.model").unlink()  # tokenizer.json says the same
            else:  # the transformer is all that differs: leave the others' weights out
                shutil.rmtree(Path(folder, "tokenizer"))
                for path in Path(folder).glob("*/*.safetensors"):
                    if path.parent.name != "transformer":
                        path.unlink()
            np.savez_compressed(Path(folder, "arrays.npz"), **arrays)
            shutil.rmtree(HERE / kind, ignore_errors=True)
            shutil.copytree(folder, HERE / kind)
        size = sum(p.stat().st_size for p in (HERE / kind).rglob("*"))
        print(f"{kind}: {size / 1000:.0f} kB, {', '.join(arrays)}")


def _last(x: torch.Tensor, axis: int) -> np.ndarray:
    """Channels to the end."""
    return np.moveaxis(x.numpy(), axis, -1)


if __name__ == "__main__":
    main()
