"""Fields of a request that hold several things: files by frame or region, prompts by place, names with weights.

`pipelines.options` checks them, as for the command. Where a value of the command holds a path, one of a request holds a
file: a data URL, base64, or the name of a file of the same form. It never names a file of the server.
"""

import itertools
import secrets
from collections.abc import Mapping
from typing import Any

from cogvx_jax.pipelines.option_files import change_sources, sources_in
from cogvx_jax.pipelines.option_json import as_value
from cogvx_jax.pipelines.options import CHECKS
from cogvx_jax.serving.adapters import PARTS
from cogvx_jax.serving.bodies import Upload
from cogvx_jax.serving.files import URL_KEYS, file_of
from cogvx_jax.serving.refusals import Refused
from cogvx_jax.serving.weighted import MOST, read_weighted

COMPOSED = (  # options
    *("travel", "region", "keyframes", "control", "trajectory"),
    *("tora", "controlnet", "calibration", "noises", "flow"),
)
WHOLE_FILES = ("control", "trajectory", "noises", "flow")  # of them those that may be a file and no more
MAX_PROMPT = 10_000  # characters; models read about 1,000


class Files:
    """The files of one request, and the names that they get in the job's folder.

    Args:
      uploads: of a form, by name.
      fetches: addresses of the open internet are fetched, too.
    """

    def __init__(self, uploads: Mapping[str, bytes], fetches: bool = False):
        self.stored: dict[str, tuple[str, bytes]] = {}  # label -> suffix and bytes; the name is both
        self._uploads, self._fetches = dict(uploads), fetches
        self._unused = set(uploads)

    def add(self, upload: Upload) -> str:
        """A name by which a value may hold a file."""
        name = secrets.token_hex(8)
        self._uploads[name] = upload.data
        return name

    def take(self, value: Any, field: str, options: tuple[str, ...]) -> tuple[str, str, bytes]:
        """Option, suffix and bytes of a file; see `file_of`. Raises: Refused."""
        if isinstance(value, str) and value in self._uploads:
            self._unused.discard(value)
            value = Upload(self._uploads[value])
        return file_of(value, field, options, self._fetches)

    def keep(self, value: Any, option: str, label: str) -> str:
        """The name that a file of an option gets. Raises: Refused."""
        _, suffix, data = self.take(value, option, (option,))
        self.stored[label] = suffix, data
        return f"{label}{suffix}"

    def check_used(self) -> None:
        """Raises: Refused for a file of the form that no field names."""
        if self._unused:
            name = min(self._unused)
            raise Refused("invalid_value", f"no field names the file {name[:60]!r}; leave it out", "files")


def read_composed(values: Mapping[str, Any], files: Files) -> dict[str, Any]:
    """The options of these fields as JSON, in which files have their names in the job's folder. Raises: Refused."""
    return {option: _read(option, values[option], files) for option in COMPOSED if option in values}


def _read(option: str, given: Any, files: Files) -> Any:
    if option in PARTS:
        given = _with_weights(option, given)
    elif option != "travel":
        given = _as_texts(given, files)
    try:
        value = CHECKS[option](option, given)
    except (ValueError, OverflowError) as error:
        raise Refused("invalid_value", str(error), option) from None
    for prompt in _prompts(option, value):
        check_text(prompt, option)
    if option in PARTS:
        return as_value(option, value)
    count, number = len(sources_in(option, value)), itertools.count()

    def named(source: Any) -> str:
        return files.keep(source, option, option if count == 1 else f"{option}-{next(number)}")

    if count > MOST:
        raise Refused("invalid_value", f"{option} has {count} files, of which at most {MOST} are taken", option)
    return as_value(option, change_sources(option, value, named))


def _with_weights(option: str, given: Any) -> Any:
    """Objects of a name and a weight as the command's NAME:WEIGHT; a list of at most `MOST`."""
    if isinstance(given, list) and len(given) > MOST:
        raise Refused("invalid_value", f"{option} has {len(given)} entries, of which at most {MOST} are taken", option)
    if isinstance(given, list):
        return [_with_weights(option, one) for one in given]
    if not isinstance(given, Mapping):
        return given
    name, weight = read_weighted(given, option)
    return f"{name}:{weight!r}"


def _as_texts(given: Any, files: Files) -> Any:
    """The value with a name in place of each file of a form, and the text in place of objects such as {"url": ...}."""
    if isinstance(given, Upload):
        return files.add(given)
    if isinstance(given, list):
        return [_as_texts(one, files) for one in given]
    if not isinstance(given, Mapping):
        return given
    if len(given) == 1 and given.keys() <= set(URL_KEYS):
        return _as_texts(next(iter(given.values())), files)
    return {key: _as_texts(one, files) for key, one in given.items()}


def _prompts(option: str, value: Any) -> tuple[str, ...]:
    """The prompts that an option holds beside the video's own."""
    if option == "travel" and value:
        return value.prompts
    return tuple(region.prompt for region in value) if option == "region" else ()


def check_text(text: str, field: str, most: int = MAX_PROMPT, code: str = "invalid_value") -> None:
    """Raises: Refused for a prompt that is too long, or that holds what no text does."""
    if len(text) > most:
        raise Refused(code, f"{field} has {len(text):,} characters, of which at most {most:,} are taken", field)
    if "\0" in text:
        raise Refused("invalid_value", f"{field} holds a NUL character", field)
