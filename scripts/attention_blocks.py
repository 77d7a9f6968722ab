"""Finds block sizes for `cogvx_jax.nn.flash`, per TPU generation and without a TPU.

    python -m cogvx_jax.scripts.attention_blocks --topologies v5e:2x2 v6e:2x2

Compiles the kernel ahead of time, which needs libtpu (`pip install libtpu`), and counts the bundles of
its inner step in the compiler's dump: one bundle is one cycle if no transfer stalls. JAX's own kernels,
splash attention and the older flash attention, are counted in the same way, with and without the segment
ids that their padding needs. Counts depend on the versions of jax and libtpu and on nothing else.
"""

import dataclasses
import functools
import importlib.util
import itertools
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from cogvx_jax.chips import generations

# The smallest slices of several chips.
TOPOLOGIES = tuple(
    f"{name}:{next(shape for shape in chip.shapes if shape != '1x1')}" for name, chip in generations().items()
)
HEADS, TOKENS, WIDTH = 6, 17776, 64  # 5B, 49 frames, on eight devices
OURS = (
    (768, 4096, 2048),
    (1024, 1024, 512),
    (1024, 2048, 512),
    (1024, 2048, 1024),
    (1536, 2048, 512),
    (1536, 2048, 1024),
    (2048, 1024, 256),
    (2048, 1024, 512),
    (2048, 2048, 256),
    (2048, 2048, 512),
    (2048, 2048, 1024),
    (2048, 4096, 512),
)
SPLASH = (
    (512, 512, 512),
    (512, 2048, 1024),
    (512, 4096, 2048),
    (1024, 1024, 512),
    (1024, 2048, 512),
    (1024, 2048, 1024),
    (1024, 4096, 2048),
    (2048, 1024, 512),
    (2048, 1024, 1024),
    (2048, 2048, 512),
    (2048, 2048, 1024),
)
JAX_FLASH = (
    (512, 512, 512),
    (512, 1024, 1024),
    (512, 2048, 1024),
    (1024, 1024, 512),
    (1024, 1024, 1024),
    (1024, 2048, 1024),
    (2048, 1024, 512),
    (2048, 2048, 1024),
)
# What the kernel can be asked for: arguments of `flash_attention` by name.
Variant = Literal["bound", "maximum", "segments", "maximum+segments", "bound+int8"]
MISSING = "needs libtpu, which compiles for TPUs without having one: pip install libtpu"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Count:
    """Bundles of one kernel."""

    topology: str
    kernel: str
    blocks: tuple[int, int, int]
    step: int  # bundles of the longest stretch without a branch: one step of the grid
    total: int  # of the whole program, which runs its parts unequally often
    seconds: float  # to compile

    @property
    def per_thousand(self) -> float:
        """Cycles of a step for a thousand scores."""
        return 1000 * self.step / (self.blocks[0] * self.blocks[1])


