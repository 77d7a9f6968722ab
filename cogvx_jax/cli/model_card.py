"""The page of a model on the hub: what it is made of and for, its licence, and a gallery of videos with prompts."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from cogvx_jax.configs import Kind
from cogvx_jax.json_files import quoted
from cogvx_jax.presets import HUB, LICENCES, PRESETS

WEIGHTS = "pytorch_lora_weights.safetensors"  # the name under which diffusers looks for a LoRA
SAMPLES = "samples"  # the folder of the gallery
TAGS = ("cogvideox", "cogvideox-diffusers", "diffusers")
LORA_TAGS = ("lora", "diffusers-training", "template:diffusion-lora")
PIPELINES: dict[Kind, str] = {
    "t2v": "text-to-video",
    "i2v": "image-to-video",
    "inpaint": "image-to-video",
    "control": "video-to-video",
}
CLASSES: dict[Kind, str] = {"t2v": "CogVideoXPipeline", "i2v": "CogVideoXImageToVideoPipeline"}  # of diffusers
OWN = "tiny"  # of this package, under its licence
APACHE = "apache-2.0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """The published model that another is made of.

    hub: its id; None of one that is not on the hub.
    licence: what the hub calls it; `name` and `link` are of one that it has no word for.
    """

    hub: str | None
    licence: str
    name: str | None = None
    link: str | None = None


def find_base(model: str) -> Base:
    """Of a preset, a hub id, or the name in a spec, such as "CogVideoX-5b".

    Raises: ValueError for another model, whose licence is not known.
    """
    if model == OWN or model.startswith(f"{OWN}-"):
        return Base(hub=None, licence=APACHE)
    for preset, hub in HUB.items():
        if model.lower() in (preset, hub.lower(), PRESETS[preset].name.lower()):
            if LICENCES[preset].lower() == APACHE:
                return Base(hub=hub, licence=APACHE)
            link = f"https://huggingface.co/{hub}/blob/main/LICENSE"
            return Base(hub=hub, licence="other", name="cogvideox-license", link=link)
    known = ", ".join([OWN, *HUB])
    raise ValueError(f"the licence of {quoted(model)} is not known here; give --base, one of {known}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What the page says.

    repo: its id on the hub.
    part: what is published: an adapter of the base, or a model.
    trigger: a word that prompts need, or nothing.
    samples: path below the repository, and prompt, of each video of the gallery.
    facts: lines about how it was made.
    """

    repo: str
    part: Literal["adapter", "finetune"]
    kind: Kind
    base: Base
    trigger: str | None = None
    samples: Sequence[tuple[str, str]] = ()
    facts: Sequence[str] = ()

    def text(self) -> str:
        """The file README.md."""
        return f"---\n{self._metadata()}\n---\n{self._body()}"

    def _metadata(self) -> str:
        from huggingface_hub import ModelCardData

        extra: dict[str, Any] = {"license_name": self.base.name, "license_link": self.base.link}
        if self.base.hub is not None:
            extra |= {"base_model": self.base.hub, "base_model_relation": self.part}
        if self.trigger:
            extra |= {"instance_prompt": self.trigger}
        if self.samples:
            extra |= {"widget": [{"text": prompt, "output": {"url": url}} for url, prompt in self.samples]}
        pipeline = PIPELINES[self.kind]
        tags = [pipeline, *TAGS, *(LORA_TAGS if self.part == "adapter" else ())]
        extra = {name: value for name, value in extra.items() if value is not None}
        data = ModelCardData(
            license=self.base.licence, library_name="diffusers", pipeline_tag=pipeline, tags=tags, **extra
        )
        return data.to_yaml().strip()

    def _body(self) -> str:
        name, of = self.repo.partition("/")[2], self.base.hub or f"the model {OWN} of cogvx_jax"
        what = f"A LoRA of {of}." if self.part == "adapter" else f"A fine-tuned model, made of {of}."
        parts = [f"# {name}", what]
        parts += ["<Gallery />"] if self.samples else []
        parts += [f"Prompts need the word `{self.trigger}`."] if self.trigger else []
        parts += ["## How it was made", "\n".join(f"- {fact}" for fact in self.facts)] if self.facts else []
        parts += ["## How to use it", self._use(), "## Licence", self._licence()]
        return "\n\n".join(parts) + "\n"

    def _use(self) -> str:
        base = next((preset for preset, hub in HUB.items() if hub == self.base.hub), OWN)
        word = f"{self.trigger} " if self.trigger else ""
        image = " --image first.png" if self.kind == "i2v" else ""
        if self.part == "adapter":
            get = f"hf download {self.repo} {WEIGHTS} --local-dir ."
            command = f'cogvx generate "{word}..." --model {base} --lora {WEIGHTS}{image}'
            blocks = [f"```\n{get}\n{command}\n```"]
        else:
            blocks = [f'```\ncogvx generate "{word}..." --model {self.repo}{image}\n```']
        if self.kind in CLASSES and self.base.hub is not None:
            blocks += ["With diffusers:", f"```python\n{self._python()}\n```"]
        return "\n\n".join(blocks)

    def _python(self) -> str:
        pipeline = CLASSES[self.kind]
        first = self.base.hub if self.part == "adapter" else self.repo
        lines = [
            "import torch",
            f"from diffusers import {pipeline}",
            "",
            f'pipe = {pipeline}.from_pretrained("{first}", torch_dtype=torch.bfloat16)',
        ]
        return "\n".join(lines + ([f'pipe.load_lora_weights("{self.repo}")'] if self.part == "adapter" else []))

    def _licence(self) -> str:
        if self.base.link is None:
            return "Apache-2.0, as what it is made of."
        return f"That of [{self.base.hub}]({self.base.link}), whose terms hold for what is made of it, too."
