"""The videos that `cogvx generate` is to make: one, or those of a prompts file."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from cogvx_jax.cli.options import parse_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One video to make: a line of a prompts file, or the command line itself."""

    prompt: str
    out: Path
    negative_prompt: str = ""
    image: Path | None = None
    video: Path | None = None
    strength: float = 0.8
    size: str | None = None
    frames: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    use_dynamic_cfg: bool = False
    sampler: str | None = None
    seed: int = 0
    tiling: bool = False

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `cogvx_jax.generate`."""
        height, width = parse_size(self.size)
        return {
            "negative_prompt": self.negative_prompt,
            "image": self.image,
            "video": self.video,
            "strength": self.strength,
            "height": height,
            "width": width,
            "num_frames": self.frames,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "use_dynamic_cfg": self.use_dynamic_cfg,
            "sampler": self.sampler,
            "seed": self.seed,
            "tiling": self.tiling,
        }


def read_jobs(prompt: str | None, file: Path | None, out: Path, options: dict[str, Any]) -> list[Job]:
    """The videos to make: one for `prompt`, or one per line of `file`.

    Raises: ValueError naming the line for what cannot be read.
    """
    if (prompt is None) == (file is None):
        raise ValueError("give either a prompt or --prompts-file")
    if prompt is not None or file is None:
        assert prompt is not None
        return [Job(prompt=prompt, out=out, **options)]
    lines = [line.strip() for line in file.read_text().splitlines()]
    jobs: list[Job] = []
    known = {field.name for field in dataclasses.fields(Job)}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        own: dict[str, Any] = {"prompt": line}
        if line.startswith("{"):
            try:
                own = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number} is not JSON: {error}") from None
            if "prompt" not in own or not own.keys() <= known:
                spare = ", ".join(sorted(own.keys() - known)) or "no prompt"
                raise ValueError(
                    f"{file}, line {number}: {spare}; a line has a prompt and any of {', '.join(sorted(known))}"
                )
        target = out.with_stem(f"{out.stem}-{len(jobs)}")
        paths = {k: Path(own[k]) for k in ("out", "image", "video") if own.get(k)}
        jobs.append(Job(**({"out": target} | options | own | paths)))
    if not jobs:
        raise ValueError(f"{file} holds no prompt")
    return jobs
