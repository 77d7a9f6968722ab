"""Which errors are the user's or the machine's, and the sentence that the command says about each."""

import os
import sys

BACKEND = "Unable to initialize backend", "Unknown backend"
MEMORY = (
    "try a smaller --size or fewer --frames, --dtype bfloat16, --tiling to decode in tiles, or more devices by --mesh"
)
# Packages that reach a hub or a bucket: a connection or credentials that fail are no OSError in all of them.
NETWORK = ("aiohttp", "botocore", "gcsfs", "google", "httpx", "huggingface_hub")


def sentence(error: BaseException) -> str | None:
    """What is wrong and what would be right; None for an error of this program, which needs its traceback."""
    if isinstance(error, MemoryError):
        return f"this host has too little memory{_after(': ', str(error))}; {MEMORY}"
    text = str(error)
    if _of_jax(error) and "RESOURCE_EXHAUSTED" in text:
        return f"the devices have too little memory: {_first_line(text)}; {MEMORY}"
    if of_another_process(error):
        return f"another process of this run has ended, or can't be reached; see its own messages ({_first_line(text)})"
    if (backend := _missing_backend(error)) is not None:
        return f"JAX finds no such device here: {backend}; set JAX_PLATFORMS to one that is, such as cpu, or unset it"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, OverflowError):
        return f"a number is too large: {text}"
    if isinstance(error, (ValueError, OSError)):
        return text
    if type(error).__module__.partition(".")[0] in NETWORK:
        return f"{type(error).__name__}: {_first_line(text)}"
    return None


def of_another_process(error: BaseException) -> bool:
    """Whether a transfer between the processes of a run has failed. Some versions of jax raise ValueError for that."""
    if not (_of_jax(error) or isinstance(error, ValueError)):
        return False
    return any(word in str(error) for word in ("Gloo ", "NCCL ", "coordination service"))


def _of_jax(error: BaseException) -> bool:
    """Whether XLA raised it; known by its name, so that nothing needs to import jax."""
    return any(kind.__name__ in ("JaxRuntimeError", "XlaRuntimeError") for kind in type(error).__mro__)


def _missing_backend(error: BaseException) -> str | None:
    """What jax says of a platform that is not there, as of the one that JAX_PLATFORMS names."""
    if isinstance(error, RuntimeError) and str(error).startswith(BACKEND):
        return str(error).partition(" (set JAX_PLATFORMS=")[0].rstrip(".")
    if type(error) is AssertionError and not str(error) and "jax" in sys.modules:
        try:
            sys.modules["jax"].devices()
        except AssertionError:  # so jax fails where a package is missing, as for JAX_PLATFORMS=cuda
            return f"the package for {os.environ.get('JAX_PLATFORMS')} is not installed"
        except RuntimeError:
            pass
    return None


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].rstrip(". ")


def _after(mark: str, text: str) -> str:
    return f"{mark}{text}" if text else ""
