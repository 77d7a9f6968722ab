"""What several verbs share: kinds of options, and how their text is read."""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

from cogvx_jax.configs import DType as DType  # the verbs take it from here
from cogvx_jax.finishing.maker_names import maker_name
from cogvx_jax.finishing.options import MAKER
from cogvx_jax.given import Given
from cogvx_jax.pipelines.memory_modes import AUTO, find_mode
from cogvx_jax.pipelines.options import Options, Sampling, none_beside, parse_weighted
from cogvx_jax.pipelines.options import parse_size as parse_size

Size = Annotated[str | None, tyro.conf.arg(metavar="HxW")]
MemoryText = Annotated[str | None, tyro.conf.arg(metavar="MODE|auto")]
MeshText = Annotated[str | None, tyro.conf.arg(metavar="AXIS=N,...")]
QuantizeText = Annotated[str, tyro.conf.arg(metavar="int8|w8a8|w8a8qk|int4[:GROUP]")]
QuantizeOption = Annotated[str | None, tyro.conf.arg(metavar="int8|w8a8|w8a8qk|int4[:GROUP]")]
LoRAText = Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATH[:WEIGHT]")]
ControlNetText = Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATH[:WEIGHT]")]
FolderText = Annotated[str, tyro.conf.arg(metavar="PATH|URL")]  # a folder, or one in a bucket


# Options as tyro makes them: not checked yet, as tyro would frame the error instead of leaving a sentence. They have no
# docstrings, which `--help` would show.
class SamplingFlags(Sampling):
    def __post_init__(self):
        pass

    def checked(self) -> Sampling:
        return Sampling(**vars(self))


class VideoFlags(Options):
    def __post_init__(self):
        pass

    def checked(self) -> Options:
        return Options(**vars(self))


T = TypeVar("T", bound=VideoFlags)


def _without(*names: str, **helps: str) -> Callable[[type[T]], type[T]]:
    """Takes flags away from a class of them, and gives others another help."""

    def narrow(flags: type[T]) -> type[T]:
        kinds = get_type_hints(VideoFlags, include_extras=True)
        changed: dict[str, Any] = dict.fromkeys(names, tyro.conf.Suppress)
        changed |= {name: tyro.conf.arg(help=text) for name, text in helps.items()}
        form: Any = Annotated
        flags.__annotations__ = {name: form[kinds[name], about] for name, about in changed.items()}
        for field in dataclasses.fields(VideoFlags):
            if field.name in changed:
                setattr(flags, field.name, field.default)
        return dataclasses.dataclass(frozen=True, kw_only=True)(flags)

    return narrow


EXTENDED = "of the whole that comes out, any number above that of VIDEO; None is a clip of the model's own more."


@_without("extend", "depth", *none_beside("extend"), frames=EXTENDED)
class ExtendFlags(VideoFlags):
    pass


