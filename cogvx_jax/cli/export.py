"""`cogvx export`: writes what a run trained."""

from pathlib import Path
from typing import Annotated, Any

import tyro

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


def export(
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")],
    /,
    *,
    out: Path,
    best: bool = False,
    scaling_factor: float | None = None,
) -> None:
    """Writes a run's LoRA as a file for diffusers' `load_lora_weights`, or its model or ControlNet as a folder.

    Args:
      run: folder of `cogvx train` or `cogvx train-vae`, or its URL.
      out: a .safetensors file that does not exist, or for a run of the model itself or of a ControlNet a folder that
        does not.
      best: of the lowest validation loss, not of the newest checkpoint.
      scaling_factor: of latents, for a run of `train-vae` that changed them: its log calls it "latent_scale". None
        keeps the model's.
    """
    from cogvx_jax.cli.train_cogvideo2022 import export_cogvideo2022
    from cogvx_jax.convert.runs import is_cogvideo2022_run, is_vae_run
    from cogvx_jax.storage import storage_path
    from cogvx_jax.temporaries import check_local

    check_local(out, "--out")
    folder = storage_path(run)
    if is_vae_run(folder):
        export_vae(folder, out, best, scaling_factor)
        return
    if is_cogvideo2022_run(folder):
        if not _is_new_folder(out):
            raise ValueError(f"{run} trained a CogVideo (2022); give a new folder for it, not {out}")
        export_cogvideo2022(folder, out, best)
        return
    if scaling_factor is not None:
        raise ValueError(f"{run} left the VAE as it is; --scaling-factor is for a run of `cogvx train-vae`")
    from cogvx_jax.convert import export as write_model
    from cogvx_jax.convert import write_lora
    from cogvx_jax.convert.runs import read_run, read_run_lora, run_dtype, run_source, trained_part
    from cogvx_jax.pipelines.model import load, load_spec
    from cogvx_jax.train.transformer.trained import read_model

    source, part = run_source(folder), trained_part(read_run(folder))
    if part == "controlnet":
        export_controlnet(folder, out, best)
        return
    if part == "lora":
        spec = load_spec(source)
        lora = read_run_lora(folder, spec, best=best)
        write_lora(out, lora, spec)
        print(f"{out}: rank {lora.rank}, alpha {lora.alpha:g}, {len(lora.adapters)} kernels of {spec.name}")
        return
    if not _is_new_folder(out):
        raise ValueError(f"{run} trained the model itself; give a new folder for it, not {out}")
    model = read_model(folder, load(source, dtype=run_dtype(folder)), best=best)
    write_model(out, model.spec, model.params, model.tokenizer)
    print(f"{out}: {model.spec.name} as {run} trained it; use it with `cogvx generate --model {out}`")


def export_controlnet(run: Any, out: Path, best: bool) -> None:
    """Writes the ControlNet of a run in TheDenk's layout; see `export`."""
    from cogvx_jax.convert.controlnet import write_controlnet
    from cogvx_jax.convert.runs import read_run, read_run_controlnet

    if not _is_new_folder(out):
        raise ValueError(f"{run} trained a ControlNet; give a new folder for it, not {out}")
    cfg, params = read_run_controlnet(run, best=best)
    write_controlnet(out, cfg, params)
    use = f"use it with `cogvx generate --controlnet {out} --control VIDEO`"
    print(f"{out}: a ControlNet of {cfg.layers} blocks for {read_run(run)['name']}; {use}")


def export_vae(run: Any, out: Path, best: bool, scaling_factor: float | None) -> None:
    """Writes the model of a run in the published layout; see `export`."""
    from cogvx_jax.convert import export as write_model
    from cogvx_jax.pipelines.model import load
    from cogvx_jax.train.vae.run import read_vae, vae_run_source

    if not _is_new_folder(out):
        raise ValueError(f"{run} trained a VAE, which is written with its model; give a new folder for it, not {out}")
    source, dtype = vae_run_source(run)
    model = read_vae(run, load(source, dtype=dtype), best=best, scaling_factor=scaling_factor)
    write_model(out, model.spec, model.params, model.tokenizer)
    print(f"{out}: {model.spec.name} with the VAE of {run}; use it with `cogvx generate --model {out}`")


def _is_new_folder(out: Path) -> bool:
    from cogvx_jax.storage import is_empty

    return out.suffix != ".safetensors" and (not out.exists() or out.is_dir() and is_empty(out))