def search(
    topologies: tuple[str, ...] = TOPOLOGIES,
    ours: tuple[tuple[int, int, int], ...] = OURS,
    splash: tuple[tuple[int, int, int], ...] = SPLASH,
    jax_flash: tuple[tuple[int, int, int], ...] = JAX_FLASH,
    variants: tuple[Variant, ...] = ("bound",),
    width: int = WIDTH,
    output: Path | None = None,
) -> None:
    """Counts kernels and prints them, with the ratios of the best ones; then the blocks for `cogvx_jax/chips.py`.

    Args:
      topologies: names that libtpu knows.
      ours: blocks of queries, of keys, and keys at a time, to try.
      splash, jax_flash: the same, for JAX's splash attention and for its flash attention.
      variants: "bound" has no running maximum; "maximum" has; "+segments" masks by segment ids; "+int8"
        multiplies integers for the scores.
      width: of a head.
      output: a JSON file for the counts.
    """
    prepare()
    counts = []
    for topology in topologies:
        jobs: list[tuple[str, tuple[int, int, int], Callable[..., Any]]] = [
            *((f"ours, {v}", b, functools.partial(compile_ours, variant=v)) for v in variants for b in ours),
            *(("splash", b, functools.partial(compile_splash, segments=False)) for b in splash),
            *(("splash, segments", b, functools.partial(compile_splash, segments=True)) for b in splash),
            *(("jax_flash", b, functools.partial(compile_jax_flash, segments=False)) for b in jax_flash),
            *(("jax_flash, segments", b, functools.partial(compile_jax_flash, segments=True)) for b in jax_flash),
        ]
        here = []
        for kernel, blocks, compile_kernel in jobs:
            if kernel.startswith("ours") and fitted(blocks) != blocks:  # its step has other scores than it says
                raise ValueError(f"blocks {blocks} become {fitted(blocks)} for {TOKENS} tokens: ask for those")
            try:
                found = count(topology, kernel, blocks, functools.partial(compile_kernel, width=width))
            except Exception as error:  # out of vector memory, mostly, which the compiler tells at length
                print(f"{topology:13} {kernel:24} {blocks!s:20} does not compile: {str(error).splitlines()[0][:120]}")
                continue
            here.append(found)
            print(f"{topology:13} {kernel:24} {blocks!s:20} {found.per_thousand:6.3f}", flush=True)
        others = ("splash", "splash, segments", "jax_flash", "jax_flash, segments")
        for a, b in itertools.product(("ours, bound", "ours, maximum"), others):
            mine, theirs = ([c.per_thousand for c in here if c.kernel == kernel] for kernel in (a, b))
            if mine and theirs:
                print(f"{topology:13} {a} / {b}: {min(mine) / min(theirs):.2f}")
        counts += here
    for topology in topologies:
        best = min((c for c in counts if (c.topology, c.kernel) == (topology, "ours, bound")), default=None, key=order)
        if best is not None:
            print(f"    {device_kind(topology)}: blocks={best.blocks},")
    if output is not None:
        output.write_text(json.dumps([dataclasses.asdict(c) for c in counts], indent=1) + "\n")


def order(count: Count) -> tuple[float, int]:
    """Fewer cycles first; within a percent, smaller blocks, which leave less of them unused."""
    return round(count.per_thousand, 2), count.blocks[0] * count.blocks[1]


