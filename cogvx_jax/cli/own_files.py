"""What the verbs themselves write, for `cogvx inspect`: a row of `OWN` for each kind of file or folder."""

import contextlib
from pathlib import Path

from cogvx_jax.convert.commands import MODELS, PROMPT, command, model_word, new_name, path_word, published_word
from cogvx_jax.convert.file_kinds import Asked, Facts, FileKind
from cogvx_jax.convert.runs import is_cogvideo2022_run, is_run, newest_update, read_run, run_verb, trained_part
from cogvx_jax.convert.safetensors import read_header
from cogvx_jax.data.comments import FIRST
from cogvx_jax.data.writer import FORMATS
from cogvx_jax.json_files import printable, quoted
from cogvx_jax.pipelines import saved_latents, saved_steps
from cogvx_jax.pipelines.calibration import read_calibration
from cogvx_jax.pipelines.record import read_record
from cogvx_jax.pipelines.stored_programs import MANIFEST, read_manifest
from cogvx_jax.presets import SHIPPED
from cogvx_jax.storage import BUCKETS, StoragePath, open_files, storage_path
from cogvx_jax.train.clips.cache import is_cache, open_cache


def _folder(asked: Asked) -> StoragePath | None:
    """A folder as those who write runs and caches have it; None for a file, or the URL of what is not written to."""
    scheme, is_url, _ = str(asked.place).partition("://")
    if is_url and scheme not in BUCKETS:
        return None
    return storage_path(asked.place) if asked.is_folder else None


# Runs.


def _is_run(asked: Asked) -> bool:
    return (folder := _folder(asked)) is not None and is_run(folder)


def _tell_run(asked: Asked) -> Facts:
    folder = storage_path(asked.place)
    if is_cogvideo2022_run(folder):
        return _tell_cogvideo2022_run(asked, folder)
    said = read_run(folder, ("source", "name"))
    verb = run_verb(said)
    part = "vae" if verb == "train-vae" else trained_part(read_run(folder))
    kind = {"vae": "the VAE", "lora": "a LoRA", "controlnet": "a ControlNet", "parts": "the transformer"}[part]
    facts: Facts = {"format": f"a run of `cogvx {verb}`", "holds": f"{kind} of {said['name']}"}
    updates = newest_update(folder)
    facts["updates"] = str(updates)
    run, config = path_word(asked.place), str(folder / "run.json")
    if not updates:
        facts["mind"] = "it has no checkpoint yet"
        return facts | {"use": [command(verb, "--config", path_word(config), "--out", run)]}
    if part in ("vae", "parts"):
        return facts | {"use": [command("export", run, "--out", new_name(asked.place, "-model"))]}
    flags = ["--lora", run] if part == "lora" else ["--controlnet", run, "--control", "CONTROL.mp4"]
    made = command("generate", PROMPT, "--model", _source_word(str(said["source"])), *flags)
    out = new_name(asked.place, ".safetensors" if part == "lora" else "-controlnet")
    return facts | {"use": [made, command("export", run, "--out", out)]}


def _tell_cogvideo2022_run(asked: Asked, folder: StoragePath) -> Facts:
    said = read_run(folder, ("source", "channel"))
    run, updates = path_word(asked.place), newest_update(folder)
    facts: Facts = {
        "format": "a run of `cogvx train`",
        "holds": f"the {said['channel']} channel of CogVideo (2022), from {said['source']}",
        "updates": str(updates),
    }
    if not updates:
        return facts | {"mind": "it has no checkpoint yet"}
    return facts | {"use": [command("export", run, "--out", new_name(asked.place, "-model"))]}


def _source_word(source: str) -> str:
    """What a run or latents were made from, where a model is asked for; MODEL where that is gone."""
    if source.lower() in MODELS or "://" in source:
        return source
    if Path(source).exists():
        return model_word(source)
    return "MODEL" if source.startswith(("/", ".")) or source.count("/") != 1 else source


def _model_word(name: str) -> str:
    """How a command calls the model of a spec's name; "MODEL" for one that is not known by it."""
    return name if name in SHIPPED else published_word(name) or "MODEL"


# Encoded clips.


def _is_cache(asked: Asked) -> bool:
    return (folder := _folder(asked)) is not None and is_cache(folder)


def _tell_cache(asked: Asked) -> Facts:
    cache, folder = open_cache(storage_path(asked.place)), path_word(asked.place)
    shape = cache.shape
    model = _model_word(cache.model)
    train = ["--data", folder, "--model", model, "--out", new_name(asked.place, "", "runs/")]
    train += ["--controlnet", "new"] if cache.controls else []
    frames = f"{shape.frames} frames at {shape.fps:g} fps" + (", with control videos" if cache.controls else "")
    return {
        "format": "clips of `cogvx encode`",
        "clips": f"{len(cache.clips)} of {shape.height}x{shape.width}, {frames}",
        "model": f"encoded by {cache.model}",
        "use": [command("train", *train), command("verify", folder)],
    }


# Compiled programs.


def _is_programs(asked: Asked) -> bool:
    return isinstance(asked.place, Path) and (asked.place / MANIFEST).is_file()  # they run from this machine alone


