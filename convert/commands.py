"""Commands to type, as `cogvx inspect` shows them: whole, quoted for a shell, and of the very file that is meant."""

import dataclasses
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cogvx_jax.convert.loose import Place
from cogvx_jax.convert.lora_file import SHIPPED as LORAS
from cogvx_jax.given import Given
from cogvx_jax.presets import HUB, PRESETS, SHIPPED

PROMPT = "a panda"
# Words that stand for what only the user knows, and what to put there.
WORDS = {
    "MODEL": "a model: its folder, its file, a preset such as 5b, or a hub id",
    "VAE": "the VAE of such a model, a file or a folder",
    "T5": "T5-XXL, a file or a folder",
    "TOKENIZER": "the folder with T5's tokenizer.json or spiece.model",
    "IMAGE": "an image, the first frame",
    "VIDEO": "a video",
    "MASK": "a video or an image, white where the video is made anew",
}
# Names that mean a published model, wherever a model is asked for, whatever lies in the working folder.
MODELS = {*SHIPPED, *PRESETS, *map(str.lower, HUB.values())}


def command(*words: object) -> str:
    """`cogvx` and these words, quoted but for `WORDS`."""
    return " ".join(["cogvx", *(word if word in WORDS else shlex.quote(word) for word in map(str, words))])


def replacements(commands: Sequence[str]) -> list[str]:
    """A line for each of `WORDS` in these commands."""
    used = {word for line in commands for word in line.split()}
    return [f"{word} is {meaning}" for word, meaning in WORDS.items() if word in used]


def path_word(place: Place) -> str:
    """A path as a word of a command: neither an option, nor one of `WORDS`, nor a LoRA that ships."""
    text = str(place)
    return f"./{text}" if text.startswith("-") or text in {*WORDS, *LORAS} else text


def model_word(place: Place) -> str:
    """A path where a model is asked for: such that it means the path, not a published model of its name."""
    text = path_word(place)
    return f"./{text}" if text.lower() in MODELS else text


def published_word(name: str) -> str | None:
    """A published model's name where a model is asked for: its hub id where a folder has the preset's name, or None."""
    preset = next((preset for preset, spec in PRESETS.items() if spec.name == name), None)
    return None if preset is None else HUB[preset] if Path(preset).is_dir() else preset


def lora_word(place: Place) -> str:
    """A path where a LoRA is asked for, as PATH:WEIGHT: one that ends like a weight gets its own."""
    text = path_word(place)
    _, colon, end = text.rpartition(":")
    try:
        float(end if colon else "none")
    except ValueError:
        return text
    return f"{text}:1"


def given_words(given: Given) -> list[str]:
    """The options that say what is given."""
    words: list[str] = []
    for field in dataclasses.fields(Given):
        value: Any = getattr(given, field.name)
        if value == field.default:
            continue
        words.append(f"--{field.name.replace('_', '-')}")
        if field.type is not bool:
            words.append(path_word(value) if isinstance(value, str) else str(value))
    return words


def new_name(place: Place, ending: str, folder: str = "") -> str:
    """A name in the working folder, or one in it, made of a place's own, that nothing has yet."""
    stem = Path(str(place).rstrip("/")).absolute().name.partition(".")[0] or "new"
    name, number = f"{folder}{stem}{ending}", 1
    while os.path.lexists(name):
        number += 1
        name = f"{folder}{stem}-{number}{ending}"
    return path_word(name)
