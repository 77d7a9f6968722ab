"""Sound from a Python function, run in a process of its own.

The process gives back all memory that the maker takes, a device's too, and may be ended when its time is over. What it
prints comes on stderr.

    python -m cogvx_jax.finishing.sound_process ASKED.json
"""

import contextlib
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from cogvx_jax.data.sound import RATES, save_samples
from cogvx_jax.finishing.scene import Scene

LOUDEST = 8.0  # of samples that should lie in [-1, 1]; beyond, they are integers that were not scaled
SHOWN = 500  # characters of an error
MORE = 1.0  # seconds of samples beyond the end that are kept


class NoSound(ValueError):
    """What a function gave, or was to be, is not what a maker of sound is; the sentence says it all."""


def ask_function(name: str, scene: Scene, folder: Path, most: int, timeout: float) -> Path:
    """Has `module:function` make a file of sound in `folder`, or name one.

    Raises: TimeoutError; ValueError for what cannot be imported, for what it raises and for what is no sound.
    """
    asked, answer = folder / "asked.json", folder / "answer.json"
    fields = dataclasses.asdict(scene) | {"video": str(scene.video), "fps": str(scene.fps)}
    asked.write_text(json.dumps({"function": name, "folder": str(folder), "most": most, "scene": fields}))
    command = [sys.executable, "-m", __name__, str(asked)]
    places = {"PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)])}  # modules are found as here
    # A session of its own: what the maker starts in its turn ends with it. Its input ends when this process does.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=2, start_new_session=True, env=os.environ | places
    ) as process:
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"the maker of sound {name} took more than {timeout:g} s; give more by sound_timeout"
            ) from None
        finally:
            _end(process)
    if not answer.is_file():
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        raise ValueError(f"the maker of sound {name} ended {how} before it gave an answer")
    found = json.loads(answer.read_text())
    if "error" in found:
        raise ValueError(f"the maker of sound {name} failed: {found['error']}")
    return Path(found["path"])


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def find_function(name: str) -> Callable[[Scene], Any]:
    """What `module:function` names. Raises: NoSound."""
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise NoSound(f"there is no module {error.name}; run where it lies, or install it") from None
    for part in path.split("."):
        if not hasattr(found, part):
            raise NoSound(f"{module} has no {path}")
        found = getattr(found, part)
    if not callable(found):
        raise NoSound(f"{path} of {module} is no function")
    return found


def answered(given: Any, scene: Scene, folder: Path, most: int) -> Path:
    """The file of what a function gave: samples and their rate, the bytes of a file, or the path of one.

    Raises: NoSound for anything else.
    """
    if isinstance(given, str | os.PathLike):
        return Path(given)
    out = folder / "given.w64"
    if isinstance(given, bytes | bytearray | memoryview):
        if len(given) > most:
            raise NoSound(f"it gave more than {most:,} bytes; that is no such sound")
        out.write_bytes(given)
        return out
    if not (isinstance(given, tuple | list) and len(given) == 2):
        raise NoSound(f"a maker of sound gives (samples, rate), bytes or a path, got {type(given).__name__}")
    samples, rate = given
    if isinstance(rate, bool) or not hasattr(rate, "__index__") or not RATES[0] <= rate <= RATES[1]:
        raise NoSound(f"the rate of samples must be a whole number from {RATES[0]} to {RATES[1]}, got {rate!r}")
    rate = int(rate)
    held = _checked(samples, round((scene.seconds + MORE) * rate))
    save_samples(out, (held[:, begin : begin + rate] for begin in range(0, held.shape[1], rate)), rate)
    return out


def _checked(samples: Any, most: int) -> np.ndarray:
    """(1 or 2, N) float32. Raises: NoSound for samples of another shape or kind, and for numbers that are none."""
    if hasattr(samples, "detach"):  # a tensor of torch
        samples = samples.detach().cpu().float().numpy()
    held = np.asarray(samples)
    held = held[None] if held.ndim == 1 else held
    if held.ndim != 2 or len(held) not in (1, 2) or not held.size:
        raise NoSound(f"samples must be (N,) or (2, N) and not empty, got {np.shape(samples)}")
    held = held[:, :most]
    if held.dtype == np.int16:
        held = held / np.float32(2**15)
    if not np.issubdtype(held.dtype, np.floating):
        raise NoSound(f"samples must be floats in [-1, 1] or int16, got {held.dtype}")
    held = np.asarray(held, np.float32)
    if not np.isfinite(held).all():
        raise NoSound("samples must be finite, and some are not")
    if (peak := float(np.abs(held).max())) > LOUDEST:
        raise NoSound(f"samples must lie in [-1, 1], and reach {peak:g}")
    return held


def main(file: Path) -> None:
    """Asks the function and writes an answer: a path, or what went wrong."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asked = json.loads(file.read_text())
    folder = Path(asked["folder"])
    fields = asked["scene"]
    scene = Scene(**fields | {"video": Path(fields["video"]), "fps": Fraction(fields["fps"])})
    try:
        path = answered(find_function(asked["function"])(scene), scene, folder, asked["most"])
        answer = {"path": str(path.absolute())}
    except NoSound as error:
        answer = {"error": str(error)[:SHOWN]}
    except Exception as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"[:SHOWN]}
    partial = folder / "answer.part"
    partial.write_text(json.dumps(answer))
    partial.replace(folder / "answer.json")


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
