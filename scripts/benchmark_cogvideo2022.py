"""Cached steps of CogVideo (2022) on this machine's CPU, beside the reference where that can be run.

    python -m cogvx_jax.scripts.benchmark_cogvideo2022
    python -m cogvx_jax.scripts.benchmark_cogvideo2022 --reference CogVideo --sat SwissArmyTransformer-0.2.9

The reference is a checkout of the branch CogVideo of zai-org/CogVideo, with SwissArmyTransformer 0.2.9 unpacked.
Both need torch; what they import and do not use here, such as deepspeed, gets empty stand-ins. Each is asked for the
likeliest codes of the second frame, after a pass over the first. Weights are random, and of the same sizes.

Measured are steps after the compiled program, or the first step, has run once. The best of several rounds counts.
"""

import dataclasses
import sys
import time
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import traverse_util

from cogvx_jax.models.cogvideo2022.abstract import abstract_network, network_of
from cogvx_jax.models.cogvideo2022.cached import applied, cache_of, step
from cogvx_jax.models.cogvideo2022.configs import CogVideo2022Config
from cogvx_jax.models.cogvideo2022.transformer import CogVideo2022, Frames, Text

STANDINS = ("deepspeed", "datasets", "tkinter")  # packages that the reference imports and does not use here


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is timed. The defaults are those of the recorded arrays.

    Args:
      layers: of the transformer.
      heads: of attention.
      head_dim: width of one.
      steps: codes of the second frame, at most 400.
      rounds: of which the best counts.
      threads: of torch; tiny products are quicker in one.
    """

    layers: int = 2
    heads: int = 2
    head_dim: int = 16
    steps: int = 100
    rounds: int = 3
    threads: int = 1

    @property
    def config(self) -> CogVideo2022Config:
        return CogVideo2022Config(
            layers=self.layers, heads=self.heads, head_dim=self.head_dim, vocab=20_100, start_of_image=20_090
        )


def main(
    sizes: tyro.conf.OmitArgPrefixes[Sizes] = Sizes(),  # noqa: B008
    reference: Path | None = None,
    sat: Path | None = None,
) -> None:
    """Prints milliseconds a step.

    Args:
      reference: checkout of the branch; None times this program alone.
      sat: the folder in which the package SwissArmyTransformer lies.
    """
    ours = time_ours(sizes)
    print(f"cogvx_jax, a cached step: {1e3 * ours:.3f} ms")
    if reference is None or sat is None:
        return
    theirs = time_reference(sizes, reference, sat)
    print(f"the reference, a cached step: {1e3 * theirs:.3f} ms")
    print(f"ratio: {ours / theirs:.3f}")


def inputs(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """20 text ids and the codes of a frame."""
    rng = np.random.default_rng(0)
    return rng.integers(20_010, 20_080, 20), rng.integers(0, 20_000, sizes.config.frame_codes)


def time_ours(sizes: Sizes) -> float:
    """Seconds of a step."""
    cfg = sizes.config
    network = network_of(cfg)
    assert isinstance(network, CogVideo2022)
    rng = np.random.default_rng(0)
    flat = {path: jnp.asarray(0.02 * rng.normal(size=p.shape), "float32") for path, p in abstract_network(cfg).items()}
    params, (ids, codes) = traverse_util.unflatten_dict(flat, sep="/"), inputs(sizes)
    text = Text(jnp.asarray(ids, jnp.int32)[None], jnp.ones((1, len(ids)), bool))

    @jax.jit
    def first(params: Any) -> Any:
        _, kept = applied(network, params, text, jnp.asarray(codes, jnp.int32)[None, None], Frames((0,), 1))
        return cache_of(cfg, kept, len(ids))

    @jax.jit
    def run(params: Any, cache: Any) -> jax.Array:
        def one(carry: Any, place: jax.Array) -> tuple[Any, jax.Array]:
            cache, code = carry
            hidden, cache = step(network, params, cache, text.real, code, place, slot=1)
            code = applied(network, params, hidden, method="logits").argmax(axis=-1).astype(jnp.int32)
            return (cache, code), code

        return jax.lax.scan(one, (cache, jnp.zeros(1, jnp.int32)), jnp.arange(sizes.steps))[1]

    cache = jax.block_until_ready(first(params))
    run(params, cache).block_until_ready()
    return _best(sizes, lambda: run(params, cache).block_until_ready())


def time_reference(sizes: Sizes, reference: Path, sat: Path) -> float:
    """Seconds of a step of the reference's cached model, with its cache written as its pipeline does."""
    import torch

    torch.set_num_threads(sizes.threads)
    for name in STANDINS:
        _stand_in(name)
    sys.path[:0] = [str(reference), str(sat)]
    torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:29641", rank=0, world_size=1)
    from SwissArmyTransformer import mpu  # type: ignore[import-not-found]

    mpu.initialize_model_parallel(1)
    from models.cogvideo_cache_model import CogVideoCacheModel  # type: ignore[import-not-found]

    cfg = sizes.config
    model = CogVideoCacheModel(_arguments(cfg)).eval()
    ids, codes = inputs(sizes)
    length, n, width = len(ids), cfg.frame_codes, cfg.width
    start = cfg.start_of_image
    given = torch.tensor(np.concatenate([ids, [start], codes[:-1]]))[None]
    positions = torch.tensor([*range(length), *range(512, 512 + 5 * n)])[None]
    mask = torch.ones(1, 1, length + n, length + n)
    mask[..., :length, length:] = 0
    mask[..., length:, length:] = mask[..., length:, length:].tril()
    how = dict(text_len=length, frame_len=n, log_text_attention_weights=0, enforce_no_swin=False)

    def run() -> None:
        buffers = [torch.zeros(cfg.layers, 1, size, 2 * width) for size in (n + 74, 5 * n + 74)]
        _, *layers = model(given, positions[:, : length + n], mask, mems=None, counter=length + n - 1, **how)
        kept = [[layer["mem_kv"][i] for layer in layers] for i in range(2)]
        filled = [length, length + n]
        for i in range(2):
            for layer, rows in enumerate(kept[i]):
                buffers[i][layer, :, : filled[i]] = rows[:, : filled[i]]
        code = start
        began.append(time.perf_counter())
        for place in range(sizes.steps):
            index = length + n + place
            mems = [buffers[i][:, :, : filled[i]] for i in range(2)]
            token = torch.tensor([[start if place == 0 else code]])
            logits, *layers = model(
                token, positions[:, index : index + 1], mask, mems=mems, counter=index,
                limited_spatial_channel_mem=True, **how,
            )  # fmt: skip
            for i in range(2):
                for layer, kept_now in enumerate(layers):
                    buffers[i][layer, :, filled[i] : filled[i] + 1] = kept_now["mem_kv"][i]
                filled[i] += 1
            code = int(logits[0, -1, : cfg.codes].argmax())
        ended.append(time.perf_counter())

    began, ended = list[float](), list[float]()
    with torch.no_grad():
        for _ in range(sizes.rounds + 1):
            run()
    return min(b - a for a, b in zip(began[1:], ended[1:], strict=True)) / sizes.steps


