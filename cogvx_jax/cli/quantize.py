"""`cogvx quantize`: stores a model as integers, or says what that costs."""

import time
from typing import Annotated, Literal

import tyro

from cogvx_jax.cli.families import family_of
from cogvx_jax.cli.options import GivenFlags, LoRAText, ModelFlags, QuantizeText, parse_lora, size_words
from cogvx_jax.cli.options import report as report_line
from cogvx_jax.quantization import find_quantization

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


def quantize(
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")],
    target: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="DST")] = None,
    /,
    *,
    to: QuantizeText = "int8",
    layout: Literal["safetensors", "orbax"] | None = None,
    lora: LoRAText = (),
    report: bool = False,
    given: ModelFlags = GivenFlags(),  # noqa: B008
) -> None:
    """Writes a model with kernels of integers, about half the bytes; DST is then a model like any other.

    Embeddings, norms, biases and the VAE stay as they are. The result takes no LoRA and is not trained. It has digests
    that `cogvx verify` compares.

    Args:
      source: a model as for `generate`.
      target: the folder to write, or its URL, such as gs://bucket/model; it must not exist, or be empty.
      to: int8 and w8a8 are the same numbers; with w8a8 activations are integers, too, when the model is used. int4 has
        groups of 128 inputs, or of as many as int4:GROUP says.
      layout: safetensors files by the published names, which None is, or Orbax checkpoints as `cogvx convert` writes
        them.
      lora: a LoRA to add first, and its weight if not 1; several add up.
      report: print the error that quantising makes, of each layer; without DST, that alone.
    """
    how, weighted = find_quantization(to), [parse_lora(text) for text in lora]
    if target is None and not report:
        raise ValueError("give a folder to write, or --report")
    if target is None and layout is not None:
        raise ValueError("--layout is of the folder to write, and there is none; give one, or leave it out")
    if (family := family_of(source)) is not None:
        said = {"layout": layout, "lora": lora, "report": report, "the flags of a model": bool(given)}
        return family.quantize(source, target, to, said)
    from cogvx_jax.convert import write_quantized
    from cogvx_jax.convert.sources import open_source
    from cogvx_jax.pipelines.lora import find_lora, stack_loras
    from cogvx_jax.pipelines.model import report_inferred, resolve, stored_or_asked
    from cogvx_jax.pipelines.tokenizer import read_tokenizer

    folder, about = resolve(source), given.checked()
    model = open_source(folder, about)
    spec = model.spec()
    stored_or_asked(model, spec, to)  # refuses what cannot be quantised
    report_inferred(model)
    read_tokenizer(model.tokenizer, spec)  # before the weights, with which it may not fit
    found = [(find_lora(path, spec), weight) for path, weight in weighted]
    for (path, weight), (adapter, _) in zip(weighted, found, strict=True):
        report_line(f"{path}: {adapter.told}, weight {weight:g}")
    adapters = stack_loras(found)
    if target is not None:
        began = time.monotonic()
        write_quantized(model, target, how, layout=layout or "safetensors", lora=adapters)
        print(f"{target}: {how.name}, {size_words(target)}in {time.monotonic() - began:.1f} s", flush=True)
    if report:
        from cogvx_jax.pipelines.quantization_report import print_report

        print_report(folder, how, adapters, given=about)
