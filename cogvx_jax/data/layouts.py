"""The layouts in which captioned videos lie: lists, manifests, the authors' folders, webdataset tars."""

import csv
import glob
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from cogvx_jax.data.clips import PICTURES, VIDEOS, Source
from cogvx_jax.data.tars import Member, open_file, read_samples

LAYOUTS = (
    "a .jsonl or .csv file with video and prompt (image if there is one); a folder with prompts.txt and videos.txt "
    "(images.txt); a folder with videos/NAME.mp4 and labels/NAME.txt; .tar files of NAME.mp4 and NAME.txt or "
    "NAME.json, their folder or a pattern such as 'data-{000..009}.tar'"
)


def read_sources(path: Path) -> list[Source]:
    """The videos that `path` lists, with their prompts and, where given, images; `LAYOUTS` are known.

    Names of files are relative to the list they stand in. Of a label or caption, in folders and tars, the first line
    counts, as for the authors. No video is opened.

    Raises: FileNotFoundError; ValueError, one sentence, for a path of none or of several layouts, and for
      whatever is missing from it, with the first such thing and how many there are.
    """
    if path.is_dir():
        sources = _folder(path)
    elif path.is_file():
        known: dict[str, Callable[[Path], list[Source]]] = {".jsonl": _jsonl, ".csv": _csv, ".tar": _tars}
        if path.suffix.lower() not in known:
            raise ValueError(f"{path} is none of the layouts known: {LAYOUTS}")
        sources = known[path.suffix.lower()](path)
    elif tars := _matches(path):
        sources = _tars(*tars)
    else:
        raise FileNotFoundError(f"there is no {str(path)!r}; give {LAYOUTS}")
    if not sources:
        raise ValueError(f"{path} lists no videos; it can be {LAYOUTS}")
    for kind in ("video", "image"):
        files = list(dict.fromkeys(file for s in sources if isinstance(file := getattr(s, kind), Path)))
        gone = [file for file in files if not file.is_file()]
        _refuse(path, gone, len(files), f"{kind}s are not there", FileNotFoundError)
    return sources


def _folder(folder: Path) -> list[Source]:
    tars = sorted(folder.glob("*.tar"))
    found: dict[str, Callable[[], list[Source]]] = {}
    if any((folder / name).exists() for name in ("prompts.txt", "prompt.txt", "videos.txt")):
        found["lists of lines"] = lambda: _lists(folder)
    if (folder / "labels").is_dir():
        found["labels/"] = lambda: _labels(folder)
    if tars:
        found[".tar files"] = lambda: _tars(*tars)
    if len(found) != 1:
        what = f"has {' and '.join(found)}; keep one of" if found else "has none of the layouts known:"
        raise ValueError(f"{folder} {what} {LAYOUTS}")
    return next(iter(found.values()))()


def _jsonl(path: Path) -> list[Source]:
    rows = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            rows[number] = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
    wrong = [f"line {number}" for number, row in rows.items() if not isinstance(row, dict)]
    _refuse(path, wrong, len(rows), "lines are no JSON objects")
    return _rows(path, rows)


def _csv(path: Path) -> list[Source]:
    reader = csv.DictReader(io.StringIO(_read(path), newline=""), restval="")
    rows = {}
    try:
        for row in reader:
            rows[reader.line_num] = row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} is not CSV: {error}") from None
    lacking = [name for name in ("video", "prompt") if name not in (reader.fieldnames or [])]
    if lacking:
        raise ValueError(
            f"{path} has no column {' and no column '.join(lacking)}, but {', '.join(reader.fieldnames or ['none'])}; "
            "its first line must name the columns"
        )
    return _rows(path, rows)


def _rows(path: Path, rows: Mapping[int, Mapping]) -> list[Source]:
    """Of rows by the line that they stand in."""
    for name in ("video", "prompt"):
        bad = [f"line {n}" for n, row in rows.items() if not isinstance(row.get(name), str) or not row[name].strip()]
        _refuse(path, bad, len(rows), f"lines have no {name}")
    some = [number for number, row in rows.items() if row.get("image")]
    bad = [f"line {number}" for number, row in rows.items() if not row.get("image")]
    _refuse(path, bad if some else [], len(rows), "lines have no image, though others do")
    folder = path.parent
    return [
        Source(folder / row["video"].strip(), row["prompt"].strip(), folder / row["image"].strip() if some else None)
        for row in rows.values()
    ]


def _lists(folder: Path) -> list[Source]:
    """The layout of the authors' diffusers trainer, whose first data sets called prompts.txt prompt.txt.

    That trainer also puts an image of images.txt in front of the clip, as a frame more; here it is the condition only.
    """
    names = {"prompts.txt": "prompts", "videos.txt": "videos"}
    if not (folder / "prompts.txt").exists() and (folder / "prompt.txt").exists():
        names = {"prompt.txt": "prompts", "videos.txt": "videos"}
    if (folder / "images.txt").exists():
        names["images.txt"] = "images"
    columns = []
    for name in names:
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{folder} has no {name}; its lines belong to those of {' and '.join(names)}")
        lines = [line.strip() for line in _lines(file)]
        _refuse(file, [f"line {n}" for n, line in enumerate(lines, 1) if not line], len(lines), "lines are empty")
        columns.append(lines)
    if len({len(lines) for lines in columns}) > 1:
        counts = ", ".join(f"{len(lines)} {what}" for lines, what in zip(columns, names.values(), strict=True))
        raise ValueError(f"{folder} has {counts}; their lines belong together")
    rows = zip(*columns, strict=True)
    return [Source(folder / video, prompt, *(folder / i for i in image)) for prompt, video, *image in rows]


