"""The command `cogvx`: its verbs."""

import contextlib
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple

import tyro

from cogvx_jax import __version__
from cogvx_jax.cli.ends import ends


class Verb(NamedTuple):
    place: str  # file and function in `cli`
    left: str  # what Ctrl-C or SIGTERM leaves

    @property
    def run(self) -> Callable[..., None]:
        """The function, of a file that is imported when it is first asked for: some import jax and more."""
        return pkgutil.resolve_name(f"cogvx_jax.cli.{self.place}")


GOES_ON = "the same command goes on from the newest checkpoint"
VERBS = {
    "generate": Verb("generate:generate", "the video that was being made is not written"),
    "edit": Verb("edit:edit", "the edited video is not written"),
    "extend": Verb("extend:extend", "the longer video is not written"),
    "loop": Verb("loop:loop", "the video is not written"),
    "batch": Verb("batch:batch", "videos made so far are kept; the same command makes the others"),
    "enhance": Verb("enhance:enhance", "nothing was printed"),
    "show": Verb("show:show", "nothing was written"),
    "replay": Verb("replay:replay", "the video is not written"),
    "sign": Verb("sign:sign", "the video is as it was"),
    "decode": Verb("decode:decode", "no video was written"),
    "finish": Verb("finish:finish", "the finished video is not written; the same command goes on where this one was"),
    "info": Verb("info:info", "nothing was written"),
    "inspect": Verb("inspect:inspect", "nothing was written"),
    "plan": Verb("plan:plan", "nothing was planned"),
    "compile": Verb("compile:compile_", "no programs were written"),
    "calibrate": Verb("calibrate:calibrate", "no calibration was written"),
    "convert": Verb("convert:convert", "no model was written"),
    "lora": Verb("lora:lora", "nothing was written"),
    "push": Verb("push:push", "what the hub has not confirmed was not published"),
    "quantize": Verb("quantize:quantize", "no model was written"),
    "verify": Verb("verify:verify", "not everything was compared"),
    "prepare": Verb("prepare:prepare", "what is done is kept; the same command goes on from there"),
    "encode": Verb("encode:encode", "clips written so far are kept; the same command adds the others"),
    "train": Verb("train:train", GOES_ON),
    "train-vae": Verb("train_vae:train_vae", GOES_ON),
    "distill": Verb("distill:distill", GOES_ON),
    "export": Verb("export:export", "nothing was written"),
    "eval": Verb("eval:eval_", "no file was written; scores of single videos are kept, and the same command goes on"),
    "serve": Verb("serve:serve", "the jobs wait in the queue"),
    "work": Verb("work:work", "the job at hand goes to another worker"),
    "comfy": Verb(
        "comfy:comfy", "nothing was printed; nodes may be half copied, and the same command copies them anew"
    ),
}


# Flags that were called otherwise before, by verb; their help shows the new names alone.
OLD_FLAGS = dict.fromkeys(("generate", "decode", "info", "inspect", "convert"), {"--lora-alpha": "--sat-lora-alpha"})


# Where the actions of verbs are listed. The first one needs no name: `cogvx prepare x/` is `cogvx prepare films x/`.
ACTIONS = {"prepare": "cogvx_jax.cli.prepare:ACTIONS"}


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
        names = [verb for verb in sys.argv[1:2] if verb in VERBS] or list(VERBS)  # of one alone, only its file is read
        tyro.extras.subcommand_cli_from_dict(
            {name: VERBS[name].run for name in names},
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
    place = ACTIONS.get(arguments[0] if arguments else "")
    names = [] if place is None else list(pkgutil.resolve_name(place))
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
