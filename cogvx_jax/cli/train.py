"""`cogvx train`: trains a LoRA, all of a transformer or parts of it."""

import sys
from pathlib import Path
from typing import Any, Literal

from cogvx_jax.cli.encode import clip_shape, encode_clips, find_clips
from cogvx_jax.cli.options import DType, FolderText, MeshText, Size
from cogvx_jax.cli.prompts_file import read_jobs
from cogvx_jax.configs import Remat

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


def train(
    *,
    data: FolderText | None = None,
    stages: Path | None = None,
    out: FolderText,
    model: str = "tiny",
    steps: int = 1000,
    train: Literal["lora", "full"] = "lora",
    parts: tuple[str, ...] = (),
    lora_rank: int = 64,
    lora_alpha: float | None = None,
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0"),
    batch_size: int = 4,
    accumulate: int = 1,
    optimizer: Literal["adamw", "adafactor"] = "adamw",
    learning_rate: float | None = None,
    schedule: Literal["constant", "cosine"] = "constant",
    warmup: int = 50,
    weight_decay: float = 1e-4,
    trained_dtype: Literal["float32", "bfloat16"] = "float32",
    average: float = 0.99,
    timesteps: Literal["explicit", "uniform"] = "explicit",
    text_dropout: float = 0.1,
    empty: Literal["encoded", "zeros"] = "encoded",
    image_noise: bool = True,
    image_dropout: float = 0.05,
    noise_offset: float = 0.0,
    size: Size = None,
    frames: int | None = None,
    validation: float = 0.0,
    validate_every: int = 200,
    seed: int = 0,
    save_every: int = 200,
    keep: int = 2,
    log_every: int = 50,
    tensorboard: bool = False,
    prompts: Path | None = None,
    video_every: int = 1000,
    workers: int = 0,
    remat: Remat | None = None,
    mesh: MeshText = None,
    distributed: bool = False,
    dtype: DType | None = None,
) -> None:
    """Trains a LoRA of a model's transformer, all of it, or parts; a run that was stopped goes on.

    It goes on from its newest checkpoint, on any mesh. SIGTERM saves one and ends with status 0.

    Args:
      data: as for `encode`, or a folder that `encode` has filled, which may lie in a bucket.
      stages: instead of `data`, a TOML file with a [[stage]] for each of several stages: its data, one folder of
        `encode` or a table of several and their weights, and any of steps, batch_size, accumulate, learning_rate,
        schedule and warmup; what it does not say is as below.
      out: the run's folder, or the URL of one in a bucket. Videos are encoded to its folder "cache", if `data` lists
        any.
      model: as for `generate`.
      steps: updates, those of an earlier part of the run included; with `stages`, those of a stage.
      train: a LoRA, or all of the transformer's parameters.
      parts: trains only those parameters whose paths match one of these, such as "blocks/attention/*".
      lora_rank: of the adapters.
      lora_alpha: alpha / rank is the factor of the adapters; None is the rank.
      lora_targets: what to adapt: to_q, to_k, to_v, to_out.0, ff.
      batch_size: clips an update.
      accumulate: computes a batch in so many parts, one after the other, which saves memory.
      optimizer: adafactor keeps far less than adamw.
      learning_rate: reached after `warmup` updates; None is 5e-4 for a LoRA, else 1e-5.
      schedule: constant from then on, or a cosine down to 1% at the last of `steps`.
      trained_dtype: what trained parameters, and AdamW's moments, are kept in; bfloat16 halves their memory and is
        rounded at random, so that small updates are not lost. Adapters are in float32.
      average: decay of the moving average that is exported; 0 keeps none, which saves its memory.
      timesteps: "explicit" gives each clip of a batch a part of the range of its own.
      text_dropout: share of captions that are left out, for guidance.
      empty: what stands for a caption left out: the encoded empty prompt, or zeros.
      image_noise: of image-to-video models, add noise to the image before it is encoded.
      image_dropout: of those models, share of images left out.
      noise_offset: deviation of one number per clip, added to all of its noise.
      size: as for `encode`.
      frames: as for `encode`.
      validation: clips to keep out and validate with: a share of the videos, or from 1 on their number.
      validate_every: updates between validations; the state of the lowest loss is kept.
      save_every: updates between checkpoints.
      keep: newest checkpoints to keep.
      tensorboard: write the curve to the run's folder "tensorboard", too (pip install tensorboardX).
      prompts: a file of prompts, as `generate --prompts-file` takes it, whose videos the moving average makes on the
        way, to the folder "videos" of the run; unless a line says otherwise, of the size of the last stage's clips and
        with seed 0.
      video_every: updates between them.
      workers: processes that read batches ahead; 0 reads in threads of this one, which mostly suffices, as clips are
        encoded already.
      remat: what the backward pass computes anew, which saves memory: "none"; norms, activations and gates, which is
        cheap ("products"); whole blocks, a quarter more work ("block"), whose inputs may wait on the host ("offload").
        None is "products" on CPU, else "block".
      mesh: the devices to use and how, such as data=2,fsdp=2; see `cogvx_jax.make_mesh`. None is one device.
      distributed: this is one of several processes that run the same command, as for `generate`. They share one mesh,
        the folder of the run and that of the encoded clips.
      dtype: to compute in.
    """
    import dataclasses

    from cogvx_jax.models.lora import LoRAConfig
    from cogvx_jax.nn.backend import formulations
    from cogvx_jax.pipelines.model import load
    from cogvx_jax.sharding import first_process, initialize, parse_mesh
    from cogvx_jax.storage import is_bucket, storage_path
    from cogvx_jax.train.clips.cache import is_cache, open_cache
    from cogvx_jax.train.clips.encode import check_model
    from cogvx_jax.train.curve import check_tensorboard
    from cogvx_jax.train.placement import check_batch
    from cogvx_jax.train.run_folder import check_folder
    from cogvx_jax.train.transformer import run
    from cogvx_jax.train.transformer.objective import Objective
    from cogvx_jax.train.transformer.parts import EVERYTHING
    from cogvx_jax.train.transformer.stages import Stage, read_stages

    if train == "full" and parts:
        raise ValueError("--train full trains everything; leave it out to train --parts")
    lora, whole = None, train == "full" or bool(parts)
    if not whole:
        alpha = float(lora_rank if lora_alpha is None else lora_alpha)
        lora = LoRAConfig(rank=lora_rank, alpha=alpha, targets=lora_targets)
    config = run.RunConfig(
        lora=lora,
        parts=(parts or EVERYTHING) if whole else (),
        objective=Objective(
            timesteps=timesteps,
            text_dropout=text_dropout,
            empty=empty,
            image_noise=image_noise,
            image_dropout=image_dropout,
            noise_offset=noise_offset,
        ),
        optimizer=optimizer,
        weight_decay=weight_decay,
        trained_dtype=trained_dtype,
        average=average,
        validation=validation,
        seed=seed,
    )
    pace: dict[str, Any] = {
        "validate_every": validate_every,
        "save_every": save_every,
        "log_every": log_every,
        "keep": keep,
        "video_every": video_every,
    }
    for name, value in pace.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    if (data is None) == (stages is None):
        raise ValueError("give --data, or --stages with a file that names the data of each stage")
    folder, encoded = storage_path(out), None if data is None else storage_path(data)
    unencoded = None if encoded is None or is_cache(encoded) else Path(encoded)
    if unencoded is not None and is_bucket(encoded):
        raise ValueError(f"{data} holds no clips of `cogvx encode`; videos themselves must lie on a disk")
    if unencoded is None and (size is not None or frames is not None):
        raise ValueError(f"{data or stages} is encoded already; size and frames are those of `cogvx encode`")
    if tensorboard:
        check_tensorboard(folder)
    if distributed:
        if mesh is None:
            raise ValueError("--distributed needs --mesh: without one, every process would train on its own")
        if unencoded is not None:
            raise ValueError(f"--distributed needs clips that are encoded: run `cogvx encode --data {data}` first")
        initialize(preemptible=True)
    settings: dict[str, Any] = {
        "steps": steps,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "learning_rate": (1e-5 if whole else 5e-4) if learning_rate is None else learning_rate,
        "schedule": schedule,
        "warmup": warmup,
    }
    if stages is not None:
        several = read_stages(stages, settings)
    else:
        several = (Stage(data=((folder / "cache" if unencoded or encoded is None else encoded, 1),), **settings),)
    devices = None if mesh is None else parse_mesh(mesh)
    caches = []  # opened before the weights are read: it finds what is missing
    for stage in several:
        check_batch(devices, stage.batch_size, stage.accumulate)
        for clips, _ in stage.data if unencoded is None else ():
            if not is_cache(clips):
                raise ValueError(f"{clips} is not encoded; do that with `cogvx encode --data ... --out {clips}`")
            caches.append(open_cache(clips))
    check_folder(folder)
    shape = caches[-len(several[-1].data)].shape if caches else None
    videos = _videos(model, prompts, size, frames, shape)
    to_encode = None if unencoded is None else find_clips(model, size, frames, unencoded)
    encoders = load(model, dtype=dtype, mesh=devices, components=("vae", "text_encoder"))
    if to_encode is not None:
        encode_clips(encoders, to_encode, folder / "cache")
    else:
        check_model(caches, encoders)
    # What training does not need any more leaves its memory to the transformer.
    kept = {name: x for name, x in encoders.params.items() if videos or encoders.spec.kind == "i2v" and name == "vae"}
    tokenizer = encoders.tokenizer
    del encoders
    loaded = load(model, dtype=dtype, mesh=devices, components=("transformer",))
    cfg = dataclasses.replace(loaded.spec.transformer, remat=remat or formulations().remat)
    spec = dataclasses.replace(loaded.spec, transformer=cfg)
    loaded = dataclasses.replace(loaded, spec=spec, params=loaded.params | kept, tokenizer=tokenizer)
    try:
        about: dict[str, Any] = {"source": model, "tensorboard": tensorboard, "videos": videos, "workers": workers}
        run.train(loaded, several, config, folder, release=True, **about, **pace)
    except KeyboardInterrupt:
        print("cogvx: interrupted; the same command goes on from the newest checkpoint", file=sys.stderr)
        sys.exit(130)
    use = (
        f"`cogvx export {out} --out FOLDER` makes a model of it" if whole else f"`cogvx generate --lora {out}` uses it"
    )
    if first_process():
        print(f"{out}: trained to update {sum(stage.steps for stage in several)}; {use}")


def _videos(model: str, prompts: Path | None, size: str | None, frames: int | None, shape):
    """What `generate` is to make on the way, all of it checked; `shape` is that of encoded clips, if there are any."""
    from cogvx_jax.data.video import read_image, read_video
    from cogvx_jax.pipelines.model import load_spec
    from cogvx_jax.pipelines.request import check_request

    if prompts is None:
        return []
    spec, videos = load_spec(model), []
    shape = shape or clip_shape(spec, size, frames)
    for job in read_jobs(None, prompts, Path("video.mp4"), {}):
        own = {name: value for name, value in job.arguments().items() if value is not None}
        arguments = {"height": shape.height, "width": shape.width, "num_frames": shape.frames} | own
        if job.image is not None:
            arguments["image"] = read_image(job.image)
        if job.video is not None:
            arguments["video"] = read_video(job.video)[0]
        check_request(spec, job.prompt, **{k: v for k, v in arguments.items() if k not in ("seed", "tiling")})
        videos.append({"prompt": job.prompt} | arguments)
    return videos
