"""What makes a run of the transformer what it is, as values that need no jax: they are the command line, too."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from cogvx_jax.configs import Distilled, Kind, LoRAConfig, ModelSpec
from cogvx_jax.data.expressions import parse_expression
from cogvx_jax.diffusion.samplers import LCM_STEPS
from cogvx_jax.diffusion.schedule import exact_steps


class MaskShare(NamedTuple):
    """How often a kind of mask is drawn, beside the others: of a clip, and of a clip of one frame."""

    clips: float
    pictures: float


# What an inpainting model is to make of a clip, in the shares of CogVideoX-Fun's training: all of it, all after its
# first frames, all between its first and last frames, a block in all frames, a block in some frames.
MASKS: Mapping[str, MaskShare] = {
    "all": MaskShare(0.3, 0.8),
    "first": MaskShare(0.3, 0.0),
    "first-last": MaskShare(0.3, 0.0),
    "block": MaskShare(0.05, 0.2),
    "block-in-time": MaskShare(0.05, 0.0),
}

OF_KINDS: Mapping[str, tuple[Kind, ...]] = {  # what an objective has for some kinds of models alone
    **dict.fromkeys(("image_noise", "image_noise_mean", "image_noise_spread"), ("i2v", "inpaint")),
    **dict.fromkeys(("image_dropout", "image_scale"), ("i2v",)),
    **dict.fromkeys(("masks", "text_alone"), ("inpaint",)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What is random about the loss. The defaults are the authors', but for the two that name others.

    `empty`: the authors train with zeros; diffusers, and `generate` by default, steer from the states of "".

    Raises: ValueError for a rate outside 0..1 or a spread below 0.
    """

    # "explicit" is the paper's: clip i of a batch draws from the i-th part of the range
    timesteps: Literal["explicit", "uniform"] = "explicit"
    text_dropout: float = 0.1  # share of captions that are replaced by `empty`: what guidance steers away from
    # what stands for a caption left out: the encoded empty prompt, or zeros
    empty: Literal["encoded", "zeros"] = "encoded"
    # of image-to-video models, add noise to the image before it is encoded
    image_noise: bool = True
    # Its deviation is exp(N(mean, spread)), per sample.
    image_noise_mean: float = -3.0
    image_noise_spread: float = 0.5  # and this is the spread
    image_dropout: float = 0.05  # of those models, share of images replaced by zeros
    # Of image latents. None is what `generate` uses; the authors' trainer has the scaling factor, for 1.5 too.
    image_scale: float | None = None
    # of inpainting models, kinds of masks to draw: all, first, first-last, block, block-in-time; for clips of one frame
    # all and block
    masks: tuple[str, ...] = tuple(MASKS)
    # of those models, share of masks of all the clip that are told by zeros, as in a video from text; the others are
    # encoded as black clips
    text_alone: float = 0.9
    noise_offset: float = 0.0  # deviation of one number per clip, added to all of its noise

    def __post_init__(self):
        for name in ("text_dropout", "image_dropout", "text_alone"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        for name in ("noise_offset", "image_noise_spread"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, got {getattr(self, name)}")
        for name, known in (("timesteps", ("explicit", "uniform")), ("empty", ("encoded", "zeros"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}")
        unknown = [name for name in self.masks if name not in MASKS]
        if unknown or not self.masks:
            raise ValueError(f"masks must be some of {', '.join(MASKS)}, got {unknown[0] if unknown else 'none'!r}")

    def check(self, spec: ModelSpec) -> None:
        """Raises: ValueError for what a model of its kind would ignore. What is 0 or False asks for nothing."""
        for name, kinds in OF_KINDS.items():
            value = getattr(self, name)
            if spec.kind not in kinds and value and value != getattr(Objective, name):
                raise ValueError(
                    f"{name} is for training models of the kind {' or '.join(kinds)}, and {spec.name} is of the kind "
                    f"{spec.kind}; leave it out"
                )


class DistillationMethod(NamedTuple):
    """A row of the table."""

    sampler: str | None  # that the student is for; None is the model's own
    phases: Callable[[int], int] | None  # student's steps -> phases of the teacher's path; None: no jumps are learnt
    grid: Callable[[int], int]  # student's steps -> those whose timesteps the sampler visits, or some of them
    from_starts: bool = False  # of phases alone; else jumps are learnt from all points


NEW = "new"  # in place of a ControlNet to go on from
METHODS: Mapping[str, DistillationMethod] = {
    "progressive": DistillationMethod("ddim", lambda steps: steps, lambda steps: steps, from_starts=True),
    "phased": DistillationMethod("ddim", lambda steps: steps, lambda steps: steps),
    "consistency": DistillationMethod("lcm", lambda steps: 1, lambda steps: LCM_STEPS),
    "guidance": DistillationMethod(None, None, lambda steps: steps),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """What a LoRA learns of its own base, so that fewer evaluations do. Steps are sampling steps, not updates.

    Raises: ValueError for numbers that cannot be.
    """

    # "phased" jumps to the next of the student's steps from anywhere between two, for the sampler ddim; "progressive"
    # does so from the student's steps alone and is shown the whole way there, which costs as many more evaluations;
    # "consistency" jumps to the clean latents (LCM), for lcm; "guidance" learns the guided prediction, for steps as
    # before
    method: Literal["phased", "progressive", "consistency", "guidance"] = "phased"
    student_steps: int = 4  # sampling steps that the LoRA is for; of "guidance", the model's own
    # sampling steps of the path that jumps are learnt of; None is the model's own, or the nearest count that fits
    teacher_steps: int | None = None
    # guidance scale of the teacher, which the LoRA has built in; None is the model's own
    teacher_guidance: float | None = None
    loss: Literal["huber", "squared"] = "huber"  # of the difference

    def __post_init__(self):
        for name, known in (("method", tuple(METHODS)), ("loss", ("huber", "squared"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}")
        if self.student_steps < 2:
            raise ValueError(f"student_steps must be at least 2, got {self.student_steps}")
        if self.teacher_steps is not None and self.teacher_steps <= self.student_steps:
            raise ValueError(
                f"teacher_steps must be above the {self.student_steps} of the student, got {self.teacher_steps}"
            )
        if self.teacher_guidance is not None and not 1 <= self.teacher_guidance < math.inf:
            raise ValueError(f"teacher_guidance must be a number of at least 1, got {self.teacher_guidance}")

    @property
    def phases(self) -> int | None:
        """Of the teacher's path; None where no jumps are learnt."""
        phases = METHODS[self.method].phases
        return None if phases is None else phases(self.student_steps)

    def result(self, spec: ModelSpec) -> Distilled:
        """What the LoRA is for. Raises: ValueError as `completed`."""
        steps, own = self.completed(spec).student_steps, spec.defaults.sampler
        return Distilled(method=self.method, steps=steps, sampler=METHODS[self.method].sampler or own)

    def completed(self, spec: ModelSpec) -> "Distillation":
        """The same with all that is None as it is for a model.

        Raises: ValueError where guidance, of 1 or less, leaves nothing to learn, or the student would be sampled at
          timesteps that are none of its teacher's.
        """
        own = spec.defaults
        weight = max(1.0, own.guidance_scale) if self.teacher_guidance is None else self.teacher_guidance
        if self.method == "guidance" and weight <= 1:
            raise ValueError(f"without guidance there is none to learn; give a teacher_guidance above {weight:g}")
        if self.phases is None:
            return dataclasses.replace(self, teacher_guidance=weight, student_steps=own.num_inference_steps)
        least, multiple = 2 * self.student_steps, METHODS[self.method].grid(self.student_steps)
        fitting = [n for n in exact_steps(spec.schedule.steps) if n >= least and n % multiple == 0]
        if not fitting:
            raise ValueError(f"no number of teacher's steps fits {self.student_steps} of the student; take 4")
        nearest = min(fitting, key=lambda n: abs(n - own.num_inference_steps))
        taken = self.teacher_steps or nearest
        if taken not in fitting:
            some = ", ".join(map(str, fitting[:4]))
            raise ValueError(f"teacher_steps must be such as {some}, to have the student's among them, got {taken}")
        return dataclasses.replace(self, teacher_guidance=weight, teacher_steps=taken)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlNetTraining:
    """A ControlNet that is trained beside a model, which stays as it is. Raises: ValueError for numbers that cannot be.

    `start` None trains none.
    """

    # trains a ControlNet of TheDenk's layout, on clips with control videos: "new", or one to go on from, as for
    # `generate`. A new one begins with the weights of the model's first blocks and adds nothing yet
    start: str | None = None
    layers: int | None = None  # blocks of a new one; None is 6, or half of the model's where that is less

    def __post_init__(self):
        if self.layers is not None and self.layers < 1:
            raise ValueError(f"a ControlNet needs a block, got {self.layers} layers")
        if self.layers is not None and self.start not in (None, NEW):
            raise ValueError(f"the ControlNet {self.start} has layers of its own; leave out the number, or begin anew")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSettings:
    """Of a stage of a run, all but its data. Raises: ValueError for numbers that cannot be."""

    steps: int = 1000  # updates, those of an earlier part of the run included; with --stages, those of a stage
    batch_size: int = 4  # clips an update; of packed ones, rows
    accumulate: int = 1  # computes a batch in so many parts, one after the other, which saves memory
    # reached after `warmup` updates; None is 5e-4 for a LoRA (the authors use up to 1e-3), 1e-4 for a ControlNet, else
    # 1e-5
    learning_rate: float | None = None
    schedule: Literal["constant", "cosine"] = "constant"  # from then on, or a cosine to 1% at the last of `steps`
    warmup: int = 50  # updates from 0 to the learning rate
    pack: int | None = None  # video tokens a row of clips of any size; None has one clip a row
    # of the clips only those whose scores make it true, such as "motion_mean > 1 and text_area < 0.02"
    where: str | None = None

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.batch_size < 1:
            raise ValueError(f"the batch size must be at least 1, got {self.batch_size}")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(f"a batch of {self.batch_size} clips cannot be computed in {self.accumulate} equal parts")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise ValueError(f"the learning rate must be above 0 and below 1, got {self.learning_rate}")
        if self.warmup < 0:
            raise ValueError(f"warmup must be at least 0, got {self.warmup}")
        if self.pack is not None and self.pack < 1:
            raise ValueError(f"packed rows need a token, got {self.pack}")
        if self.where is not None:
            parse_expression(self.where, None)
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"the schedule must be constant or cosine, got {self.schedule!r}")
        if self.schedule == "cosine" and self.steps <= self.warmup:
            raise ValueError(f"a cosine of {self.steps} updates leaves none after a warmup of {self.warmup}")

    @property
    def decay_steps(self) -> int | None:
        """Updates over which the learning rate falls; None where it stays."""
        return self.steps if self.schedule == "cosine" else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What makes a run what it is, but for its stages.

    Raises: ValueError for numbers that cannot be.
    """

    lora: LoRAConfig | None = LoRAConfig()  # None trains parameters themselves, those of `parts`
    parts: tuple[str, ...] = ()  # patterns of their paths, as for `parts.split`
    objective: Objective = Objective()  # What is random about the loss
    distill: Distillation | None = None  # what is learnt of the base itself; None learns from the clips
    controlnet: ControlNetTraining | None = None  # in place of the others, what is trained beside the model
    optimizer: Literal["adamw", "adafactor"] = "adamw"  # adafactor keeps far less than adamw
    weight_decay: float = 1e-4  # of the optimizer
    # what trained parameters, and AdamW's moments, are kept in; bfloat16 halves their memory and is rounded at random,
    # so that small updates are not lost. Adapters are in float32
    trained_dtype: Literal["float32", "bfloat16"] = "float32"
    # decay of the moving average that is exported; 0 keeps none, which saves its memory
    average: float = 0.99
    # clips to keep out and validate with: a share of the videos of each cache, or from 1 on their number
    validation: float = 0.0
    seed: int = 0  # of all that is random

    def __post_init__(self):
        if self.controlnet is not None and self.controlnet.start is None:
            raise ValueError("a run of a ControlNet begins with a new one, or with one that there is")
        if (self.lora is not None) + bool(self.parts) + (self.controlnet is not None) != 1:
            raise ValueError("a run trains either a LoRA, or parts of the model, or a ControlNet")
        if self.lora is not None and self.trained_dtype != "float32":
            raise ValueError("the adapters of a LoRA, which are small, are trained in float32")
        if self.distill is not None and self.lora is None:
            raise ValueError("distillation trains a LoRA: its teacher is the model without it")
        if self.weight_decay < 0 or not 0 <= self.average < 1:
            raise ValueError("weight decay must be at least 0, the average's decay in 0..1")

    @property
    def learning_rate(self) -> float:
        """Of stages that have none of their own."""
        if self.controlnet is not None:
            return 1e-4
        return 1e-5 if self.lora is None else 5e-4