def _arguments(cfg: CogVideo2022Config) -> types.SimpleNamespace:
    """What SAT's command line would give."""
    return types.SimpleNamespace(
        num_layers=cfg.layers,
        hidden_size=cfg.width,
        num_attention_heads=cfg.heads,
        vocab_size=cfg.vocab,
        max_sequence_length=cfg.base_positions,
        layout=[64, 64 + cfg.frame_codes, 64 + cfg.frames * cfg.frame_codes],
        additional_seqlen=cfg.extra_positions,
        cogvideo_stage=1,
        window_size=cfg.window,
        layernorm_order="sandwich",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        drop_path=0.0,
        inner_hidden_size=None,
        hidden_size_per_attention_head=None,
        checkpoint_activations=False,
        checkpoint_num_layers=1,
        model_parallel_size=1,
        skip_init=False,
        use_gpu_initialization=False,
        fp16=False,
        bf16=False,
        mode="inference",
        device="cpu",
    )


class _Nothing(types.ModuleType):
    """A module in which every name is there, and nothing does anything."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


def _stand_in(name: str) -> None:
    below = ("runtime", "runtime.activation_checkpointing", "runtime.activation_checkpointing.checkpointing", "ops")
    for full in (name, *(f"{name}.{part}" for part in below)):
        sys.modules.setdefault(full, _Nothing(full))


def _best(sizes: Sizes, run: Any) -> float:
    times = []
    for _ in range(sizes.rounds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times) / sizes.steps


if __name__ == "__main__":
    tyro.cli(main)
