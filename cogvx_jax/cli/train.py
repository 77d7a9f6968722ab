"""`cogvx train`: trains a LoRA, all of a transformer or parts of it, or a ControlNet beside it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cogvx_jax.cli.encode import clip_shape, encode_clips, find_clips
from cogvx_jax.cli.options import DType, FolderText, MeshText, Size
from cogvx_jax.cli.prompts_file import read_jobs
from cogvx_jax.cli.settings import NAMES, verb
from cogvx_jax.cli.train_cogvideo2022 import train_cogvideo2022
from cogvx_jax.configs import LoRAConfig, Remat
from cogvx_jax.storage import StoragePath, is_bucket, storage_path
from cogvx_jax.train.cogvideo2022.settings import ChannelTraining
from cogvx_jax.train.fields import part_of, read_fields
from cogvx_jax.train.pace import Pace
from cogvx_jax.train.transformer.settings import ControlNetTraining, RunConfig, StageSettings
from cogvx_jax.train.transformer.stages import Stage, read_stages

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.
EVERYTHING = ("*",)  # patterns of `--train full`


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Of `cogvx train`. Raises: ValueError for options that cannot go together."""

    # the run.json of a run to repeat: it has the data, the model and all settings. Flags beside it override them;
    # --out must be given
    config: FolderText | None = None
    data: FolderText | None = None  # as for `encode`, or a folder that `encode` has filled, which may lie in a bucket
    # instead of `data`, a TOML file with a [[stage]] for each of several stages: its data, one folder of `encode` or a
    # table of several and their weights, and any of steps, batch_size, accumulate, learning_rate, schedule, warmup,
    # pack and where; what it does not say is as below
    stages: Path | None = None
    # the run's folder, or the URL of one in a bucket. Videos are encoded to its folder "cache", if `data` lists any
    out: FolderText
    model: str = "tiny"  # as for `generate`
    train: Literal["lora", "full"] = "lora"  # a LoRA, or all of the transformer's parameters
    # trains only those parameters whose paths match one of these, such as "blocks/attention/*"
    parts: tuple[str, ...] = ()
    lora: LoRAConfig = LoRAConfig()  # What a LoRA adapts
    controlnet: ControlNetTraining = ControlNetTraining()  # A ControlNet, in place of a LoRA
    cogvideo2022: ChannelTraining = ChannelTraining()  # Of CogVideo (2022)
    stage: StageSettings = StageSettings()  # The length and the pace of learning
    run: RunConfig = RunConfig()  # What is trained, and how
    size: Size = None  # as for `encode`
    frames: int | None = None  # as for `encode`
    pace: Pace = Pace()  # What is said and kept on the way
    # a file of prompts, as `generate --prompts-file` takes it, whose videos the moving average makes on the way, to the
    # folder "videos" of the run; unless a line says otherwise, of the size of the last stage's clips and with seed 0.
    # Beside a ControlNet each line names its control video
    prompts: Path | None = None
    video_every: int = 1000  # updates between them
    # what the backward pass computes anew, which saves memory: "none"; norms, activations and gates, which is cheap
    # ("products"); whole blocks, a quarter more work ("block"), whose inputs may wait on the host ("offload"). None is
    # "products" on CPU, else "block"
    remat: Remat | None = None
    mesh: MeshText = None  # the devices to use and how, such as data=2,fsdp=2; see `cogvx_jax.make_mesh`. None is one
    # this is one of several processes that run the same command, as for `generate`. They share one mesh, the folder of
    # the run and that of the encoded clips
    distributed: bool = False
    dtype: DType | None = None  # to compute in

    recorded: tuple[Stage, ...] = ()  # stages of the run in `config`

    def __post_init__(self):
        if self.train == "full" and self.parts:
            raise ValueError("--train full trains everything; leave it out to train --parts")
        if self.controlnet.start is None and self.controlnet.layers is not None:
            raise ValueError("--controlnet-layers is for a new ControlNet; give --controlnet new, too")
        adapts = self.lora != LoRAConfig() and not self.recorded  # that of a record is what another run trained
        if self.controlnet.start is not None and (self.train == "full" or self.parts or adapts):
            raise ValueError(
                "a ControlNet is trained beside a model that stays as it is; leave out --train, --parts and what a "
                "LoRA adapts"
            )
        if (self.train == "full" or self.parts) and adapts:
            raise ValueError(
                "--train full and --parts train the model's own parameters; leave them out, or what a LoRA adapts"
            )
        if self.video_every < 1:
            raise ValueError(f"video_every must be at least 1, got {self.video_every}")
        if self.data is not None and self.stages is not None or not (self.data or self.stages or self.recorded):
            raise ValueError("give --data, or --stages with a file that names the data of each stage")
        if self.distributed and self.mesh is None:
            raise ValueError("--distributed needs --mesh: without one, every process would train on its own")
        if self.unencoded is None and (self.size is not None or self.frames is not None):
            raise ValueError(
                f"{self.data or self.stages or self.config} is encoded already; size and frames are those of "
                "`cogvx encode`"
            )
        if self.unencoded is not None and self.distributed:
            raise ValueError(f"--distributed needs clips that are encoded: run `cogvx encode --data {self.data}` first")

    @property
    def trained(self) -> RunConfig:
        """The settings of the run, with what it trains."""
        if self.controlnet.start is not None:
            return dataclasses.replace(self.run, lora=None, parts=(), controlnet=self.controlnet)
        if self.train == "lora" and not self.parts:
            return dataclasses.replace(self.run, lora=self.lora, parts=())
        return dataclasses.replace(self.run, lora=None, parts=self.parts or EVERYTHING)

    @property
    def unencoded(self) -> Path | None:
        """Videos that are to be encoded first."""
        from cogvx_jax.train.clips.cache import is_cache

        if self.data is None or is_cache(storage_path(self.data)):
            return None
        if is_bucket(storage_path(self.data)):
            raise ValueError(f"{self.data} holds no clips of `cogvx encode`; videos themselves must lie on a disk")
        return Path(self.data)

    def sampled(self, spec: Any) -> Any:
        """The spec whose steps, sampler and guidance scale are those of the videos on the way."""
        return spec

    def use(self) -> str:
        """How to use what was trained, for people."""
        if self.trained.controlnet is not None:
            return f"`cogvx generate --controlnet {self.out} --control VIDEO` uses it"
        if self.trained.lora is None:
            return f"`cogvx export {self.out} --out FOLDER` makes a model of it"
        return f"`cogvx generate --lora {self.out}` uses it"

    def read_stages(self) -> tuple[Stage, ...]:
        if self.stages is not None:
            return read_stages(self.stages, self.stage)
        if self.data is not None:
            cache = storage_path(self.out) / "cache" if self.unencoded is not None else storage_path(self.data)
            return (_stage_of(((cache, 1),), self.stage),)
        if len(self.recorded) == 1:
            return (_stage_of(self.recorded[0].data, self.stage),)
        if self.stage != part_of(self.recorded[-1], StageSettings):
            raise ValueError(f"{self.config} has {len(self.recorded)} stages; give --stages with a file to change them")
        return self.recorded


