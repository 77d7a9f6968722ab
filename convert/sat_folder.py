"""Where SAT and DeepSpeed keep what they save, and the float32 masters of ZeRO's first two stages.

`<folder>/latest` names a tag; `<folder>/<tag>/mp_rank_00_model_states.pt` holds the weights in 16 bit. Beside it,
`zero_pp_rank_<R>_mp_rank_00_optim_states.pt` hold the optimizer's share of each process R, with its part of the
weights in float32: of each group one row of numbers, all parameters of the group after each other.

Source: DeepSpeed, `deepspeed/utils/zero_to_fp32.py`.
"""

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cogvx_jax.convert.tensors import Entry, Joined, Reshaped, Tensors
from cogvx_jax.convert.torch_files import TorchArchive, read_torch
from cogvx_jax.json_files import quoted
from cogvx_jax.storage import Files, below, open_files, parent_and_name

LATEST, STATES = "latest", "mp_rank_00_model_states.pt"
RANK = re.compile(r"mp_rank_(\d{2,5})_model_states\.pt")
STAGE_3 = re.compile(r"(z3_rank_\d+|zero_pp_rank_\d+_mp_rank_\d+)_model_states\.pt")
SHARD = re.compile(r"(?:bf16_)?zero_pp_rank_(\d{1,5})_mp_rank_00_optim_states\.pt")
MAX_TAG = 200  # bytes of the file `latest`
MAX_TAGS, MAX_SHOWN = 200, 10  # names that are looked into, each of which is a request to a bucket; tags in a message
PARALLEL = "model-parallel ranks that a model is split over; merge them with SAT's own tool first"
LATER = "convert it on the machine that trained, with DeepSpeed's zero_to_fp32.py"


def has_states(place: str | Path) -> bool:
    """Whether a folder is one that SAT or DeepSpeed saves to, or of one tag in it."""
    files = open_files(place)
    return files.exists(LATEST) or files.exists(STATES) or bool(find_tags(place))


def find_tags(place: str | Path) -> list[str]:
    """The folders in a folder that hold SAT's weights; each was saved under its name, a tag."""
    files = open_files(place)
    names = files.names()[:MAX_TAGS] if files.is_folder() else []
    return [name for name in names if files.exists(f"{name}/{STATES}")]


def find_transformers(place: str | Path) -> list[str]:
    """The folders in a folder in which SAT saved a transformer, such as 1.5's transformer_t2v and transformer_i2v."""
    files = open_files(place)
    names = [name for name in files.names() if name.startswith("transformer")] if files.is_folder() else []
    return [name for name in names[:MAX_TAGS] if has_states(below(place, name))]


def find_states(place: str | Path) -> str | Path:
    """The file of weights in a folder that SAT or DeepSpeed saves to, or in a tag's folder.

    Raises: FileNotFoundError; ValueError, one sentence, for weights that are spread over several files.
    """
    files = open_files(place)
    if files.exists(STATES):
        check_rank(below(place, STATES))
        return below(place, STATES)
    names = files.names() if files.is_folder() else []
    for name in names:
        check_rank(below(place, name))
    tags = find_tags(place)
    if not files.exists(LATEST):
        if len(tags) == 1:
            return find_states(below(place, tags[0]))
        if tags:
            raise FileNotFoundError(
                f"{place} has the tags {_listed(tags)} and no {LATEST}, which says the tag to use; give the folder of "
                f"one, such as {below(place, tags[0])}"
            )
        raise FileNotFoundError(
            f"{place} has neither {LATEST} nor {STATES}; there is {', '.join(names[:5]) or 'nothing'}"
        )
    tag = _tag(files)
    if not open_files(below(place, tag)).is_folder():
        raise FileNotFoundError(
            f"{below(place, LATEST)} names {quoted(tag)}, which is not there; give one of the folders in {place}: "
            f"{_listed(tags) or 'there is none'}"
        )
    if open_files(below(place, tag)).exists(LATEST):
        raise ValueError(f"{below(place, tag)} has a {LATEST} of its own, where SAT has the weights")
    return find_states(below(place, tag))


def check_rank(file: str | Path) -> None:
    """Raises ValueError, one sentence, for a file that by its name, or by those beside it, is a part of a model."""
    folder, name = parent_and_name(file)
    if STAGE_3.fullmatch(name):
        raise ValueError(f"{file} was saved by ZeRO's third stage, which is not read; {LATER}")
    rank = RANK.fullmatch(name)
    if rank is None:
        return
    ranks = [name]
    with contextlib.suppress(OSError):  # of a server that lists no files
        ranks = [other for other in open_files(folder).names() if RANK.fullmatch(other)]
    if int(rank[1]) or len(ranks) > 1:
        raise ValueError(f"{file} is one of {max(len(ranks), int(rank[1]) + 1)} {PARALLEL}")


