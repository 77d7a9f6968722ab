"""The layouts in which captioned videos lie: lists, tables, the authors' folders, webdataset tars, other trainers'."""

import functools
import glob
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cogvx_jax.data.clips import PICTURES, VIDEOS, Source
from cogvx_jax.data.manifests import COLUMNS, OPTIONAL, find, read_csv, read_json, read_jsonl, scores
from cogvx_jax.data.tars import File, read_samples
from cogvx_jax.data.text_lines import parse_json, read_lines, read_text, refuse

LAYOUTS = (
    "a .jsonl, .json or .csv file with video and prompt (image and control if there are any), or a folder with such a "
    "metadata.jsonl, .json or .csv; a folder with prompts.txt and videos.txt (images.txt, controls.txt); a folder with "
    "videos/NAME.mp4 and labels/NAME.txt (controls/NAME.mp4); a folder with NAME.mp4 and NAME.txt or NAME.json "
    "(NAME.control.mp4); .tar files of such, their folder or a pattern such as 'data-{000..009}.tar'"
)
CONTROL = ".control"  # behind the name of a sample, before the suffix of its control video
SHOWN = VIDEOS | PICTURES
NO_CAPTION = "samples have no caption: a line in NAME.txt, or caption or prompt in NAME.json"
MAX_TARS = 100_000  # that one pattern may name
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def read_sources(path: Path) -> list[Source]:
    """The videos that `path` lists, with their prompts and, where given, images and controls; `LAYOUTS` are known.

    Names of files are relative to the list they stand in. Of a caption in a file of its own, in folders and tars, only
    the first line counts, as for the authors. The prompts of tables count whole. Letters with accents are found
    however the file system composes them. No video is opened.

    Raises: FileNotFoundError; ValueError, one sentence, for a path of none or of several layouts, and for
      whatever is missing from it, with the first such thing and how many there are.
    """
    known: dict[str, Callable[[Path], list[Source]]] = {
        ".jsonl": read_jsonl,
        ".json": read_json,
        ".csv": read_csv,
        ".tar": _tars,
    }
    if path.is_dir():
        sources = _folder(path)
    elif path.is_file():
        if path.suffix.lower() not in known:
            raise ValueError(f"{path} is none of the layouts known: {LAYOUTS}")
        sources = known[path.suffix.lower()](path)
    elif path.exists():
        raise ValueError(f"{path} is neither a file nor a folder; give {LAYOUTS}")
    elif tars := _matches(path):
        sources = _tars(*tars)
    else:
        raise FileNotFoundError(f"there is no {str(path)!r}; give {LAYOUTS}")
    if not sources:
        raise ValueError(f"{path} lists no videos; it can be {LAYOUTS}")
    for kind in ("video", "image", "control"):
        files = list(dict.fromkeys(file for s in sources if isinstance(file := getattr(s, kind), Path)))
        gone = [file for file in files if not file.is_file()]
        refuse(path, gone, len(files), f"{kind}s are not there", FileNotFoundError)
    return sources


def _folder(folder: Path) -> list[Source]:
    tars = sorted(folder.glob("*.tar"))
    tables = {"metadata.jsonl": read_jsonl, "metadata.json": read_json, "metadata.csv": read_csv}
    found: dict[str, Callable[[], list[Source]]] = {}
    if any((folder / name).exists() for name in ("prompts.txt", "prompt.txt", "videos.txt")):
        found["lists of lines"] = lambda: _lists(folder)
    if (folder / "labels").is_dir():
        found["labels/"] = lambda: _labels(folder)
    if tars:
        found[".tar files"] = lambda: _tars(*tars)
    if not found:  # beside one of these they may lie and mean something else
        found = {
            name: functools.partial(read, folder / name) for name, read in tables.items() if (folder / name).is_file()
        }
    samples = {} if found else _beside(folder)
    if any(_media(files) and files.keys() & {"txt", "json"} for files in samples.values()):
        found["captions"] = lambda: _sources(folder, samples)
    if len(found) != 1:
        what = f"has {' and '.join(found)}; keep one of" if found else "has none of the layouts known:"
        raise ValueError(f"{folder} {what} {LAYOUTS}")
    return next(iter(found.values()))()


