"""The command `cogvx`: its verbs, and how errors become a sentence and an exit status."""

import sys
import warnings

import tyro

from cogvx_jax.cli.compile import compile_
from cogvx_jax.cli.convert import convert
from cogvx_jax.cli.decode import decode
from cogvx_jax.cli.encode import encode
from cogvx_jax.cli.export import export
from cogvx_jax.cli.generate import generate
from cogvx_jax.cli.info import info
from cogvx_jax.cli.plan import plan
from cogvx_jax.cli.train import train
from cogvx_jax.cli.train_vae import train_vae
from cogvx_jax.cli.verify import verify


def main() -> None:
    """Runs the command line; an error in the input is one sentence on stderr and exit status 2."""
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # of jax; the forks become ffmpeg at once
    warnings.showwarning = lambda message, *_: print(f"cogvx: warning: {message}", file=sys.stderr)
    try:
        tyro.extras.subcommand_cli_from_dict(
            {
                "generate": generate,
                "decode": decode,
                "info": info,
                "plan": plan,
                "compile": compile_,
                "convert": convert,
                "verify": verify,
                "encode": encode,
                "train": train,
                "train-vae": train_vae,
                "export": export,
            },
            prog="cogvx",
            description="CogVideoX in JAX and Flax.",
        )
    except (ValueError, OSError) as error:
        print(f"cogvx: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("cogvx: interrupted; no video was written", file=sys.stderr)
        sys.exit(130)