def check_share(tensors: Tensors) -> None:
    """Raises ValueError, one sentence, for published tensors of which a model-parallel rank has a share.

    Of attention, a rank has all features of some heads.
    """
    query, out = (tensors.get(f"transformer_blocks.0.attn1.{name}.weight") for name in ("to_q", "to_out.0"))
    if query is None or out is None or len(query.shape) != 2 or query.shape != out.shape[::-1]:
        return
    share, width = query.shape
    if 0 < share < width and width % share == 0:
        raise ValueError(f"{tensors.where} is one of {width // share} {PARALLEL}")


def _listed(tags: list[str]) -> str:
    return ", ".join([*tags[:MAX_SHOWN], *(["..."] if len(tags) > MAX_SHOWN else [])])


def _tag(files: Files) -> str:
    try:
        tag = files.bytes(LATEST, MAX_TAG).decode(errors="replace").strip()
    except ValueError as error:
        raise ValueError(f"{files.where}/{LATEST} names no tag: {error}") from None
    if not re.fullmatch(r"[\w-][\w.-]*", tag, re.ASCII):
        raise ValueError(f"{files.where}/{LATEST} names no tag but {quoted(tag)}")
    return tag


def read_masters(states: str | Path) -> Tensors:
    """The weights of a file of `find_states`, those that were trained in float32 out of the shards beside it.

    Raises: FileNotFoundError where there are no shards; ValueError, one sentence, for those that do not fit.
    """
    folder, name = parent_and_name(states)
    files = open_files(folder)
    with _named(below(folder, name)):
        whole = read_torch(files, name)
        groups = _shapes(TorchArchive(files, name).load())
    flat = _flat(folder, _shards(files), len(groups))
    found = dict(whole)
    for shapes, numbers in zip(groups, flat, strict=True):
        start = 0
        for key, shape in shapes.items():
            size = math.prod(shape)
            if start + size > numbers.shape[0]:
                raise ValueError(f"{folder}: its shards hold {numbers.shape[0]} numbers, too few for {key}")
            found[key] = Reshaped(numbers.rows(start, start + size), shape)
            start += size
    return whole.of(found)


@contextlib.contextmanager
def _named(file: str | Path) -> Iterator[None]:
    """Inside, an error of a file gets its name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from None


def _shards(files: Files) -> list[str]:
    ranks = {int(match[1]): name for name in files.names() if (match := SHARD.fullmatch(name))}
    if not ranks:
        raise FileNotFoundError(f"{files.where} has no zero_pp_rank_*_optim_states.pt, which hold the masters")
    if missing := set(range(max(ranks) + 1)) - ranks.keys():
        raise ValueError(f"{files.where} lacks the shard of rank {min(missing)}, though it has {ranks[max(ranks)]}")
    return [ranks[rank] for rank in sorted(ranks)]


def _shapes(states: Any) -> list[dict[str, tuple[int, ...]]]:
    """Of the parameters that were trained, in order, for each group of the optimizer."""
    groups = states.get("param_shapes") if isinstance(states, dict) else None
    groups = [groups] if isinstance(groups, dict) else groups
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise ValueError("it has no param_shapes, with which the shards are cut")
    for group in groups:
        for key, shape in group.items():
            sizes = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
            if not isinstance(key, str) or not sizes:
                raise ValueError("its param_shapes are damaged")
    return groups


def _flat(folder: str | Path, shards: list[str], count: int) -> list[Entry]:
    """The numbers of each group, those of all ranks after each other."""
    ranks, files = list[list[Entry]](), open_files(folder)
    for name in shards:
        with _named(below(folder, name)):
            ranks.append(_parts(TorchArchive(files, name), len(shards), count))
    return [Joined.of(parts) for parts in zip(*ranks, strict=True)]


def _parts(shard: TorchArchive, shards: int, count: int) -> list[Entry]:
    """A rank's numbers of each group. Raises: ValueError, without its name, for a shard that does not fit."""
    found = shard.load()
    state = found.get("optimizer_state_dict") if isinstance(found, dict) else None
    if not isinstance(state, dict):
        raise ValueError("it has no optimizer_state_dict")
    parts = state.get("single_partition_of_fp32_groups")
    if parts is None:
        raise ValueError(f"it has no single_partition_of_fp32_groups, as ZeRO's third stage; {LATER}")
    world = state.get("partition_count", shards)
    world = max(world, default=0) if isinstance(world, list) and all(type(n) is int for n in world) else world
    if world != shards:
        raise ValueError(f"it is one of {quoted(world)} shards, of which {shards} are there")
    if not isinstance(parts, list) or len(parts) != count:
        raise ValueError(f"it has not the masters of {count} groups")
    entries = shard.entries({str(i): part for i, part in enumerate(parts)})
    if [len(entry.shape) for entry in entries.values()] != [1] * count:
        raise ValueError("it has masters that are no rows of numbers")
    return [entries[str(i)] for i in range(count)]
