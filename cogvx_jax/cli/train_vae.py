"""`cogvx train-vae`: trains a VAE."""

import dataclasses
from pathlib import Path
from typing import Any

from cogvx_jax.cli.options import DType, FolderText, MeshText, Size, parse_size, report
from cogvx_jax.cli.settings import NAMES, verb
from cogvx_jax.storage import storage_path
from cogvx_jax.train.fields import part_of, read_fields
from cogvx_jax.train.pace import Pace
from cogvx_jax.train.vae.settings import VAERunConfig, VAEStageSettings
from cogvx_jax.train.vae.stages import VAEStage, read_vae_stages, vae_stage

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainVAEOptions:
    """Of `cogvx train-vae`. Raises: ValueError for options that cannot go together."""

    # the run.json of a run to repeat: it has the data, the model and all settings. Flags beside it override them;
    # --out must be given
    config: FolderText | None = None
    data: Path | None = None  # as for `train`; captions are not used
    # a TOML file with a [[stage]] for each of several stages: any of data, steps, height, width, frames, fps,
    # batch_size, learning_rate and warmup; what it does not say is as below
    stages: Path | None = None
    out: FolderText  # the run's folder, or the URL of one in a bucket
    model: str = "tiny"  # as for `generate`; only its VAE is loaded
    stage: VAEStageSettings = VAEStageSettings()  # The length and the pace of learning, and the clips
    # a file with the weights of LPIPS; None leaves the term out. cogvx_jax/convert/lpips.py has the command that
    # writes it
    lpips: Path | None = None
    run: VAERunConfig = VAERunConfig()  # What is trained, and how
    size: Size = None  # height and width of the clips in pixels; None is 256x256, or the model's own if smaller
    pace: Pace = Pace()  # What is said and kept on the way
    remat: bool = False  # compute each frame batch anew in the backward pass, which saves memory
    mesh: MeshText = None  # as for `train`
    distributed: bool = False  # as for `train`; each process reads whole batches
    dtype: DType | None = None  # to compute in; the parameters are kept in float32

    recorded: tuple[VAEStage, ...] = ()  # stages of the run in `config`

    def __post_init__(self):
        if self.data is None and self.stages is None and not self.recorded:
            raise ValueError("give --data, or --stages with a file that names the data of each stage")
        if self.distributed and self.mesh is None:
            raise ValueError("--distributed needs --mesh: without one, every process would train on its own")

    @property
    def trained(self) -> VAERunConfig:
        """The settings of the run; without a file of LPIPS, that term has no weight."""
        if self.lpips is not None:
            return self.run
        return dataclasses.replace(self.run, objective=dataclasses.replace(self.run.objective, lpips=0.0))

    def read_stages(self) -> tuple[VAEStage, ...]:
        settings, (height, width) = self.stage, parse_size(self.size)
        if height is not None:
            settings = dataclasses.replace(settings, height=height, width=width)
        if self.stages is not None:
            return read_vae_stages(self.stages, settings, self.data)
        if self.data is not None:
            return (vae_stage(self.data, settings),)
        if len(self.recorded) == 1:
            return (vae_stage(self.recorded[0].data, settings),)
        if settings != part_of(self.recorded[-1], VAEStageSettings):
            raise ValueError(f"{self.config} has {len(self.recorded)} stages; give --stages with a file to change them")
        return self.recorded


NAMES[TrainVAEOptions] = {"recorded": None}


def recorded(config: str) -> TrainVAEOptions:
    """The options that the run.json of a run stands for. Raises: as `train.recorded`."""
    from cogvx_jax.convert.runs import read_record
    from cogvx_jax.train.vae.run import KEYS

    said = read_record(storage_path(config), {*KEYS, "stages"})
    try:
        stages = tuple(
            VAEStage(data=Path(stage["folder"]), **read_fields(VAEStageSettings, stage)) for stage in said["stages"]
        )
        run, command = VAERunConfig(**read_fields(VAERunConfig, said)), said.get("command", {})
        own: dict[str, Any] = read_fields(TrainVAEOptions, {**command, "dtype": said["dtype"]})
        pace = Pace(**read_fields(Pace, command))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{config} cannot be repeated: {error}") from None
    own |= {
        "model": str(said["source"]),
        "stage": part_of(stages[-1], VAEStageSettings),
        "recorded": stages,
        "config": config,
    }
    return TrainVAEOptions(**own | {"out": "", "run": run, "pace": pace})


@verb(TrainVAEOptions, recorded)
def train_vae(options: TrainVAEOptions) -> None:
    """Trains a model's VAE on random clips of videos; a run that was stopped goes on.

    Unless --decoder-only, the latents become others: a transformer must then be trained on them. It goes on from its
    newest checkpoint, on any mesh. SIGTERM saves one and ends with status 0. `cogvx export` makes a model of it.
    """
    from cogvx_jax.data.layouts import read_sources
    from cogvx_jax.pipelines.model import absolute_source, check_trainable, load, load_quantization
    from cogvx_jax.sharding import first_process, initialize, parse_mesh
    from cogvx_jax.storage import check_folder_writable
    from cogvx_jax.train.checkpoint import newest_update
    from cogvx_jax.train.curve import check_tensorboard
    from cogvx_jax.train.placement import check_batch
    from cogvx_jax.train.run_folder import check_folder, check_free, ends, reached
    from cogvx_jax.train.vae import run

    folder = storage_path(options.out)
    if options.pace.tensorboard:
        check_tensorboard(folder)
    if options.distributed:
        initialize(preemptible=True)
    check_trainable(options.model, load_quantization(options.model))
    stages, devices = options.read_stages(), None if options.mesh is None else parse_mesh(options.mesh)
    for stage in stages:
        check_batch(devices, stage.batch_size)
    check_folder(folder, "vae")
    check_free(folder)
    check_folder_writable(folder)
    sources = [read_sources(stage.data) for stage in stages]
    for each in sources:
        run.split_videos(each, options.run.validation)
    loaded = load(options.model, dtype=options.dtype, mesh=devices, components=("vae",))
    before = newest_update(folder)
    about: dict[str, Any] = {"lpips": options.lpips, "remat": options.remat, "pace": options.pace}
    about |= {"source": absolute_source(options.model), "command": _command(options), "report": report}
    run.train_vae(loaded, stages, sources, options.trained, folder, **about)
    if first_process():
        said = reached(before, ends(stages)[-1])
        print(f"{options.out}: {said}; `cogvx export {options.out} --out FOLDER` makes a model of it")


def _command(options: TrainVAEOptions) -> dict[str, Any]:
    """The options that change no number of a run, for --config, and the file of LPIPS."""
    lpips = None if options.lpips is None else str(options.lpips.absolute())
    return {"lpips": lpips, "remat": options.remat, "mesh": options.mesh, "distributed": options.distributed}
