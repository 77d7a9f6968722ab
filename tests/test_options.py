"""The options of `cogvx train` and `train-vae`: dataclasses whose fields are flags, of the same names as ever."""

import dataclasses
import re
import sys

import pytest

from cogvx_jax.cli import main as cli
from cogvx_jax.cli.settings import NAMES, from_flags
from cogvx_jax.cli.train import TrainOptions
from cogvx_jax.cli.train_vae import TrainVAEOptions
from cogvx_jax.configs import LoRAConfig

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
PACE = {"validate_every": 200, "save_every": 200, "keep": 2, "log_every": 50, "tensorboard": False, "workers": 0}
SHARED = {"config": None, "data": None, "stages": None, "out": "required", "model": "tiny", "steps": 1000, "size": None}
SHARED |= {"seed": 0, "weight_decay": 1e-4, "average": 0.99, "validation": 0.0, "mesh": None, "distributed": False}
SHARED |= {"dtype": None, **PACE}
TRAIN = {"train": "lora", "parts": (), "lora_rank": 64, "lora_alpha": None, "lora_targets": ATTENTION}
TRAIN |= {"batch_size": 4, "accumulate": 1, "optimizer": "adamw", "learning_rate": None, "schedule": "constant"}
TRAIN |= {"warmup": 50, "trained_dtype": "float32", "timesteps": "explicit", "text_dropout": 0.1, "empty": "encoded"}
TRAIN |= {"masks": ("all", "first", "first-last", "block", "block-in-time"), "text_alone": 0.9}
TRAIN |= {"image_noise": True, "image_dropout": 0.05, "noise_offset": 0.0, "frames": None, "remat": None}
TRAIN |= {"where": None, "prompts": None, "video_every": 1000, "controlnet": None, "controlnet_layers": None}
TRAIN |= {"channel": "sequential", "new_channel": False}  # of CogVideo (2022)
VAE = {"lpips": None, "lpips_weight": 1.0, "lpips_frames": None, "l1": 1.0, "squared": 0.0, "kl": 1e-6}
VAE |= {"discriminator_start": None, "discriminator_width": 64, "discriminator_layers": 3, "adversarial": 0.5}
VAE |= {"adaptive": True, "decoder_only": False, "whole_clips": False, "frames": 17, "fps": (8.0, 16.0)}
VAE |= {"batch_size": 1, "learning_rate": 1e-5, "discriminator_rate": 1e-4, "warmup": 100, "remat": False}


def flags(of):
    """{flag: default} of a dataclass of options and those in it."""
    found = {}
    for field in dataclasses.fields(of):
        name = NAMES.get(of, {}).get(field.name, field.name)
        if name is None:
            continue
        if dataclasses.is_dataclass(field.default):
            found |= flags(type(field.default))
        else:
            found[name] = "required" if field.default is dataclasses.MISSING else field.default
    return found


@pytest.mark.parametrize("of, wanted", [(TrainOptions, SHARED | TRAIN), (TrainVAEOptions, SHARED | VAE)])
def test_flags_and_their_defaults(of, wanted):
    assert flags(of) == wanted


@pytest.mark.parametrize("verb, wanted", [("train", SHARED | TRAIN), ("train-vae", SHARED | VAE)])
def test_help_names_all_flags_and_no_others(verb, wanted, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cogvx", verb, "--help"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    words = set(re.findall(r"(?<!-)--[a-z0-9][a-z0-9-]*[a-z0-9]", capsys.readouterr().out))
    wanted_words = {f"--{name.replace('_', '-')}" for name in wanted}
    assert wanted_words <= words
    mentioned = {"--help", "--prompts-file", "--stages", "--out", "--decoder-only"}
    assert {word.replace("--no-", "--") for word in words} <= wanted_words | mentioned


def test_options_by_their_flags():
    options = from_flags(TrainOptions, out="run", stages="x.toml", lora_rank=4, steps=7, text_dropout=0.5, keep=3)
    assert (options.lora, options.stage.steps, options.pace.keep) == (LoRAConfig(rank=4), 7, 3)
    assert options.trained.objective.text_dropout == 0.5 and options.trained.lora.alpha == 4.0
    assert from_flags(TrainVAEOptions, out="run", data="x", lpips="y", lpips_weight=0.5).trained.objective.lpips == 0.5
    assert from_flags(TrainVAEOptions, out="run", data="x", lpips_weight=0.5).trained.objective.lpips == 0.0
    with pytest.raises(TypeError, match="there is no flag 'rank'"):
        from_flags(TrainOptions, out="run", stages="x.toml", rank=4)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["train", "--out", "run"], "give --data, or --stages with a file"),
        (["train", "--data", "x", "--out", "run", "--train", "full", "--parts", "*"], "leave it out to train --parts"),
        (["train", "--data", "x", "--out", "run", "--text-dropout", "2"], "text_dropout must be between 0 and 1"),
        (["train", "--data", "x", "--out", "run", "--keep", "0"], "keep must be at least 1, got 0"),
        (["train-vae", "--out", "run"], "give --data, or --stages with a file"),
        (["train-vae", "--data", "x", "--out", "run", "--distributed"], "--distributed needs --mesh"),
        (["train-vae", "--data", "x", "--out", "run", "--l1", "0"], "l1 and squared cannot both be 0"),
        (["train", "--config", "none/run.json", "--out", "run"], "there is no none/run.json"),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cogvx", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(said) == 1 and words in said[0]
