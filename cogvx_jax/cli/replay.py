"""The verb `cogvx replay`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cogvx_jax.cli.attempts import Plan
from cogvx_jax.cli.families import family_of
from cogvx_jax.cli.generate import make_videos
from cogvx_jax.cli.options import GenerateFlags, report
from cogvx_jax.cli.prompts_file import Job
from cogvx_jax.given import Given
from cogvx_jax.json_files import printable, quoted
from cogvx_jax.pipelines.option_files import FINGERPRINTED, with_paths
from cogvx_jax.pipelines.options import Options

if TYPE_CHECKING:
    from cogvx_jax.pipelines.record import Record

# Imports that take seconds, of jax and flax, or tenths of one, of av and pillow, come inside.

SHOWN = 6  # differences in a message
ONE_DEVICE = "one device"  # the mesh of a record that has none


def replay(
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="VIDEO")],
    /,
    *,
    out: Path | None = None,
    model: str | None = None,
    anyway: bool = False,
    progress: bool = True,
) -> None:
    """Makes a video again from the record that it carries: the same bytes on the same machine and versions.

    What it was made of is looked for where it was, and beside the video. Other bytes of it, of the model or of a LoRA,
    other versions and another device are refused.

    Args:
      file: a video of `cogvx generate` or of Python, or a folder of PNGs.
      out: as for `generate`; None is NAME-replay beside it.
      model: where its model is now; None is where it was.
      anyway: make it with what is here, whatever differs.
      progress: show a progress bar.
    """
    from cogvx_jax.data.comments import others_of, read_tags
    from cogvx_jax.pipelines.record import differences, read_record

    old = read_record(file)
    _check_replayable(file, old)
    moves, problems = _find_inputs(file, old)
    problems += _compare_early(file, old, model)
    if old.decoded:
        problems.append(f"it was decoded by `cogvx decode` with {', '.join(map(printable, old.decoded))}")
    problems += _compare_finishing(old)
    _settle(file, problems, anyway)
    run = dataclasses.replace(_flags(file, old, model, out), progress=progress)

    def record_as(new: "Record") -> "Record":
        found = differences(old, new)
        _settle(file, [line for line in found if line not in problems], anyway)
        return new if found else dataclasses.replace(old, finished=())

    plan = Plan(record_as=record_as, tags=others_of(read_tags(file)))
    make_videos([_job(file, old, moves, run.out)], run, _given(file, old), plan)


def _settle(file: Path, problems: list[str], anyway: bool) -> None:
    """Reports what differs. Raises: ValueError where that is not allowed."""
    if not problems:
        return
    if anyway:
        for line in problems:
            report(f"{file}: {line}")
        return
    more = [] if len(problems) <= SHOWN else [f"and {len(problems) - SHOWN} more"]
    said = "; ".join([*problems[:SHOWN], *more])
    raise ValueError(f"{file} would come out otherwise: {said}; --anyway makes it with what is here")


def _check_replayable(file: Path, old: "Record") -> None:
    """Raises: ValueError for what nothing can bring back."""
    lost = [one["option"] for one in old.inputs if one["path"] is None]
    lost += ["a LoRA" for lora in old.model["loras"] if lora["source"] is None]
    if lost:
        raise ValueError(f"{file} was made of what only the memory of its process held: {quoted(lost[0])}")
    if old.model["source"] is None:
        raise ValueError(f"{file} was made by parameters that are of no file, such as trained ones; nothing loads them")


def _find_inputs(file: Path, old: "Record") -> tuple[dict[str, str], list[str]]:
    """Where each input is now, by where it was, and what is wrong. Raises: FileNotFoundError for one that is gone."""
    from cogvx_jax.data.comments import file_sha256

    moves, problems = dict[str, str](), list[str]()
    for one in old.inputs:
        was = one["path"]
        if one["option"] in FINGERPRINTED:  # opened and compared with the other parts
            continue
        places = [Path(was), file.absolute().parent / Path(was).name]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"the {one['option']} of {file} is gone: neither {printable(was)} is there, nor a file of that name "
                "beside the video"
            )
        moves[was] = was if found == places[0] else str(found)
        if file_sha256(found) != one["sha256"]:
            problems.append(f"{found} has other bytes now")
    return moves, problems


def _compare_early(file: Path, old: "Record", model: str | None) -> list[str]:
    """What differs of versions, device and the model's files, before anything is loaded."""
    from cogvx_jax.convert.fingerprints import part_fingerprints
    from cogvx_jax.convert.sources import open_source
    from cogvx_jax.pipelines.model import resolve
    from cogvx_jax.pipelines.provenance import device, versions
    from cogvx_jax.pipelines.record import compared

    source, given = model or old.model["source"], _given(file, old)
    family = family_of(source)
    files = family.fingerprints(source) if family else part_fingerprints(open_source(resolve(source), given))
    theirs = {key: value for key, value in old.files.items() if key != "calibration"}
    lines = compared("versions", old.versions, versions()) + compared("files", theirs, files)
    return lines + compared("device", old.device, device(old.device.get("count", 1)))


def _compare_finishing(old: "Record") -> list[str]:
    """What differs of how it was finished: what its option asked for is done again, what `cogvx finish` did is not."""
    from cogvx_jax.finishing.packaged import weights_digest
    from cogvx_jax.pipelines.record import compared

    asked, lines = old.options.get("finish"), list[str]()
    if asked is not None and old.finished:
        options = Options(fps=old.options.get("fps"), finish=asked)
        assert options.fps is not None
        here = {name: weights_digest(path) for name, path in options.finish.weights(options.fps).items()}
        lines = compared("finish", old.finished[0].get("weights", {}), here)
    if len(old.finished) > (asked is not None):
        lines.append("it was finished by `cogvx finish`, which is not done again")
    return lines


def _flags(file: Path, old: "Record", model: str | None, out: Path | None) -> GenerateFlags:
    made = old.model
    return GenerateFlags(
        out=out or file.with_name(f"{file.stem}-replay{file.suffix}"),
        model=model or made["source"],
        lora=tuple(f"{lora['source']}:{lora['weight']!r}" for lora in made["loras"]),
        dtype=made["dtype"],
        quantize=made["quantize"],
        mesh=None if made["mesh"] == ONE_DEVICE else made["mesh"],
        memory=made["memory"],
        one_program=made["one_program"],
        exact=made["exact"],
    )


def _given(file: Path, old: "Record") -> Given:
    return Given(**_known(file, old.model["given"], Given))


def _job(file: Path, old: "Record", moves: Mapping[str, str], out: Path) -> Job:
    options = with_paths(Options(**_known(file, old.options, Options)), lambda path: moves.get(path, path))
    return Job(prompt=old.prompt, out=out, options=options, batch=old.prompts, index=old.index)


def _known(file: Path, values: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """Fields of a dataclass. Raises: ValueError for one that it has not."""
    names = {field.name for field in dataclasses.fields(kind)}
    if spare := sorted(values.keys() - names):
        raise ValueError(f"{file} was made with {quoted(spare[0])}, which is not known here")
    return dict(values)
