"""`cogvx comfy`: puts the nodes into ComfyUI, and reads workflows of the CogVideoX wrapper."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from cogvx_jax.cli.actions import one_of
from cogvx_jax.cli.options import report
from cogvx_jax.convert.commands import command, lora_word, path_word
from cogvx_jax.json_files import printable

if TYPE_CHECKING:
    from cogvx_jax.workflows.requests import Imported

PACK = "comfyui_cogvx"
CUSTOM = "custom_nodes"
Form = Literal["command", "line", "request"]


def install(
    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="COMFYUI")],
    /,
    *,
    link: bool = False,
) -> None:
    """Puts the nodes into a ComfyUI, in place of an earlier version of them. ComfyUI shows them when it starts again.

    Args:
      folder: ComfyUI's, or its custom_nodes.
      link: link to the files of this installation, in place of a copy of them.
    """
    nodes = folder if folder.name == CUSTOM else folder / CUSTOM
    if not nodes.is_dir():
        raise NotADirectoryError(f"there is no folder {nodes}; give that of ComfyUI")
    ours, target = Path(__file__).parents[1] / PACK, nodes / PACK
    if os.path.lexists(target) and not target.is_symlink() and not (target / "declarations.py").is_file():
        raise FileExistsError(f"{target} is something else; move it away")
    if target.is_symlink() or target.is_file():
        target.unlink()
    elif target.is_dir():
        shutil.rmtree(target)
    if link:
        target.symlink_to(ours, target_is_directory=True)
    else:
        shutil.copytree(ours, target, ignore=shutil.ignore_patterns("__pycache__"))
    print(f"{target}: {'linked' if link else 'copied'}; start ComfyUI again")


def import_(
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="WORKFLOW.json")],
    /,
    *,
    to: Form = "command",
    node: str | None = None,
    comfyui: Path | None = None,
) -> None:
    """Prints what a workflow of ComfyUI-CogVideoXWrapper asks for, as a command, and what could not be carried over.

    Text, image and video to video are read, of files that ComfyUI's page saved and of those for its API. The same seed
    draws other noise here.

    Args:
      file: the workflow.
      to: command is for a shell, line is for a prompts file, request is the body of POST /v1/videos.
      node: id of the sampler, where there are several.
      comfyui: ComfyUI's folder, in which pictures, clips and LoRAs lie.
    """
    from cogvx_jax.workflows.graphs import read_graph
    from cogvx_jax.workflows.requests import import_graph
    from cogvx_jax.workflows.wrapper import WIDGETS

    graph = read_graph(file, WIDGETS)
    try:
        found = import_graph(graph, node=node, comfyui=comfyui)
        text = FORMS[to](found)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    for note in found.notes:
        report(printable(note))
    print(text)


def _command(found: "Imported") -> str:
    words: list[Any] = ["generate"]
    words += [] if found.model is None else ["--model", path_word(found.model)]
    for path, weight in found.loras:
        words += ["--lora", lora_word(path) if weight == 1 else f"{path_word(path)}:{weight:g}"]
    for name, value in found.options.items():
        words.append(f"--{name.replace('_', '-')}={_word(value)}")
    words += ["--", found.prompt] if found.prompt.startswith("-") else [found.prompt]
    return printable(command(*words))


def _word(value: Any) -> str:
    """An option as a word; of a size the height comes first."""
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


def _line(found: "Imported") -> str:
    if found.model is not None or found.loras:
        flags = [f"--model {found.model}"] if found.model is not None else []
        flags += [f"--lora {path}:{weight:g}" for path, weight in found.loras]
        report(f"a line names neither model nor LoRAs; give {printable(' '.join(flags))}")
    return json.dumps({"prompt": found.prompt, **found.options})


def _request(found: "Imported") -> str:
    """Fields of the server; the width comes first, and files are data URLs."""
    from cogvx_jax.workflows.bodies import body_of

    if found.model is not None:
        report(f"a server makes videos of the model that it was started with; this wants {printable(found.model)}")
    return json.dumps(body_of(found))


FORMS: Mapping[Form, Callable[["Imported"], str]] = {"command": _command, "line": _line, "request": _request}
ACTIONS: Mapping[str, Callable[..., None]] = {"install": install, "import": import_}


def comfy(action: Any) -> None:
    """Puts nodes into ComfyUI, and reads workflows of its CogVideoX wrapper."""
    action()


comfy.__annotations__["action"] = one_of(ACTIONS)
