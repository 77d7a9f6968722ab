"""`cogvx distill`: teaches a model, by a LoRA, to make its videos in a few steps without guidance."""

import dataclasses
from typing import Annotated, Any

import tyro

from cogvx_jax.cli.settings import NAMES, verb
from cogvx_jax.cli.train import TrainOptions, recorded_options, run_training
from cogvx_jax.configs import ATTENTION, LoRAConfig
from cogvx_jax.train.transformer.settings import Distillation, Objective, RunConfig, StageSettings

# The student sees each clip with its own caption and image: what is left out would be learnt as if it were there.
OBJECTIVE = Objective(text_dropout=0.0, image_dropout=0.0, image_noise=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillOptions(TrainOptions):
    """Of `cogvx distill`: those of `cogvx train` for a LoRA, and what it learns. Raises: as `TrainOptions`."""

    model: Annotated[str, tyro.conf.Positional] = "tiny"  # as for `generate`; without the LoRA it is the teacher
    distill: Distillation = Distillation()  # What the LoRA learns of the model
    lora: LoRAConfig = LoRAConfig(targets=(*ATTENTION, "ff"))  # What the LoRA adapts
    stage: StageSettings = StageSettings(learning_rate=1e-4)  # The length and the pace of learning
    run: RunConfig = RunConfig(objective=OBJECTIVE)  # What is random, and how it is trained

    @property
    def trained(self) -> RunConfig:
        return dataclasses.replace(self.run, lora=self.lora, parts=(), distill=self.distill)

    def sampled(self, spec: Any) -> Any:
        return spec.distilled(self.distill.result(spec))

    def use(self) -> str:
        from cogvx_jax.pipelines.model import load_spec

        return f"`cogvx generate --lora {self.out}` takes {self.distill.result(load_spec(self.model))}"


NAMES[DistillOptions] = {"train": None, "parts": None, "controlnet": None, "cogvideo2022": None}


def recorded(config: str) -> DistillOptions:
    """The options that the run.json of a distillation stands for; as `train.recorded`."""
    run, own = recorded_options(config, "distill")
    own["distill"] = run.distill
    return DistillOptions(**own | {"run": dataclasses.replace(run, distill=None)})


@verb(DistillOptions, recorded)
def distill(options: DistillOptions) -> None:
    """Trains a LoRA that gives in a few unguided steps what the model gives in many guided ones.

    A run that was stopped goes on as those of `cogvx train`. `generate --lora RUN` takes the steps, the sampler and the
    guidance scale that it is for.
    """
    from cogvx_jax.convert.cogvideo2022_folder import is_cogvideo2022

    if is_cogvideo2022(options.model):
        raise ValueError(
            f"{options.model} is a CogVideo (2022), which has no sampling steps to spare; `cogvx train` it"
        )
    run_training(options)
