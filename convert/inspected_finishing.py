"""What `cogvx inspect` tells of networks that finish videos: Real-ESRGAN's and RIFE's, in files of all kinds."""

from cogvx_jax.convert.commands import command, path_word
from cogvx_jax.convert.containers import find_reader, open_tensors
from cogvx_jax.convert.errors import ConversionError
from cogvx_jax.convert.file_kinds import Asked, Facts
from cogvx_jax.convert.finishing import find_network, holds_network
from cogvx_jax.convert.inspected_models import numbers
from cogvx_jax.models.rife import RIFE
from cogvx_jax.models.upscalers import CompactUpscaler, DenseUpscaler, Upscaler
from cogvx_jax.storage import open_files, parent_and_name

SMOOTH = "32"  # frames a second of the command that interpolates


def is_network(asked: Asked) -> bool:
    """Whether a file holds such a network."""
    try:
        return not asked.is_folder and holds_network(open_tensors(asked.place))
    except (ValueError, OSError):  # what is wrong is said by the kind that it may be of
        return False


def tell_network(asked: Asked) -> Facts:
    """Raises: ValueError for what is said of a model, which this is not."""
    if asked.given:
        raise ValueError(f"{asked.given.said()[0]} tells about a model, and {asked.place} holds none; leave it out")
    (parent, name), tensors = parent_and_name(asked.place), open_tensors(asked.place)
    facts: Facts = {"format": find_reader(open_files(parent), name).name}
    facts |= numbers({"": tensors})
    try:
        network = find_network(tensors)
    except ConversionError as error:
        return facts | {"holds": "a network that finishes videos, which does not open", "lacks": error.problems[0]}
    return facts | {"holds": _words(network), "use": [command("finish", "VIDEO", *_flags(network, asked))]}


def _words(network: Upscaler | RIFE) -> str:
    if isinstance(network, RIFE):
        return f"RIFE HDv3 of width {network.width}, which finds frames in between"
    if isinstance(network, CompactUpscaler):
        sizes = f"compact network, {network.layers} layers of width {network.width}"
    else:
        assert isinstance(network, DenseUpscaler)
        sizes = f"network of {network.blocks} dense blocks of width {network.width}"
    return f"Real-ESRGAN's {sizes}, which makes pictures {network.factor} times as large"


def _flags(network: Upscaler | RIFE, asked: Asked) -> list[str]:
    if isinstance(network, RIFE):
        return ["--fps", SMOOTH, "--interpolator", path_word(asked.place), "--out", "smoother.mp4"]
    return ["--scale", str(network.factor), "--upscaler", path_word(asked.place), "--out", "larger.mp4"]