@_without("extend", "depth")
class LoopFlags(VideoFlags):
    pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFlags:
    """How a video is made, whatever it shows.

    Args:
      out: an .mp4, .webm, .gif or .webp file, or a name without a suffix, for a folder of PNGs.
      model: "tiny" or "tiny-inp", one of 2b, 5b, 5b-i2v, 1.5-5b, 1.5-5b-i2v, a folder in the published layout, a hub
        id, or other makers' files, which docs/files.md lists. These names come before a folder of the same name, which
        is ./tiny.
      lora: a LoRA to use, a file of any maker, a folder or a run of `cogvx train`, and its weight if not 1; several
        add up. `cogvx lora info` tells what a file is. One of `cogvx distill` brings its steps, sampler and guidance
        scale, where none are given; "tiny-fast" is such a one for tiny.
      dtype: to compute in.
      quantize: keep the kernels of transformer and text encoder as integers: int8, w8a8, with activations as integers
        too, or int4. Lossy. None is as the model is stored.
      mesh: the devices to use and how, such as cfg=2,sp=4; see `cogvx_jax.make_mesh`. "auto" is what `cogvx plan`
        chooses for the devices that are here; None is one device.
      memory: a memory mode: resident, turns, rows, chunks or offload, all with the same result, or one of the last four
        with +tiles, which is lossy. "auto" is the first that fits the devices that are here, which takes minutes of
        compiling once. None is resident, or turns where the weights do not fit together.
      one_program: run all steps as one compiled program, for TPU7x; there is no progress bar then.
      exact: the same bits on one device and on any mesh of data and cfg; slower.
      keep_steps: keep sampled steps in OUT.steps.safetensors, every few seconds and on Ctrl-C or SIGTERM. The same
        command goes on from there, to the same bits.
      preview: a .webp or .gif file for small frames of what is being sampled, written anew while the steps go on.
      preview_decoder: another VAE that makes the preview, in the video's size, such as taecvx.safetensors.
      progress: show a progress bar.
      enhance_prompt: let a language model make a long English description of the prompt first, as `cogvx enhance` does.
        OPENAI_BASE_URL and OPENAI_API_KEY name its endpoint.
      llm: name of that language model; None is OPENAI_MODEL, or the only one that the server has.
      record: let the file tell how it was made, prompt included; `cogvx show` prints it, `cogvx replay` makes the video
        again. A .gif or .webp has a file beside it for that, NAME.gif.json.
      sound_from: who makes sound for the video, from its prompt and its frames: an address of HTTP, "module:function"
        of Python, or "tones", which is built in; see docs/sound.md.
    """

    out: Path = Path("out.mp4")
    model: str = "tiny"
    lora: LoRAText = ()
    dtype: DType | None = None
    quantize: QuantizeOption = None
    mesh: MeshText = None
    memory: MemoryText = None
    one_program: bool = False
    exact: bool = False
    keep_steps: bool = True
    preview: Path | None = None
    preview_decoder: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    progress: bool = True
    enhance_prompt: bool = False
    llm: str | None = None
    record: bool = True
    sound_from: Annotated[str | None, tyro.conf.arg(metavar=MAKER)] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateFlags(RunFlags):
    """How videos are made, whatever they show.

    Args:
      prompts_file: one prompt per line, or one JSON object per line with "prompt" and any of the options of a video
        ("out" too); the model is loaded once. Videos that an earlier run made of the same requests are left as they
        are; cogvx-made.jsonl beside them says which those are. To the stem of --out the line's number is added.
      again: make all videos anew: also those of a prompts file that are there and whole, and those of which steps are
        kept.
      distributed: this is one of several processes, one a host, that run the same command. TPU pods, GKE and Slurm
        connect them; elsewhere set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
      programs: a folder of `cogvx compile` to run instead of compiling. It is code: trust who wrote it.
    """

    prompts_file: Path | None = None
    again: bool = False
    distributed: bool = False
    programs: Path | None = None


class GivenFlags(Given):
    def __post_init__(self):
        pass

    def checked(self) -> Given:
        return Given(**vars(self))


ModelFlags = Annotated[GivenFlags, tyro.conf.OmitArgPrefixes]


def parse_lora(text: str) -> tuple[str, float]:
    """Path and weight of "PATH:WEIGHT" or "PATH"; a colon without a number after it belongs to the path."""
    return parse_weighted(text, "LoRA")


def check_memory(mode: str | None) -> None:
    """Raises: ValueError for an unknown memory mode."""
    if mode not in (None, AUTO):
        find_mode(str(mode))


def check_maker(name: str | None) -> None:
    """Raises: ValueError for what makes no sound; nobody is asked yet."""
    if name is not None:
        maker_name(name)


def size_words(folder: str) -> str:
    """How much was written to a folder, "1.23 GB "; nothing for a URL."""
    if "://" in folder:
        return ""
    return f"{sum(path.stat().st_size for path in Path(folder).rglob('*') if path.is_file()) / 1e9:.2f} GB "


def print_facts(facts: Mapping[str, str | list[str]], as_json: bool) -> None:
    """Prints a name and its value on each line, of a list a line for each value; or JSON."""
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        for line in value if isinstance(value, list) else [value]:
            print(f"{name:{width}}  {line}")
            name = ""


def report(line: str) -> None:
    """Prints a line beside what the command is asked for."""
    print(f"cogvx: {line}", file=sys.stderr, flush=True)