def _tell_programs(asked: Asked) -> Facts:
    manifest = read_manifest(Path(asked.place))
    made_for, request = manifest["made_for"], manifest.get("request")
    request = request if isinstance(request, dict) else {}
    name, _, how = made_for.get("model", "").partition(" in ")
    model = _model_word(name)
    words = ["--model", model, "--programs", path_word(asked.place), "--dtype", how.partition(",")[0]]
    size, frames = request.get("size"), request.get("frames")
    if isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in (*size, frames)):
        words += ["--size", f"{size[0]}x{size[1]}", "--frames", str(frames)]
    for option, value, usual in (
        ("--mesh", made_for.get("mesh"), "one device"),
        ("--quantize", made_for.get("quantization"), "none"),
        ("--memory", request.get("memory"), "resident"),
        ("--windows", request.get("windows"), None),
    ):
        words += [option, value] if isinstance(value, str) and value != usual else []
    if type(steps := request.get("steps in one program")) is int:
        words += ["--one-program", "--steps", str(steps)]
    return {
        "format": "programs of `cogvx compile`; they are code: use those only that you trust",
        "programs": ", ".join(dict.fromkeys(entry["name"] for entry in manifest["programs"])),
        "made for": [f"{key}: {quoted(value)}" for key, value in made_for.items() if len(value) < 100],
        "use": [command("generate", PROMPT, *words)],
    }


# Calibrations.


def _is_calibration(asked: Asked) -> bool:
    if not isinstance(asked.place, Path) or asked.is_folder or asked.place.suffix != ".json":
        return False
    with contextlib.suppress(ValueError, OSError):
        return bool(read_calibration(asked.place.parent, asked.place.name).ratios)
    return False


def _tell_calibration(asked: Asked) -> Facts:
    place = Path(asked.place)
    found, word = read_calibration(place.parent, place.name), path_word(asked.place)
    use = ["--model", _model_word(found.model), "--reuse", "magcache", "--calibration", word]
    return {
        "format": "how blocks change from step to step, by `cogvx calibrate`",
        "model": printable(found.model),
        "steps": str(len(found.ratios)),
        "use": [command("generate", PROMPT, *use)],
    }


# Sampled latents.


def _is_latents(asked: Asked) -> bool:
    return _format_of(asked) == saved_latents.FORMAT


def _format_of(asked: Asked) -> str | None:
    """What a safetensors file of ours says that it is; None of others."""
    if not isinstance(asked.place, Path) or asked.is_folder or asked.place.suffix != ".safetensors":
        return None
    with contextlib.suppress(ValueError):
        return read_header(open_files(asked.place.parent), asked.place.name).metadata.get("format")
    return None


def _tell_latents(asked: Asked) -> Facts:
    saved = saved_latents.read_latents(Path(asked.place))
    _, frames, height, width, channels = saved.latents.shape
    use = ["decode", path_word(asked.place), "--out", new_name(asked.place, ".mp4")]
    if (model := _source_word(saved.model)) == "MODEL":
        use += ["--model", model]
    return {
        "format": "latents that `cogvx generate` kept, for `cogvx decode`",
        "latents": f"{frames - saved.padding} frames of {height}x{width}, {channels} channels, {saved.fps:g} fps",
        "model": printable(saved.model),
        "prompt": printable(saved.prompt),
        "use": [command(*use)],
    }


# Steps of a video that is not sampled to its end.


def _is_steps(asked: Asked) -> bool:
    return _format_of(asked) == saved_steps.FORMAT


def _tell_steps(asked: Asked) -> Facts:
    saved = saved_steps.read_steps(Path(asked.place))
    facts = dict(saved.identity.facts)
    return {
        "format": "steps that `cogvx generate` kept; the command that began them, once more, goes on",
        "steps": f"{saved.steps} of {saved.count}",
        "prompt": quoted(facts.pop("prompt", "")),
        "made with": [f"{key}: {quoted(value)}" for key, value in facts.items() if len(value) < 100],
    }


# Videos.

RECORDED = (".png", *FORMATS)  # endings of files that may carry a record


def _is_recorded(asked: Asked) -> bool:
    if not isinstance(asked.place, Path):
        return False
    if not ((asked.place / FIRST).is_file() if asked.is_folder else asked.place.suffix.lower() in RECORDED):
        return False
    with contextlib.suppress(ValueError, OSError):
        return bool(read_record(asked.place).id)
    return False


def _tell_recorded(asked: Asked) -> Facts:
    record, word = read_record(Path(asked.place)), path_word(asked.place)
    return {
        "format": "a video that tells how it was made",
        "model": printable(record.model["name"]),
        "prompt": printable(record.prompt),
        "use": [command("show", word), command("replay", word)],
    }


OWN = (  # the first that fits counts
    FileKind(name="a run", fits=_is_run, tell=_tell_run),
    FileKind(name="encoded clips", fits=_is_cache, tell=_tell_cache),
    FileKind(name="compiled programs", fits=_is_programs, tell=_tell_programs),
    FileKind(name="a calibration", fits=_is_calibration, tell=_tell_calibration),
    FileKind(name="sampled latents", fits=_is_latents, tell=_tell_latents),
    FileKind(name="saved steps", fits=_is_steps, tell=_tell_steps),
    FileKind(name="a video", fits=_is_recorded, tell=_tell_recorded),
)
