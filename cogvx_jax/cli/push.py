"""The verb `cogvx push`."""

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cogvx_jax.cli.model_card import OWN, SAMPLES, WEIGHTS, Base, Card, find_base
from cogvx_jax.json_files import printable

if TYPE_CHECKING:
    from cogvx_jax.configs import ModelSpec
    from cogvx_jax.models.lora import LoRA

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.

REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
CARD = "README.md"


def push(
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")],
    repo: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OWNER/NAME")],
    /,
    *,
    base: str | None = None,
    sample: tyro.conf.UseAppendAction[tuple[Path, ...]] = (),
    trigger: str | None = None,
    private: bool = False,
    message: str = "Uploaded by cogvx push",
    yes: bool = False,
) -> None:
    """Publishes a LoRA or a model on the Hugging Face hub, with a page, a gallery and the licence of its base.

    Without --yes nothing is sent: what would be is printed.

    Args:
      source: a run of `cogvx train` that trained a LoRA, a LoRA file of any maker, or a model's folder, such as of
        `cogvx export` or `convert`.
      repo: where it goes; it is made where it is not there.
      base: the published model that it is of, such as 5b; None is what the source tells.
      sample: a video of `cogvx generate` for the gallery, whose record has its prompt; may be given several times.
      trigger: a word that prompts need.
      private: make a repository that others do not see.
      message: of the commit.
      yes: send it.
    """
    if not REPO.fullmatch(repo):
        raise ValueError(f"the hub's repository is OWNER/NAME, such as me/panda-lora, got {repo!r}")
    gallery = [(f"{SAMPLES}/{i}{file.suffix.lower()}", file, _prompt(file)) for i, file in enumerate(sample)]
    if yes:
        _check_login()
    from cogvx_jax.temporaries import temporary_folder

    with temporary_folder() as hidden:
        folder = hidden / "repository"
        folder.mkdir()
        content = _stage(source, base, folder)
        for place, file, _ in gallery:
            (folder / place).parent.mkdir(exist_ok=True)
            (folder / place).symlink_to(file.absolute())
        samples = tuple((place, prompt) for place, _, prompt in gallery)
        card = dataclasses.replace(content, repo=repo, trigger=trigger, samples=samples)
        (folder / CARD).unlink(missing_ok=True)
        (folder / CARD).write_text(card.text(), encoding="utf-8")
        if not yes:
            _show(folder, repo)
            return
        print(_send(folder, repo, private, message))


def _prompt(file: Path) -> str:
    """The prompt of a sample. Raises: ValueError for what carries none, or is no file that pages show."""
    if file.suffix.lower() not in (".mp4", ".webm", ".gif", ".webp"):
        raise ValueError(f"{file} is no sample: give an .mp4, .webm, .gif or .webp file")
    from cogvx_jax.pipelines.record import read_record

    return read_record(file).prompt


def _check_login() -> None:
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise ValueError("nobody is logged in to the hub: run `hf auth login`, or set HF_TOKEN")


def _stage(source: str, base: str | None, folder: Path) -> Card:
    """Puts what is published into a folder; gives what its page says of it. Raises: ValueError; OSError."""
    from cogvx_jax.convert.runs import check_trains, find_run, is_vae_run, read_run

    if (run := find_run(source)) is not None:
        if is_vae_run(run):
            raise ValueError(f"{source} trained a VAE; write that by `cogvx export`, and push its folder")
        check_trains(run, read_run(run), "lora")
        return _stage_run(source, base, folder)
    if (Path(source) / "model_index.json").is_file():
        return _stage_model(Path(source), base, folder)
    return _stage_lora(source, base, folder)


def _stage_run(source: str, base: str | None, folder: Path) -> Card:
    from cogvx_jax.convert import write_lora
    from cogvx_jax.convert.runs import find_run, newest_update, read_run_lora, run_source
    from cogvx_jax.pipelines.model import load_spec

    run = find_run(source)
    assert run is not None
    spec = load_spec(run_source(run))
    found = find_base(base or _named(run_source(run), spec))
    lora = read_run_lora(run, spec)
    write_lora(folder / WEIGHTS, lora, spec)
    facts = [_rank(lora), f"{newest_update(run):,} updates of `cogvx train`"]
    return _card("adapter", spec, found, facts)


def _stage_lora(source: str, base: str | None, folder: Path) -> Card:
    from cogvx_jax.convert import convert_lora, open_lora
    from cogvx_jax.convert.lora_models import BASE_KEYS, fits, misfit
    from cogvx_jax.pipelines.model import load_spec

    file = open_lora(source)
    told = base or next((said for key in BASE_KEYS if (said := file.said.get(key, file.metadata.get(key)))), None)
    if not isinstance(told, str):  # a guess by shapes is no licence
        raise ValueError(f"{source} does not tell which model it is of; give --base, one of {', '.join(fits(file))}")
    found = find_base(told)
    spec = load_spec(found.hub or OWN)
    if (why := misfit(file, spec)) is not None:
        raise ValueError(f"{source} cannot be of {spec.name}: {why}")
    convert_lora(folder / WEIGHTS, file)
    return _card("adapter", spec, found, [f"rank {file.ranks_text()}, alpha {file.alphas_text()}"])


def _stage_model(source: Path, base: str | None, folder: Path) -> Card:
    from cogvx_jax.pipelines.model import load_spec

    spec = load_spec(str(source))
    found = find_base(base or spec.name)
    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        if path.is_file() and not any(part.startswith(".") for part in inside.parts):
            (folder / inside).parent.mkdir(parents=True, exist_ok=True)
            (folder / inside).symlink_to(path.absolute())
    return _card("finetune", spec, found, [])


def _card(part, spec: "ModelSpec", base: Base, facts: list[str]) -> Card:
    return Card(repo="", part=part, kind=spec.kind, base=base, facts=tuple(facts))


def _rank(lora: "LoRA") -> str:
    return f"rank {lora.rank}, alpha {lora.alpha:g}"


def _named(source: str, spec: "ModelSpec") -> str:
    """What a run was made from; of a folder its model's name."""
    return spec.name if os.path.exists(source) else source


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            yield str(path.relative_to(folder)), path.stat().st_size


def _show(folder: Path, repo: str) -> None:
    print(f"https://huggingface.co/{repo} would get")
    for name, size in _files(folder):
        print(f"  {name}, {size / 1e6:.2f} MB")
    print("\nREADME.md:\n")
    for line in (folder / CARD).read_text(encoding="utf-8").splitlines():
        print(printable(line))
    print("\nNothing was sent; --yes sends it.")


def _send(folder: Path, repo: str, private: bool, message: str) -> str:
    """Gives the address. Raises: OSError where the hub refuses or cannot be reached."""
    import huggingface_hub

    try:
        api = huggingface_hub.HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        huggingface_hub.ModelCard.load(folder / CARD).validate()
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message))
    except Exception as error:  # the hub's client raises many kinds, httpx's among them
        said = f"{type(error).__name__}: {' '.join(str(error)[:300].split())}"
        raise OSError(f"the hub did not take {repo} ({said}); check name, rights and connection") from error