def _labels(folder: Path) -> list[Source]:
    """The layout of SAT: videos/ and labels/ with the same names, in folders or not."""
    if not (folder / "videos").is_dir():
        raise FileNotFoundError(f"{folder} has labels/ but no videos/; their files belong together by name")
    videos, labels = _stems(folder / "videos", VIDEOS | PICTURES), _stems(folder / "labels", {".txt"})
    single = [str(name) for name in videos if name not in labels]
    _refuse(folder, single, len(videos), "videos have no file of their name in labels/")
    single = [str(name) for name in labels if name not in videos]
    _refuse(folder, single, len(labels), "labels have no file of their name in videos/")
    prompts = {name: _caption(_read(label)) for name, label in labels.items()}
    _refuse(folder, [f"{labels[n]}" for n, prompt in prompts.items() if not prompt], len(labels), "labels are empty")
    return [Source(video, prompts[name]) for name, video in videos.items()]


def _stems(folder: Path, suffixes: set[str]) -> dict[Path, Path]:
    """The files below a folder, by their paths in it without the suffix."""
    files = [f for f in sorted(folder.rglob("*")) if f.suffix.lower() in suffixes and not f.name.startswith(".")]
    found = {file.relative_to(folder).with_suffix(""): file for file in files}
    twice = [str(file) for file in files if found[file.relative_to(folder).with_suffix("")] != file]
    _refuse(folder, twice, len(files), "files share their name with another")
    return found


def _tars(*tars: Path) -> list[Source]:
    """The layout of webdataset: the names of one tar may come again in another."""
    sources, silent, alone, count = [], [], [], 0
    for tar in tars:
        for name, files in read_samples(tar).items():
            count += 1
            pictures = [file for suffix, file in files.items() if f".{suffix}" in PICTURES]
            video = next((file for suffix, file in files.items() if f".{suffix}" in VIDEOS), None)
            if video is None and not pictures:
                alone.append(f"{tar}/{name}")
            elif not (prompt := _sample_caption(files)):
                silent.append(f"{tar}/{name}")
            elif video is None:
                sources.append(Source(pictures[0], prompt))
            else:
                sources.append(Source(video, prompt, next(iter(pictures), None)))
    where = tars[0] if len(tars) == 1 else tars[0].parent
    _refuse(where, alone, count, "samples have no video")
    _refuse(where, silent, count, "samples have no caption: a line in NAME.txt, or caption or prompt in NAME.json")
    return sources


def _sample_caption(files: Mapping[str, Member]) -> str:
    if "txt" in files:
        return _caption(_decode(files["txt"], open_file(files["txt"]).read()))
    if "json" not in files:
        return ""
    try:
        facts = json.loads(_decode(files["json"], open_file(files["json"]).read()))
    except json.JSONDecodeError as error:
        raise ValueError(f"{files['json']} is not JSON: {error}") from None
    said = facts.get("caption") or facts.get("prompt") if isinstance(facts, dict) else None
    return said.strip() if isinstance(said, str) else ""


def _caption(text: str) -> str:
    return text.strip().partition("\n")[0].strip()


def _matches(pattern: Path) -> list[Path]:
    """The tars of a pattern: *, ? and [] as in a shell, and {000..009} as webdataset has it."""
    if pattern.suffix.lower() != ".tar":
        return []
    tars: list[Path] = []
    gone, count = [], 0
    for name in _expand(str(pattern)):
        found, count = sorted(glob.glob(name)), count + 1
        tars += map(Path, found)
        gone += [] if found else [name]
    if tars:
        _refuse(pattern, gone, count, "tars are not there", FileNotFoundError)
    return tars


def _expand(pattern: str) -> Iterator[str]:
    span = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if span is None:
        yield pattern
        return
    first, last = span.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expand(f"{pattern[: span.start()]}{number:0{len(first)}}{pattern[span.end() :]}")


def _refuse(where: Path, bad: Sequence[object], total: int, what: str, error: type[Exception] = ValueError) -> None:
    """Raises if anything is bad: of how many what is true, and of which first."""
    if bad:
        raise error(f"{where}: {len(bad)} of {total} {what}, the first is {bad[0]}")


def _lines(path: Path) -> list[str]:
    """Without empty ones at the end. Not `splitlines`, for which U+2028 in a prompt ends a line, too."""
    text = _read(path).rstrip()
    return text.split("\n") if text else []


def _read(path: Path) -> str:
    return _decode(path, path.read_bytes())


def _decode(file: Path | Member, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from None