NAMES[TrainOptions] = {"recorded": None}


def _stage_of(data: tuple[tuple[StoragePath, int], ...], settings: StageSettings) -> Stage:
    return Stage(data=data, **dataclasses.asdict(settings))


def recorded(config: str) -> TrainOptions:
    """The options that the run.json of a run stands for, in which nothing is written yet; as `recorded_options`."""
    run, own = recorded_options(config, "train")
    return TrainOptions(**own | {"run": run})


def recorded_options(config: str, verb: str) -> tuple[RunConfig, dict[str, Any]]:
    """What the run.json of a run says: its settings, and the other options of `verb`, in which nothing is written yet.

    Raises: FileNotFoundError; ValueError for a file that is no record of that verb, or that says not where its clips
      lie.
    """
    from cogvx_jax.convert.runs import KEYS, read_record

    if read_record(storage_path(config), ()).get("trains") == "cogvideo2022":
        raise ValueError(f"{config} is of a CogVideo (2022), which --config does not repeat; give the options again")
    said = read_record(storage_path(config), {*KEYS, "stages"})
    try:
        stages = tuple(_recorded_stage(stage) for stage in said["stages"])
        if not stages:
            raise ValueError("it has no stage")
        run = RunConfig(**read_fields(RunConfig, said))
        own: dict[str, Any] = read_fields(TrainOptions, {**said.get("command", {}), "dtype": said.get("dtype")})
        pace = Pace(**read_fields(Pace, said.get("command", {})))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{config} cannot be repeated: {error}") from None
    made_by = "train" if run.distill is None else "distill"
    if verb != made_by:
        raise ValueError(f"{config} is of a run of `cogvx {made_by}`; repeat it with that")
    if run.controlnet is not None:
        own["controlnet"] = run.controlnet
    elif run.lora is None:
        own |= {"train": "full"} if run.parts == EVERYTHING else {"parts": run.parts}
    else:
        own["lora"] = run.lora
    own |= {"model": str(said["source"]), "stage": part_of(stages[-1], StageSettings), "recorded": stages}
    return run, own | {"config": config, "out": "", "pace": pace}


