"""`cogvx lora`: tells about LoRA files, converts and merges them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from cogvx_jax.cli.actions import one_of
from cogvx_jax.cli.options import DType, GivenFlags, ModelFlags, parse_lora, print_facts, report

if TYPE_CHECKING:
    from cogvx_jax.convert.lora_file import LoRAFile

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.

To = Literal["peft", "kohya", "comfyui", "fun", "sat"]  # of `convert.lora_formats.WRITTEN`
File = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
LoRAs = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILE[:WEIGHT]")]


def info(
    file: File,
    /,
    *,
    alpha: float | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Prints what a LoRA file is: its dialect, rank, alpha, modules, and the models that it fits. It needs no model.

    Args:
      file: a LoRA of any maker, or a folder that holds one, or its URL.
      alpha: to count with in place of the file's.
      as_json: print JSON.
    """
    _stay_on_the_host()
    from cogvx_jax.convert import open_lora
    from cogvx_jax.convert.lora_models import describe

    print_facts(describe(open_lora(file, alpha)), as_json)


def convert(
    file: File,
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")],
    /,
    *,
    to: To = "peft",
    alpha: float | None = None,
    dtype: DType | None = None,
) -> None:
    """Writes a LoRA file in the naming of another program. Ranks and effective scales stay as they are.

    Args:
      file: a LoRA of any maker, a folder that holds one, or a run of `cogvx train`.
      out: a .safetensors file that does not exist; for sat, a .pt file or a folder.
      to: peft for diffusers and PEFT, kohya, comfyui, fun for VideoX-Fun, sat for the authors' SAT.
      alpha: to count with in place of the file's.
      dtype: of the numbers; None keeps each tensor's own.
    """
    _stay_on_the_host()
    from cogvx_jax.convert import convert_lora, open_lora, write_lora
    from cogvx_jax.convert.lora_write import check_target
    from cogvx_jax.convert.runs import find_run, read_run_lora, run_source

    check_target(out, to)
    if (run := find_run(file)) is not None:
        if alpha is not None:
            raise ValueError(f"{file} is a run, which has its alpha; --alpha is for a file")
        from cogvx_jax.pipelines.model import load_spec

        spec = load_spec(run_source(run))
        lora = read_run_lora(run, spec)
        report(f"{file}: {lora.told}")
        write_lora(out, lora, spec, to, dtype)
    else:
        found = open_lora(file, alpha)
        _report_read(found)
        convert_lora(out, found, to, dtype)
    print(f"{out}: {open_lora(out).told()}")


def merge(
    loras: LoRAs,
    /,
    *,
    out: Path,
    model: str | None = None,
    to: To | None = None,
    alpha: float | None = None,
    dtype: DType | None = None,
    given: ModelFlags = GivenFlags(),  # noqa: B008
) -> None:
    """Adds LoRAs to a model, which is written in the published layout; without --model, makes one LoRA of several.

    Args:
      loras: LoRA files, folders that hold one or, for a model, runs of `cogvx train`, each with its weight if not 1.
      out: a folder that does not exist, or is empty; for one LoRA of several, a .safetensors file.
      model: a model as for `generate`.
      to: kind of one LoRA of several, as for `convert`; None is peft. A model has none.
      alpha: to count with in place of the files'. It is not --sat-lora-alpha, which is of a LoRA inside the model.
      dtype: of the transformer, or of the LoRA; None keeps each array's own.
    """
    if not loras:
        raise ValueError("there is nothing to merge; give LoRA files")
    weighted, about = [parse_lora(text) for text in loras], given.checked()
    if model is None and about:
        flag = about.said()[0].replace("_", "-")
        raise ValueError(f"--{flag} tells about a model, and one LoRA of several is made without one; give --model")
    if model is not None and to is not None:
        raise ValueError("--to is the kind of one LoRA of several; a model is written in the published layout")
    _stay_on_the_host()
    if model is None:
        _merge_files(weighted, out, to or "peft", alpha, dtype)
        return
    from cogvx_jax.convert import export
    from cogvx_jax.pipelines.lora import find_lora, load_merged
    from cogvx_jax.pipelines.model import load_spec
    from cogvx_jax.storage import check_new

    if out.suffix == ".safetensors":
        raise ValueError(f"a model is written as a folder, not as {out}; one LoRA of several is made without --model")
    check_new(out)
    spec, found = load_spec(model, about), []
    for path, weight in weighted:
        lora = find_lora(path, spec, alpha)
        report(f"{path}: {lora.told}, weight {weight:g}")
        found.append((lora, weight))
    merged = load_merged(model, found, dtype, about)
    export(out, merged.spec, merged.params, merged.tokenizer)
    print(f"{out}: {merged.spec.name} with {len(found)} LoRA{'s' * (len(found) > 1)}")


def _report_read(file: "LoRAFile", more: str = "") -> None:
    """Says how a file was read, and what of that may be wrong: an alpha that is written is stated from then on."""
    from cogvx_jax.convert.lora_models import doubts

    report(f"{file.path}: {file.told()}{more}")
    for doubt in doubts(file):
        report(f"warning: {file.path}: {doubt}")


def _stay_on_the_host() -> None:
    """An accelerator that does not work, or is in use, is no matter, and its memory is no limit."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def _merge_files(
    weighted: list[tuple[str, float]], out: Path, to: To, alpha: float | None, dtype: DType | None
) -> None:
    from cogvx_jax.convert import open_lora
    from cogvx_jax.convert.lora_write import check_target, merge_loras

    check_target(out, to)
    files = []
    for path, weight in weighted:
        files.append((open_lora(path, alpha), weight))
        _report_read(files[-1][0], f", weight {weight:g}")
    merge_loras(out, files, to, dtype)
    print(f"{out}: {open_lora(out).told()}")


ACTIONS: Mapping[str, Callable[..., None]] = {"info": info, "convert": convert, "merge": merge}


def lora(action: Any) -> None:
    """Tells about LoRA files, converts and merges them."""
    action()


lora.__annotations__["action"] = one_of(ACTIONS)
