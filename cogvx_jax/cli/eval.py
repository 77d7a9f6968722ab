"""`cogvx eval`: prompts of public boards, whether their videos are there, scores, totals and comparisons."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from cogvx_jax.cli.actions import one_of
from cogvx_jax.cli.options import report
from cogvx_jax.cli.score_tables import doubt, print_checked, print_compared, print_scores, print_total
from cogvx_jax.evaluation.boards import BOARDS, BoardName, read_entries
from cogvx_jax.evaluation.checking import Expected, check_folder
from cogvx_jax.evaluation.encoders import Encoders
from cogvx_jax.evaluation.samples import all_samples, choose, read_longer, read_samples
from cogvx_jax.evaluation.totals import dimensions, guess_board, totals
from cogvx_jax.storage import check_place, write_whole

# Imports that take seconds, of jax, come inside: the arguments are checked first.

JOBS = Path("jobs.jsonl")
Folder = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
AsJson = Annotated[bool, tyro.conf.arg(name="json")]


class EncoderFlags(Encoders):
    def __post_init__(self) -> None:
        pass

    def checked(self) -> Encoders:
        found = Encoders(**vars(self))
        found.check()
        return found


def prepare(
    board: Annotated[tyro.conf.Positional[BoardName], tyro.conf.arg(metavar="BOARD")],
    /,
    *,
    out: Path = JOBS,
    info: Path | None = None,
    longer: Path | None = None,
    originals: Path | None = None,
    images: Path | None = None,
    dimension: tuple[str, ...] = (),
    limit: int | None = None,
    repeats: int | None = None,
    seed: int = 0,
) -> None:
    """Writes the prompts file of a board, a line for each video, which `cogvx batch` and `generate` take.

    The videos get the names that the board's own tools look for, and each has a seed of its own.

    Args:
      board: vbench, vbench-i2v or vbench2.
      out: the prompts file.
      info: the board's file of prompts, such as VBench_full_info.json; None is that of its installed package.
      longer: a text file of what is sampled in place of the prompts, such as all_dimension_longer.txt; the names stay.
      originals: the prompts that these are of, line by line; None means that lines are as the board's prompts are.
      images: the folder of the board's pictures, for image to video.
      dimension: only the prompts of these dimensions.
      limit: only so many prompts of each dimension, the first ones.
      repeats: only so many videos of each prompt, the first ones.
      seed: of the board's first video; each next has one more. A part of a board has the seeds of the whole.
    """
    entries = read_entries(BOARDS[board], info)
    if originals is not None and longer is None:
        raise ValueError("--originals says which prompts --longer is of; give both")
    texts = None if longer is None else read_longer(entries, longer, originals)
    samples, shared = all_samples(BOARDS[board], entries, seed=seed, longer=texts, images=images)
    chosen = choose(samples, dimension, limit, repeats)
    there = {sample.prompt for sample in chosen}
    for one in shared:
        if one.prompt in there:
            report(f"{board}: {one.told()}")
    write_whole(out, "".join(f"{sample.line()}\n" for sample in chosen).encode())
    prompts = len({(one.prompt, one.dimensions) for one in chosen})
    seeds = [one.seed for one in chosen]
    print(f"{out}: {len(chosen)} videos of {prompts} prompts of {board}, seeds {min(seeds)} to {max(seeds)}")


def check(
    folder: Folder,
    /,
    *,
    jobs: Path = JOBS,
    expected: Annotated[Expected, tyro.conf.OmitArgPrefixes] = Expected(),  # noqa: B008
    as_json: AsJson = False,
) -> None:
    """Looks for the videos of a prompts file: missing, extra, unreadable, of another length, rate or size.

    The exit status is 2 where the folder is not complete.

    Args:
      folder: with the videos, as of `cogvx batch --out`.
      jobs: the prompts file of `cogvx eval prepare`.
      as_json: print JSON, with all names.
    """
    samples = read_samples(jobs)
    from tqdm.auto import tqdm

    with tqdm(total=len(samples), unit="video", desc="check", disable=None) as bar:
        found = check_folder(folder, samples, expected, bar.update)
    if as_json:
        print(json.dumps(found.facts(), indent=2, ensure_ascii=False))
    else:
        print_checked(found)
    if not found.complete:
        raise ValueError(
            f"{folder} is not complete: {found.asked} are asked for, {len(found.missing)} missing, "
            f"{len(found.unreadable)} unreadable, {len(found.odd)} unlike the others; "
            f"`cogvx batch {jobs} --out {folder}` makes what is missing or damaged"
        )
    print(f"{folder}: all {found.asked} videos are there and whole, {len(found.extra)} extra")


def run(
    folder: Folder,
    /,
    *,
    jobs: Path = JOBS,
    custom: bool = False,
    out: Path = Path("scores.json"),
    only: tuple[str, ...] = (),
    reference: Path | None = None,
    lpips: Path | None = None,
    static: Path | None = None,
    progress: bool = True,
    features: Annotated[EncoderFlags, tyro.conf.OmitArgPrefixes] = EncoderFlags(),  # noqa: B008
) -> None:
    """Scores a folder of videos by all that can be computed here, and says what the rest needs.

    The file of scores is that of VBench's tools. Scores of single videos are kept in the folder, in cogvx-eval.jsonl.

    Args:
      folder: with the videos.
      jobs: the prompts file of `cogvx eval prepare`, which says what each video counts for.
      custom: the videos are no board's: each counts for every measure, and its prompt is its name.
      out: the file of scores.
      only: names of measures; none is all.
      reference: a folder with videos of the same names, for PSNR, SSIM, LPIPS and VMAF; for the Fréchet distance and
        MMD all of its videos count.
      lpips: a file of its weights.
      static: the file that VBench's own static filter wrote, which says of which videos the flickering is.
      progress: show a progress bar.
    """
    if not custom and not jobs.exists():
        raise FileNotFoundError(f"there is no file {jobs}; give --jobs, or --custom where the videos are no board's")
    encoders, samples = features.checked(), None if custom else read_samples(jobs)
    for place in (reference, lpips, static):
        if place is not None:
            check_place(place)
    from tqdm.auto import tqdm

    from cogvx_jax.evaluation.folders import find_videos
    from cogvx_jax.evaluation.run import read_static
    from cogvx_jax.evaluation.run import run as score
    from cogvx_jax.evaluation.scores import write_scores
    from cogvx_jax.evaluation.setup import Setup

    setup = Setup(
        encoders=encoders,
        references={} if reference is None else find_videos(reference),
        lpips=lpips,
        static=None if static is None else read_static(static),
    )
    with tqdm(unit="score", disable=not progress) as bar:

        def show(measure: str, video: str) -> None:
            bar.set_description(measure, refresh=False)
            bar.update()

        found = score(folder, samples, setup, only, show)
    if found.scores:
        write_scores(out, found.scores)
    print_scores(found)
    failed = {name for names in found.failed.values() for name in names}
    if failed:
        first, said = next(iter(next(iter(found.failed.values())).items()))
        raise ValueError(f"{len(failed)} videos could not be scored and count nowhere, the first is {first!r}: {said}")
    if not found.scores:
        raise ValueError("nothing was computed, so no file was written")
    print(f"{out}: {len(found.scores)} measures")


def total(
    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="SCORES.json")],
    /,
    *,
    board: BoardName | None = None,
    as_json: AsJson = False,
) -> None:
    """Computes a board's total of files of scores, ours or those of VBench's tools, beside published ones.

    Args:
      files: files of scores, or folders of them; VBench's tools write one a dimension.
      board: whose total; None is the board that most dimensions are of.
      as_json: print JSON.
    """
    from cogvx_jax.evaluation.scores import read_all

    if not files:
        raise ValueError("there is nothing to total; give files of scores")
    found = read_all(files)
    name = board or guess_board(list(found))
    scores = {dimension: found[dimension].value for dimension in dimensions(name) if dimension in found}
    if (large := next((one for one, value in scores.items() if not -1 <= value <= 1), None)) is not None:
        raise ValueError(f"{large} is {scores[large]:g}; scores are fractions of 1, so divide percentages by 100")
    doubt(found, name)
    proxies = [one for one, score in found.items() if score.about.get("kind") in ("proxy", "features")]
    try:
        whole = totals(name, scores)
    except ValueError as error:
        more = f"; {', '.join(proxies)} are no scores of the board" if proxies else ""
        raise ValueError(f"{error}{more}") from None
    if as_json:
        print(json.dumps({"board": name, "scores": scores, **whole}, indent=2))
        return
    print_total(name, scores, whole)


def compare(
    first: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="A.json")],
    second: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="B.json")],
    /,
    *,
    as_json: AsJson = False,
) -> None:
    """Compares two files of scores, B with A, with intervals of 95% by drawing prompts that both have.

    Args:
      first: a file of scores.
      second: another one.
      as_json: print JSON.
    """
    from cogvx_jax.evaluation.compare import compare_scores
    from cogvx_jax.evaluation.scores import read_scores

    found = compare_scores(read_scores(first), read_scores(second))
    if as_json:
        print(json.dumps({name: vars(one) | {"says": one.word()} for name, one in found.items()}, indent=2))
        return
    print_compared(found)


ACTIONS: Mapping[str, Callable[..., None]] = {
    "prepare": prepare,
    "check": check,
    "run": run,
    "total": total,
    "compare": compare,
}


def eval_(action: Any) -> None:
    """Judges videos: prompts of public boards, whether their videos are there, scores, totals, comparisons."""
    action()


eval_.__annotations__["action"] = one_of(ACTIONS)
