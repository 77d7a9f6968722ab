"""Lists of clips in the formats of others: JSON lines, VideoX-Fun's list, parquet, webdataset."""

import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cogvx_jax.prepare.rows import write_rows
from cogvx_jax.storage import write_whole
from cogvx_jax.temporaries import temporary_beside

Sample = dict[str, Any]  # `video`, a path inside the set's folder, `prompt`, and scores
SHARD = 2**30  # bytes of a tar, after which another begins


def write_list(out: Path, samples: Sequence[Sample], folder: Path) -> None:
    """Writes samples of a set by the suffix of `out`. Raises: ValueError for one that is not known; OSError."""
    if out.suffix.lower() not in WRITERS:
        raise ValueError(f"{out} must end in {', '.join(WRITERS)}")
    WRITERS[out.suffix.lower()](out, samples, folder)


def _placed(out: Path, samples: Sequence[Sample], folder: Path) -> list[Sample]:
    """With paths as a list at `out` names them."""
    base = out.absolute().parent
    return [s | {"video": os.path.relpath((folder / s["video"]).absolute(), base)} for s in samples]


def _jsonl(out: Path, samples: Sequence[Sample], folder: Path) -> None:
    write_rows(out, _placed(out, samples, folder))


def _json(out: Path, samples: Sequence[Sample], folder: Path) -> None:
    """As VideoX-Fun has it."""
    rows = [
        {"file_path": s["video"], "text": s["prompt"], "type": "video"}
        | {name: value for name, value in s.items() if name not in ("video", "prompt")}
        for s in _placed(out, samples, folder)
    ]
    write_whole(out, (json.dumps(rows, indent=1) + "\n").encode())


def _parquet(out: Path, samples: Sequence[Sample], folder: Path) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError("parquet needs the package pyarrow: pip install 'cogvx_jax[prepare]'") from None
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(out) as partial:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_placed(out, samples, folder)), partial)


def _tar(out: Path, samples: Sequence[Sample], folder: Path) -> None:
    """Webdataset: NAME.mp4, NAME.txt and NAME.json of each clip; NAME-000001.tar and so on follow a large one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    rest, number = list(samples), 0
    while rest:
        target = out if not number else out.with_name(f"{out.stem}-{number:06d}{out.suffix}")
        with temporary_beside(target) as partial, tarfile.open(partial, "w") as tar:
            while rest and (tar.offset < SHARD):
                sample = rest.pop(0)
                name = Path(sample["video"]).stem
                _put(tar, f"{name}.mp4", (folder / sample["video"]).read_bytes())
                _put(tar, f"{name}.txt", sample["prompt"].encode())
                scores = {key: value for key, value in sample.items() if key != "video"}
                _put(tar, f"{name}.json", json.dumps(scores).encode())
        number += 1


def _put(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # of no time and nobody, so that the same set makes the same bytes
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


WRITERS: Mapping[str, Callable[[Path, Sequence[Sample], Path], None]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
    ".tar": _tar,
}