def _recorded_stage(said: Mapping[str, Any]) -> Stage:
    if any("folder" not in of for of in said["data"]):
        raise ValueError("it is of a version that did not note where the clips lie")
    data = tuple((storage_path(of["folder"]), of["weight"]) for of in said["data"])
    return Stage(data=data, **read_fields(StageSettings, said))


@verb(TrainOptions, recorded)
def train(options: TrainOptions) -> None:
    """Trains a LoRA of a model's transformer, all of it, or parts, or a ControlNet; a run that was stopped goes on.

    It goes on from its newest checkpoint, on any mesh. SIGTERM saves one and ends with status 0. Of a CogVideo (2022) a
    temporal channel is trained.
    """
    from cogvx_jax.convert.cogvideo2022_folder import is_cogvideo2022

    if is_cogvideo2022(options.model):
        train_cogvideo2022(options)
        return
    if options.cogvideo2022 != ChannelTraining():
        raise ValueError(f"{options.model} is no CogVideo (2022), whose channels are trained; leave out --channel")
    run_training(options)


def run_training(options: TrainOptions) -> None:
    """What `train` and `distill` do."""
    from cogvx_jax.pipelines.model import absolute_source, check_trainable, load_quantization, load_spec
    from cogvx_jax.sharding import first_process, initialize, parse_mesh
    from cogvx_jax.train.checkpoint import newest_update
    from cogvx_jax.train.curve import check_tensorboard
    from cogvx_jax.train.run_folder import ends, reached
    from cogvx_jax.train.transformer import run
    from cogvx_jax.train.transformer.controlnet import complete_controlnet, in_training
    from cogvx_jax.train.transformer.distillation import complete

    folder = storage_path(options.out)
    if options.pace.tensorboard:
        check_tensorboard(folder)
    if options.distributed:
        initialize(preemptible=True)
    check_trainable(options.model, load_quantization(options.model))
    stages, devices = options.read_stages(), None if options.mesh is None else parse_mesh(options.mesh)
    spec = load_spec(options.model)
    options.trained.objective.check(spec)
    _, begins = complete_controlnet(spec, complete(spec, options.trained, stages), stages)
    caches = _check_data(options, stages, devices)
    _check_folder(folder)
    shape = caches[-len(stages[-1].data)].shape if caches else None
    wanted = _videos(options, shape, None if begins is None else in_training(begins.cfg))
    videos = run.Videos(wanted=wanted, every=options.video_every)
    loaded = _load(options, folder, caches, devices, bool(videos.wanted))
    before = newest_update(folder)
    about: dict[str, Any] = {"pace": options.pace, "command": _command(options)}
    source = absolute_source(options.model)
    run.train(loaded, stages, options.trained, folder, source=source, videos=videos, release=True, **about)
    if first_process():
        print(f"{options.out}: {reached(before, ends(stages)[-1])}; {options.use()}")