def _lists(folder: Path) -> list[Source]:
    """The layout of the authors' diffusers trainer, whose first data sets called prompts.txt prompt.txt.

    That trainer also puts an image of images.txt in front of the clip, as a frame more; here it is the condition only.
    """
    names = {"prompts.txt": "prompts", "videos.txt": "videos"}
    if not (folder / "prompts.txt").exists() and (folder / "prompt.txt").exists():
        names = {"prompt.txt": "prompts", "videos.txt": "videos"}
    names |= {f"{kind}s.txt": f"{kind}s" for kind in OPTIONAL if (folder / f"{kind}s.txt").exists()}
    columns = []
    for name in names:
        file = folder / name
        if not file.exists():
            raise FileNotFoundError(f"{folder} has no {name}; its lines belong to those of {' and '.join(names)}")
        lines = [line.strip() for line in read_lines(file)]
        refuse(file, [f"line {n}" for n, line in enumerate(lines, 1) if not line], len(lines), "lines are empty")
        columns.append(lines)
    if len({len(lines) for lines in columns}) > 1:
        counts = ", ".join(f"{len(lines)} {what}" for lines, what in zip(columns, names.values(), strict=True))
        raise ValueError(f"{folder} has {counts}; their lines belong together")
    kinds, found = [name.removesuffix("s.txt") for name in list(names)[2:]], list[Source]()
    for prompt, video, *others in zip(*columns, strict=True):
        beside: dict[str, Any] = {kind: find(folder, other) for kind, other in zip(kinds, others, strict=True)}
        found.append(Source(find(folder, video), prompt, **beside))
    return found


def _labels(folder: Path) -> list[Source]:
    """The layout of SAT: videos/ and labels/ with the same names, in folders or not; controls/ as videos/."""
    if not (folder / "videos").is_dir():
        raise FileNotFoundError(f"{folder} has labels/ but no videos/; their files belong together by name")
    videos, labels = _stems(folder / "videos", VIDEOS | PICTURES), _stems(folder / "labels", {".txt"})
    single = [str(name) for name in videos if name not in labels]
    refuse(folder, single, len(videos), "videos have no file of their name in labels/")
    single = [str(name) for name in labels if name not in videos]
    refuse(folder, single, len(labels), "labels have no file of their name in videos/")
    prompts = {name: _caption(read_text(label)) for name, label in labels.items()}
    refuse(folder, [f"{labels[n]}" for n, prompt in prompts.items() if not prompt], len(labels), "labels are empty")
    if not (folder / "controls").is_dir():
        return [Source(video, prompts[name]) for name, video in videos.items()]
    controls = _stems(folder / "controls", VIDEOS | PICTURES)
    single = [str(name) for name in videos if name not in controls]
    refuse(folder, single, len(videos), "videos have no file of their name in controls/")
    return [Source(video, prompts[name], control=controls[name]) for name, video in videos.items()]


def _stems(folder: Path, suffixes: set[str]) -> dict[str, Path]:
    """The files below a folder, by their paths in it without the suffix, accents composed."""
    files = [f for f in sorted(folder.rglob("*")) if f.suffix.lower() in suffixes and not f.name.startswith(".")]
    names = [_composed(file.relative_to(folder).with_suffix("")) for file in files]
    found = dict(zip(names, files, strict=True))
    twice = [str(file) for name, file in zip(names, files, strict=True) if found[name] != file]
    refuse(folder, twice, len(files), "files share their name with another")
    return found


def _composed(name: object) -> str:
    return unicodedata.normalize("NFC", str(name))


def _beside(folder: Path) -> dict[str, dict[str, File]]:
    """The samples in a folder, not below it: by path without the suffix, each with its files by suffix."""
    found: dict[str, dict[str, File]] = {}
    for file in sorted(folder.iterdir()):
        suffix = file.suffix.lower()
        if suffix in VIDEOS | PICTURES | {".txt", ".json"} and not file.name.startswith("."):
            stem, control = file.stem.removesuffix(CONTROL), CONTROL if file.stem.endswith(CONTROL) else ""
            found.setdefault(str(folder / _composed(stem)), {})[f"{control}{suffix}"[1:]] = file
    return found


def _tars(*tars: Path) -> list[Source]:
    """The layout of webdataset: the names of one tar may come again in another."""
    samples = {f"{tar}/{name}": files for tar in tars for name, files in read_samples(tar).items()}
    return _sources(tars[0] if len(tars) == 1 else tars[0].parent, samples)


