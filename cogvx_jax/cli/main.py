"""The command `cogvx`: its verbs."""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple

import tyro

from cogvx_jax import __version__
from cogvx_jax.cli.batch import batch
from cogvx_jax.cli.calibrate import calibrate
from cogvx_jax.cli.comfy import comfy
from cogvx_jax.cli.compile import compile_
from cogvx_jax.cli.convert import convert
from cogvx_jax.cli.decode import decode
from cogvx_jax.cli.distill import distill
from cogvx_jax.cli.edit import edit
from cogvx_jax.cli.encode import encode
from cogvx_jax.cli.ends import ends
from cogvx_jax.cli.enhance import enhance
from cogvx_jax.cli.eval import eval_
from cogvx_jax.cli.export import export
from cogvx_jax.cli.extend import extend
from cogvx_jax.cli.finish import finish
from cogvx_jax.cli.generate import generate
from cogvx_jax.cli.info import info
from cogvx_jax.cli.inspect import inspect
from cogvx_jax.cli.loop import loop
from cogvx_jax.cli.lora import lora
from cogvx_jax.cli.plan import plan
from cogvx_jax.cli.prepare import ACTIONS as PREPARE
from cogvx_jax.cli.prepare import prepare
from cogvx_jax.cli.push import push
from cogvx_jax.cli.quantize import quantize
from cogvx_jax.cli.replay import replay
from cogvx_jax.cli.serve import serve
from cogvx_jax.cli.show import show
from cogvx_jax.cli.sign import sign
from cogvx_jax.cli.train import train
from cogvx_jax.cli.train_vae import train_vae
from cogvx_jax.cli.verify import verify
from cogvx_jax.cli.work import work


class Verb(NamedTuple):
    run: Callable[..., None]
    left: str  # what Ctrl-C or SIGTERM leaves


GOES_ON = "the same command goes on from the newest checkpoint"
VERBS = {
    "generate": Verb(generate, "the video that was being made is not written"),
    "edit": Verb(edit, "the edited video is not written"),
    "extend": Verb(extend, "the longer video is not written"),
    "loop": Verb(loop, "the video is not written"),
    "batch": Verb(batch, "videos made so far are kept; the same command makes the others"),
    "enhance": Verb(enhance, "nothing was printed"),
    "show": Verb(show, "nothing was written"),
    "replay": Verb(replay, "the video is not written"),
    "sign": Verb(sign, "the video is as it was"),
    "decode": Verb(decode, "no video was written"),
    "finish": Verb(finish, "the finished video is not written; the same command goes on where this one was"),
    "info": Verb(info, "nothing was written"),
    "inspect": Verb(inspect, "nothing was written"),
    "plan": Verb(plan, "nothing was planned"),
    "compile": Verb(compile_, "no programs were written"),
    "calibrate": Verb(calibrate, "no calibration was written"),
    "convert": Verb(convert, "no model was written"),
    "lora": Verb(lora, "nothing was written"),
    "push": Verb(push, "what the hub has not confirmed was not published"),
    "quantize": Verb(quantize, "no model was written"),
    "verify": Verb(verify, "not everything was compared"),
    "prepare": Verb(prepare, "what is done is kept; the same command goes on from there"),
    "encode": Verb(encode, "clips written so far are kept; the same command adds the others"),
    "train": Verb(train, GOES_ON),
    "train-vae": Verb(train_vae, GOES_ON),
    "distill": Verb(distill, GOES_ON),
    "export": Verb(export, "nothing was written"),
    "eval": Verb(eval_, "no file was written; scores of single videos are kept, and the same command goes on"),
    "serve": Verb(serve, "the jobs wait in the queue"),
    "work": Verb(work, "the job at hand goes to another worker"),
    "comfy": Verb(comfy, "nothing was printed; nodes may be half copied, and the same command copies them anew"),
}


# Flags that were called otherwise before, by verb; their help shows the new names alone.
OLD_FLAGS = dict.fromkeys(("generate", "decode", "info", "inspect", "convert"), {"--lora-alpha": "--sat-lora-alpha"})


# Actions of verbs, whose first one needs no name: `cogvx prepare films/` is `cogvx prepare films films/`.
ACTIONS = {"prepare": list(PREPARE)}


def main() -> None:
    """Runs the command line; see `ends` for its exit statuses."""
    _prepare()
    verb = next((VERBS[argument] for argument in sys.argv[1:] if argument in VERBS), None)
    with ends(verb.left if verb else "nothing was done"):
        if any("\0" in argument for argument in sys.argv):
            raise ValueError("an argument holds a NUL character, which no prompt and no file's name can have")
        if sys.argv[1:] == ["--version"]:
            print(f"cogvx_jax {__version__}")
            return
        tyro.extras.subcommand_cli_from_dict(
            {name: verb.run for name, verb in VERBS.items()},
            prog="cogvx",
            description="CogVideoX in JAX and Flax.",
            args=_with_action(_renamed(sys.argv[1:])),
        )


def _renamed(arguments: list[str]) -> list[str]:
    """The arguments with the new names of flags; an old one is warned of."""
    now, renamed = OLD_FLAGS.get(arguments[0] if arguments else "", {}), []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        new = now.get(flag.replace("_", "-"))
        if new is not None:
            warnings.warn(f"{flag} is called {new} now; it is not of --lora, but of the model itself", stacklevel=1)
        renamed.append(argument if new is None else f"{new}{equals}{value}")
    return renamed


def _with_action(arguments: list[str]) -> list[str]:
    """The arguments with the verb's first action, where they name none and do not ask for help."""
    names = ACTIONS.get(arguments[0] if arguments else "", [])
    first = arguments[1] if len(arguments) > 1 else ""
    if not names or first in ("", "-h", "--help", *names[1:]):
        return arguments
    # The folder "films" may be meant, as in `cogvx prepare films --out set`.
    named = first == names[0] and len(arguments) > 2 and not arguments[2].startswith("-")
    return arguments if named else [arguments[0], names[0], *arguments[1:]]


def _prepare() -> None:
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # of jax, for processes that a library starts
    warnings.showwarning = lambda message, *_: print(f"cogvx: warning: {message}", file=sys.stderr)
    with contextlib.suppress(AttributeError):  # a name that the terminal cannot show must not end the command
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if "--distributed" in sys.argv or "JAX_COORDINATOR_ADDRESS" in os.environ:
        # XLA logs a stack where another process has ended; `sharding.initialize` says a sentence instead.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "4")
