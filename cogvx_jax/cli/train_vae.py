"""`cogvx train-vae`: trains a VAE."""

import sys
from pathlib import Path
from typing import Any

from cogvx_jax.cli.options import DType, FolderText, MeshText, Size, parse_size

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


def train_vae(
    *,
    data: Path,
    out: FolderText,
    model: str = "tiny",
    steps: int = 1000,
    lpips: Path | None = None,
    lpips_weight: float = 1.0,
    lpips_frames: int | None = None,
    l1: float = 1.0,
    squared: float = 0.0,
    kl: float = 1e-6,
    discriminator_start: int | None = None,
    discriminator_width: int = 64,
    discriminator_layers: int = 3,
    adversarial: float = 0.5,
    adaptive: bool = True,
    decoder_only: bool = False,
    whole_clips: bool = False,
    size: Size = None,
    frames: int = 17,
    fps: tuple[float, ...] = (8.0, 16.0),
    batch_size: int = 1,
    learning_rate: float = 1e-5,
    discriminator_rate: float = 1e-4,
    warmup: int = 100,
    weight_decay: float = 1e-4,
    average: float = 0.99,
    validation: float = 0.0,
    validate_every: int = 200,
    seed: int = 0,
    save_every: int = 200,
    keep: int = 2,
    log_every: int = 50,
    workers: int = 0,
    remat: bool = False,
    mesh: MeshText = None,
    dtype: DType | None = None,
) -> None:
    """Trains a model's VAE on random clips of videos; a run that was stopped goes on.

    Unless --decoder-only, the latents become others: a transformer must then be trained on them. It goes on from its
    newest checkpoint, on any mesh. SIGTERM saves one and ends with status 0. `cogvx export` makes a model of it.

    Args:
      data: as for `train`; captions are not used.
      out: the run's folder, or the URL of one in a bucket.
      model: as for `generate`; only its VAE is loaded.
      steps: updates, those of an earlier part of the run included.
      lpips: a file with the weights of LPIPS; None leaves the term out. cogvx_jax/convert/lpips.py has the command
        that writes it.
      lpips_weight: of that term.
      lpips_frames: frames that it compares in each update, drawn at random; None is all.
      l1: weight of the absolute error of pixels.
      squared: of the squared error.
      kl: of the divergence of the latents from a normal distribution, a mean over their numbers.
      discriminator_start: updates after which a 3D discriminator joins in; None is never.
      discriminator_width: channels of its first layer.
      discriminator_layers: that halve height and width.
      adversarial: weight of its gradient in the decoder's last layer, against that of the rest.
      adaptive: weigh it so in every update; else `adversarial` is the plain weight of its loss.
      decoder_only: keep the encoder, and so the latents, as they are.
      whole_clips: norms over the whole clip, as the authors trained, not over frame batches as in use.
      size: height and width of the clips in pixels; None is 256x256, or the model's own if that is smaller.
      frames: of each clip, 8N+1; 1 takes single frames.
      fps: frames per second, one of which is drawn for each clip.
      batch_size: clips an update.
      learning_rate: of the VAE, reached after `warmup` updates.
      discriminator_rate: of the discriminator, which warms up as long when it begins.
      average: decay of the moving average that is exported; 0 keeps none, which saves its memory.
      validation: videos to keep out and validate with: a share of them, or from 1 on their number.
      validate_every: updates between validations, by PSNR, SSIM and the terms; the state of the lowest loss is kept.
      save_every: updates between checkpoints.
      keep: newest checkpoints to keep.
      workers: processes that cut clips out of the videos ahead; 0 does it in threads of this one.
      remat: compute each frame batch anew in the backward pass, which saves memory.
      mesh: as for `train`.
      dtype: to compute in; the parameters are kept in float32.
    """
    from cogvx_jax.data.layouts import read_sources
    from cogvx_jax.models.discriminator import DiscriminatorConfig
    from cogvx_jax.pipelines.model import load, load_spec
    from cogvx_jax.sharding import parse_mesh
    from cogvx_jax.storage import storage_path
    from cogvx_jax.train.placement import check_batch
    from cogvx_jax.train.vae import run
    from cogvx_jax.train.vae.objective import VAEObjective

    pace: dict[str, Any] = {
        "validate_every": validate_every,
        "save_every": save_every,
        "log_every": log_every,
        "keep": keep,
    }
    for name, value in ({"steps": steps} | pace).items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    own = load_spec(model).defaults
    height, width = parse_size(size)
    config = run.VAERunConfig(
        objective=VAEObjective(
            l1=l1,
            squared=squared,
            lpips=lpips_weight if lpips else 0.0,
            lpips_frames=lpips_frames,
            kl=kl,
            adversarial=adversarial,
            adaptive=adaptive,
            discriminator_start=discriminator_start,
        ),
        discriminator=DiscriminatorConfig(
            width=discriminator_width, layers=discriminator_layers, groups=min(32, discriminator_width)
        ),
        height=height or min(256, own.height),
        width=width or min(256, own.width),
        frames=frames,
        fps=fps,
        decoder_only=decoder_only,
        whole_clips=whole_clips,
        batch_size=batch_size,
        learning_rate=learning_rate,
        discriminator_rate=discriminator_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        average=average,
        validation=validation,
        seed=seed,
    )
    devices = None if mesh is None else parse_mesh(mesh)
    check_batch(devices, batch_size)
    folder = storage_path(out)
    run.check_folder(folder)
    sources = read_sources(data)
    run.split_videos(sources, validation)
    loaded = load(model, dtype=dtype, mesh=devices, components=("vae",))

    def report(line: str) -> None:
        print(f"cogvx: {line}", file=sys.stderr, flush=True)

    try:
        about: dict[str, Any] = {"source": model, "lpips": lpips, "remat": remat, "workers": workers, "report": report}
        run.train_vae(loaded, sources, config, folder, steps=steps, **about, **pace)
    except KeyboardInterrupt:
        print("cogvx: interrupted; the same command goes on from the newest checkpoint", file=sys.stderr)
        sys.exit(130)
    print(f"{out}: trained to update {steps}; `cogvx export {out} --out FOLDER` makes a model of it")