def _sources(where: Path, samples: Mapping[str, Mapping[str, File]]) -> list[Source]:
    """Of samples by name, each with its files by suffix: a video, or a picture alone, and its caption."""
    media = {name: _media(files) for name, files in samples.items()}
    refuse(where, [name for name, found in media.items() if not found], len(samples), "samples have no video")
    kinds = {name: [s in VIDEOS for s in found] for name, found in media.items()}
    several = [name for name, videos in kinds.items() if videos.count(True) > 1 or videos.count(False) > 1]
    refuse(where, several, len(samples), "samples have several videos or several pictures")
    prompts = {name: _sample_caption(files) for name, files in samples.items()}
    silent = [name for name, prompt in prompts.items() if not prompt]
    refuse(where, silent, len(samples), NO_CAPTION)
    controls = {name: _control(files) for name, files in samples.items()}
    without = [name for name, control in controls.items() if control is None]
    if len(without) < len(samples):
        refuse(where, without, len(samples), "samples have no control video, though others do")
    sources = []
    for name, found in media.items():
        video = next((file for suffix, file in found.items() if suffix in VIDEOS), None)
        picture = next((file for suffix, file in found.items() if suffix in PICTURES), None)
        shown, image = (video, picture) if video is not None else (picture, None)
        assert shown is not None
        sources.append(Source(shown, prompts[name], image, controls[name], _sample_scores(samples[name])))
    return sources


def _media(files: Mapping[str, File]) -> dict[str, File]:
    """The video and pictures of a sample."""
    return {f".{suffix}": file for suffix, file in files.items() if f".{suffix}" in VIDEOS | PICTURES}


def _control(files: Mapping[str, File]) -> File | None:
    """The control video of a sample, or its picture."""
    return next((file for suffix, file in files.items() if f".{suffix}" in {f"{CONTROL}{s}" for s in SHOWN}), None)


def _sample_caption(files: Mapping[str, File]) -> str:
    if "txt" in files:
        return _caption(read_text(files["txt"]))
    if "json" not in files:
        return ""
    facts = parse_json(read_text(files["json"]), files["json"])
    said = facts.get("caption") or facts.get("prompt") if isinstance(facts, dict) else None
    return said.strip() if isinstance(said, str) else ""


def _sample_scores(files: Mapping[str, File]) -> dict[str, Any]:
    """What a NAME.json has beside the caption."""
    facts = parse_json(read_text(files["json"]), files["json"]) if "json" in files else {}
    own = (*COLUMNS["prompt"], *COLUMNS["video"])
    return scores({k: v for k, v in facts.items() if k not in own}) if isinstance(facts, dict) else {}


def _caption(text: str) -> str:
    return text.strip().partition("\n")[0].strip()


def _matches(pattern: Path) -> list[Path]:
    """The tars of a pattern: *, ? and [] as in a shell, and {000..009} as webdataset has it."""
    if pattern.suffix.lower() != ".tar":
        return []
    _check_ranges(pattern)
    tars: list[Path] = []
    gone, count = [], 0
    for name in _expand(str(pattern)):
        found, count = sorted(glob.glob(name)), count + 1
        tars += map(Path, found)
        gone += [] if found else [name]
    if tars:
        refuse(pattern, gone, count, "tars are not there", FileNotFoundError)
    return tars


def _expand(pattern: str) -> Iterator[str]:
    span = RANGE.search(pattern)
    if span is None:
        yield pattern
        return
    first, last = span.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expand(f"{pattern[: span.start()]}{number:0{len(first)}}{pattern[span.end() :]}")


def _check_ranges(pattern: Path) -> None:
    """Raises ValueError for ranges that count down or name too many files, before any of them is looked for."""
    ranges = RANGE.findall(str(pattern))
    counts = [int(last) - int(first) + 1 for first, last in ranges]
    if any(count < 1 for count in counts):
        raise ValueError(f"{pattern} has a range that counts down; write the smaller number first, as in {{000..009}}")
    if math.prod(counts) > MAX_TARS:
        raise ValueError(f"{pattern} names {math.prod(counts):,} files; {MAX_TARS:,} are the most that a pattern may")