def _command(options: TrainOptions) -> dict[str, Any]:
    """The options that change no number of a run, for --config."""
    prompts = None if options.prompts is None else str(options.prompts.absolute())
    others = {name: getattr(options, name) for name in ("video_every", "remat", "mesh", "distributed")}
    return {"prompts": prompts, **others}


def _check_data(options: TrainOptions, stages: tuple[Stage, ...], devices: Any) -> list[Any]:
    """The caches of all stages, opened before the weights are read: that finds what is missing from them."""
    from cogvx_jax.train.clips.cache import chosen, is_cache, open_cache
    from cogvx_jax.train.placement import check_batch
    from cogvx_jax.train.transformer.controlnet import check_controls

    caches = []
    for stage in stages:
        check_batch(devices, stage.batch_size, stage.accumulate)
        for clips, _ in stage.data if options.unencoded is None else ():
            if not is_cache(clips):
                raise ValueError(f"{clips} is not encoded; do that with `cogvx encode --data ... --out {clips}`")
            caches.append(open_cache(clips))
            chosen(caches[-1], stage.where)
    if options.trained.controlnet is not None:
        check_controls(caches)
    return caches


def _check_folder(folder: StoragePath) -> None:
    from cogvx_jax.storage import check_folder_writable
    from cogvx_jax.train.run_folder import check_folder, check_free

    check_folder(folder, "transformer")
    check_free(folder)
    check_folder_writable(folder)


def _load(options: TrainOptions, folder: StoragePath, caches: list[Any], devices: Any, has_videos: bool) -> Any:
    """The model with what training needs of it; its clips are encoded."""
    from cogvx_jax.nn.backend import formulations
    from cogvx_jax.pipelines.model import load
    from cogvx_jax.train.clips.batches import ENCODED
    from cogvx_jax.train.clips.encode import check_model

    unencoded = options.unencoded
    to_encode = None if unencoded is None else find_clips(options.model, options.size, options.frames, unencoded)
    if to_encode is not None and options.trained.controlnet is not None and to_encode[0][0].control is None:
        raise ValueError(f"{unencoded} lists no control videos; give each clip one, as docs/training.md says")
    about = {"dtype": options.dtype, "mesh": devices}
    encoders = load(options.model, components=("vae", "text_encoder"), **about)
    if to_encode is not None:
        encode_clips(encoders, to_encode, folder / "cache")
    else:
        check_model(caches, encoders)
    # What training does not need any more leaves its memory to the transformer.
    needed = ("vae",) if encoders.spec.kind in ENCODED else ()
    kept = {name: x for name, x in encoders.params.items() if has_videos or name in needed}
    tokenizer = encoders.tokenizer
    del encoders
    loaded = load(options.model, components=("transformer",), **about)
    compute = dataclasses.replace(loaded.compute, remat=options.remat or formulations().remat)
    return dataclasses.replace(loaded, compute=compute, params=loaded.params | kept, tokenizer=tokenizer)


def _videos(options: TrainOptions, shape: Any, net: Any = None) -> list[Any]:
    """What `generate` is to make on the way, all of it checked.

    Args:
      shape: that of encoded clips, if there are any.
      net: a ControlNet in training, which all of them follow.
    """
    from cogvx_jax.pipelines.model import load_spec
    from cogvx_jax.pipelines.options import Options
    from cogvx_jax.pipelines.request import check_request

    if options.prompts is None:
        return []
    spec, requests = options.sampled(load_spec(options.model)), []
    shape = shape or clip_shape(spec, options.size, options.frames)
    beside: Any = () if net is None else net
    own = Options(size=(shape.height, shape.width), frames=shape.frames, controlnet=beside)
    for job in read_jobs(None, options.prompts, Path("video.mp4"), own):
        with job.named():
            requests.append(check_request(spec, job.prompt, job.options))
    return requests