def prepare() -> None:
    """Has libtpu dump its final bundles. Its options are read once: before jax is first used.

    Raises: SystemExit where there is no libtpu.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise SystemExit(MISSING)
    import jax

    folder = tempfile.mkdtemp(prefix="bundles-")
    os.environ["LIBTPU_INIT_ARGS"] = (
        f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final.*"
    )
    jax.config.update("jax_platforms", "cpu")  # libtpu's presence makes jax look for a TPU
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no host to ask about its chips
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ["COGVX_BUNDLES"] = folder


def count(topology: str, kernel: str, blocks: tuple[int, int, int], compile_kernel: Callable[..., Any]) -> Count:
    """Compiles `compile_kernel(topology, blocks)` and counts its bundles."""
    folder = Path(os.environ["COGVX_BUNDLES"])
    for file in folder.iterdir():
        file.unlink()
    start = time.monotonic()
    compile_kernel(topology, blocks)
    seconds = time.monotonic() - start
    files = [f for f in folder.glob("*-final_bundles.txt") if "schedule-analysis" not in f.name]
    step, total = max(bundles(f.read_text()) for f in files)
    return Count(topology=topology, kernel=kernel, blocks=blocks, step=step, total=total, seconds=round(seconds, 1))


def bundles(dump: str) -> tuple[int, int]:
    """The longest stretch of a program without a branch or the target of one, and its length."""
    cuts = [0]
    end = 0
    for address, label, text in _lines(dump):
        end = address + 1
        if label:
            cuts.append(address)
        if "sbr.rel" in text:
            cuts.append(end)
    cuts.append(end)
    cuts.sort()
    return max(b - a for a, b in itertools.pairwise(cuts)), end


def _lines(dump: str) -> Iterator[tuple[int, str, str]]:
    """Address, label ("LB", "PF", ... or "") and text of each bundle."""
    for line in dump.splitlines():
        if found := re.match(r"\s*(0x[0-9a-f]+|0)\s+([A-Z]{2})?\s*:(.*)", line):
            yield int(found[1], 16), found[2] or "", found[3]


def fitted(blocks: tuple[int, int, int]) -> tuple[int, int, int]:
    """What our kernel makes of blocks at TOKENS."""
    from cogvx_jax.nn.flash import Blocks, fit_blocks

    return fit_blocks(Blocks(*blocks), TOKENS, TOKENS)


def compile_ours(topology: str, blocks: tuple[int, int, int], *, variant: Variant = "bound", width: int = WIDTH):
    """The compiled kernel for HEADS x TOKENS in bfloat16."""
    import jax.numpy as jnp

    from cogvx_jax.nn.flash import Blocks, flash_attention

    def call(q, k, v, ids):
        return flash_attention(
            *(jnp.swapaxes(x, 2, 3) for x in (q, k, v)),  # undone inside: sequences are minor throughout
            scale=width**-0.5,
            max_logit=None if "maximum" in variant else 10.0,
            int8="int8" in variant,
            segments=ids if "segments" in variant else None,
            blocks=Blocks(*blocks),
        )

    with on(topology) as array:
        x = array((1, HEADS, width, TOKENS), jnp.bfloat16)
        return compiled(call, x, x, x, array((1, TOKENS), jnp.int32))


def compile_splash(topology: str, blocks: tuple[int, int, int], *, segments: bool, width: int = WIDTH):
    """JAX's splash attention, at TOKENS rounded up to blocks, which it needs."""
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    q, kv, compute = blocks
    tokens = -(-TOKENS // max(q, kv)) * max(q, kv)

    def call(q_, k, v, ids):
        kernel = kernels.make_splash_mha_single_device(
            masks.MultiHeadMask([masks.FullMask((tokens, tokens))] * HEADS),
            block_sizes=kernels.BlockSizes(block_q=q, block_kv=kv, block_kv_compute=compute),
        )
        return kernel(q_, k, v, segment_ids=kernels.SegmentIds(ids, ids) if segments else None)

    with on(topology) as array:
        x = array((HEADS, tokens, width), jnp.bfloat16)
        return compiled(call, x, x, x, array((tokens,), jnp.int32))


def compile_jax_flash(topology: str, blocks: tuple[int, int, int], *, segments: bool, width: int = WIDTH):
    """JAX's older kernel, flash attention, at TOKENS rounded up to blocks of keys, which it needs."""
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu import flash_attention as kernels

    q, kv, compute = blocks
    tokens = -(-TOKENS // max(q, kv)) * max(q, kv)

    def call(q_, k, v, ids):
        return kernels.flash_attention(
            q_, k, v,
            segment_ids=kernels.SegmentIds(ids, ids) if segments else None,
            block_sizes=kernels.BlockSizes(block_q=q, block_k_major=kv, block_k=compute, block_b=1),
        )  # fmt: skip

    with on(topology) as array:
        x = array((1, HEADS, tokens, width), jnp.bfloat16)
        return compiled(call, x, x, x, array((1, tokens), jnp.int32))


def compiled(function: Callable[..., Any], *shapes: Any):
    import jax

    return jax.jit(function).lower(*shapes).compile()


class on:
    """`with on("v5e:2x2") as array`: programs are traced for the first device of a topology, and
    `array(shape, dtype)` describes an argument on it."""

    def __init__(self, topology: str):
        import jax
        import numpy as np
        from jax.experimental import topologies

        devices = topologies.get_topology_desc(topology, platform="tpu").devices
        mesh = jax.sharding.Mesh(np.array(devices[:1]), ("x",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self.array = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
        self.context = jax.set_mesh(mesh)

    def __enter__(self):
        self.context.__enter__()
        return self.array

    def __exit__(self, *error):
        return self.context.__exit__(*error)


def device_kind(topology: str) -> str:
    from jax.experimental import topologies

    device: Any = topologies.get_topology_desc(topology, platform="tpu").devices[0]
    return device.device_kind


if __name__ == "__main__":
    import tyro

    tyro.cli(search)
