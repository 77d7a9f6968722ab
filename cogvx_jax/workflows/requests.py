"""From a graph of the CogVideoX wrapper to a request: what it asks for, and what could not be carried over."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cogvx_jax.json_files import quoted
from cogvx_jax.pipelines.option_json import as_json
from cogvx_jax.pipelines.options import Options
from cogvx_jax.workflows.graphs import Graph, Node
from cogvx_jax.workflows.sources import Sources, below
from cogvx_jax.workflows.wrapper import (
    COMBINES,
    DECODE,
    EMPTY,
    ENCODE,
    ENCODE_FUN,
    LORAS,
    MODELS,
    NOT_CARRIED,
    POLICIES,
    PROMPT,
    PUBLISHED,
    SAMPLER,
    SAMPLERS,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
    """What a workflow asks for.

    Args:
      options: those that it gives, checked, by the keys of a prompts file.
      model: its name here, a hub id, or a file; None where the workflow names none.
      loras: files and weights.
      notes: what could not be carried over, or comes out otherwise, sentences.
    """

    prompt: str
    options: Mapping[str, Any]
    model: str | None
    loras: tuple[tuple[str, float], ...]
    notes: tuple[str, ...]


def import_graph(graph: Graph, *, node: str | None = None, comfyui: Path | None = None) -> Imported:
    """The request of one sampler of a graph.

    Args:
      node: id of the sampler, where there are several.
      comfyui: ComfyUI's folder, in which pictures, clips and LoRAs lie; without it their names stay as they are.
    Raises: ValueError, one sentence, for a graph without such a sampler, or without what a request must have.
    """
    return _Reader(graph, _sampler(graph, node), comfyui).read()


def _sampler(graph: Graph, id: str | None) -> Node:
    found = graph.of_kind(SAMPLER)
    if not found:
        raise ValueError(f"there is no {SAMPLER} in it; workflows of ComfyUI-CogVideoXWrapper are read")
    if id is None and len(found) == 1:
        return found[0]
    ids = ", ".join(node.id[:40] for node in found[:20])
    if id is None:
        raise ValueError(f"it has {len(found)} nodes {SAMPLER}; say which by --node, one of {ids}")
    if (chosen := next((node for node in found if node.id == id), None)) is None:
        raise ValueError(f"there is no {SAMPLER} {id[:40]!r} in it; there are {ids}")
    return chosen


class _Reader:
    """Reads one sampler and what hangs on it. Notes grow on the way."""

    def __init__(self, graph: Graph, sampler: Node, comfyui: Path | None):
        self._graph, self._sampler, self._comfyui = graph, sampler, comfyui
        self._notes: list[str] = []
        self._from = Sources(graph, comfyui, self._notes.append)
        self._options: dict[str, Any] = {}

    def read(self) -> Imported:
        sampler = self._sampler
        if sampler.problem:
            raise ValueError(f"{sampler} cannot be read: {sampler.problem}")
        prompt = self._prompt("positive")
        if (negative := self._prompt("negative")).strip():
            self._options["negative_prompt"] = negative
        self._sampling()
        self._latents()
        self._extras()
        self._rate()
        model, loras = self._model()
        named = as_json(Options(**self._options))
        options = {name: named[name] for name in self._options}
        notes = tuple(dict.fromkeys(self._notes))
        return Imported(prompt=prompt, options=options, model=model, loras=loras, notes=notes)

    def _node(self, of: Node, name: str, *kinds: str) -> Node | None:
        """The node that an input comes from; None where it has no link. Raises: ValueError for one of another kind."""
        found = self._graph.source(of, name)
        if found is None:
            return None
        node = found[0]
        if node.kind not in kinds:
            raise ValueError(f"{name} of {of} comes from {node}, which is not known; {' or '.join(kinds)} is")
        if node.problem:
            self._notes.append(f"{node} is taken with its defaults: {node.problem}")
        return node

    def _prompt(self, name: str) -> str:
        node = self._node(self._sampler, name, PROMPT)
        if node is None:
            if name == "positive":
                raise ValueError(f"{self._sampler} has no prompt")
            return ""
        if node.values["strength"] != 1:
            self._notes.append(f"the strength of {node} is not carried over; --guidance-scale weighs the prompt here")
        return one_line(self._from.value(node, "prompt", str))

    def _sampling(self) -> None:
        values = {
            name: self._from.value(self._sampler, name, kind)
            for name, kind in (("num_frames", int), ("steps", int), ("cfg", (int, float)), ("seed", int))
        }
        for name, option in (("num_frames", "frames"), ("steps", "steps"), ("cfg", "guidance_scale")):
            if values[name] is not None:
                self._options[option] = values[name]
        if (seed := values["seed"]) is not None:
            self._options["seed"] = (seed ^ (seed >> 32)) & 0xFFFFFFFF if seed >= 0 else seed
            if seed >= 2**32:
                self._notes.append(
                    "a seed of more than 32 bits is folded into these, the most that are told apart here"
                )
        scheduler = self._sampler.values["scheduler"]
        if scheduler in SAMPLERS:
            self._options["sampler"] = SAMPLERS[scheduler]
        else:
            self._notes.append(f"the scheduler {quoted(scheduler)} is not there; the model's own sampler is taken")

    def _latents(self) -> None:
        """Size, pictures and clip."""
        picture = self._node(self._sampler, "image_cond_latents", ENCODE, ENCODE_FUN)
        start = self._node(self._sampler, "samples", EMPTY, ENCODE)
        denoise = self._sampler.values["denoise_strength"]
        if picture is not None:
            self._pictures(picture)
        if start is not None and start.kind == ENCODE:
            self._clip(start, denoise)
        elif denoise != 1:
            self._notes.append(
                f"denoise_strength {denoise:g} is not carried over: without a clip there is nothing to redraw"
            )
        if start is not None and start.kind == EMPTY:
            sides = [self._from.value(start, name, int) for name in ("height", "width")]
            if None not in sides:
                self._options.setdefault("size", f"{sides[0]}x{sides[1]}")

    def _pictures(self, node: Node) -> None:
        self._options["image"] = self._from.file(node, "start_image", "IMAGE", self._size)
        if "end_image" in node.links:
            self._options["last_image"] = self._from.file(node, "end_image", "IMAGE", self._size)
        if noise := node.values["noise_aug_strength"]:
            self._options["image_noise"] = noise
        whole = {"strength": 1, "start_percent": 0, "end_percent": 1}
        for name in (name for name, usual in whole.items() if node.values.get(name, usual) != usual):
            self._notes.append(f"{name} of {node} is not carried over: a picture counts whole, in all steps")

    def _clip(self, node: Node, denoise: float) -> None:
        self._options["video"] = self._from.file(node, "start_image", "VIDEO", self._size)
        self._options["strength"] = denoise
        if "end_image" in node.links:
            self._notes.append(f"end_image of {node} is not carried over")

    def _size(self, height: int, width: int) -> None:
        self._options.setdefault("size", f"{height}x{width}")

    def _extras(self) -> None:
        makers: Mapping[str, tuple[str, Callable[[Node], None]]] = {
            "context_options": ("CogVideoContextOptions", self._windows),
            "feta_args": ("CogVideoEnhanceAVideo", self._enhance),
            "teacache_args": ("CogVideoXTeaCache", self._teacache),
        }
        for name, (kind, read) in makers.items():
            if (node := self._node(self._sampler, name, kind)) is not None:
                read(node)
        for name, instead in NOT_CARRIED.items():
            if (found := self._graph.source(self._sampler, name)) is not None:
                self._notes.append(f"{found[0]} is not carried over; {instead}")

    def _windows(self, node: Node) -> None:
        values = node.values
        policy = POLICIES.get(values["context_schedule"])
        if policy is None:
            self._notes.append(
                f"{node} is not carried over: its schedule {quoted(values['context_schedule'])} is not known"
            )
            return
        strides = 1 if policy == "static" else max(1, values["context_stride"] // 4)
        noise = "free" if values["freenoise"] else "plain"
        frames, overlap = values["context_frames"], values["context_overlap"]
        self._options["windows"] = f"{frames}:{overlap},policy={policy},strides={strides},noise={noise}"

    def _enhance(self, node: Node) -> None:
        self._options["enhance"] = node.values["weight"]
        if (node.values["start_percent"], node.values["end_percent"]) != (0, 1):
            self._notes.append(f"{node} counts in all steps here, not in a part of them")

    def _teacache(self, node: Node) -> None:
        self._options["reuse"] = f"teacache:{node.values['rel_l1_thresh']:g}"
        self._notes.append("TeaCache is lossy, and its threshold may mean another share of steps here")

    def _rate(self) -> None:
        """Frames per second of the file that is made of this sampler's frames, or of the only one that is made."""
        makers = self._graph.of_kind(*COMBINES)
        own = [node for node in makers if self._is_of_sampler(node)] or (makers if len(makers) == 1 else [])
        rates = [node.values.get(COMBINES[node.kind]) for node in own]
        if rates and type(rates[0]) in (int, float):
            self._options["fps"] = rates[0]

    def _is_of_sampler(self, node: Node) -> bool:
        pictures = self._graph.source(node, "images")
        if pictures is None or pictures[0].kind != DECODE:
            return False
        latents = self._graph.source(pictures[0], "samples")
        return latents is not None and latents[0] is self._sampler

    def _model(self) -> tuple[str | None, tuple[tuple[str, float], ...]]:
        node = self._node(self._sampler, "model", *MODELS)
        if node is None or not node.values["model"]:
            self._notes.append("the workflow names no model that is known here; give --model")
            return None, ()
        values, name = node.values, node.values["model"]
        model = PUBLISHED.get(name, name)
        if node.kind != MODELS[0]:
            model = below(self._comfyui, "models/diffusion_models", name)
            self._notes.append(
                f"{name} is a transformer alone: give --vae, --t5 and --tokenizer, of docs/files.md, too"
            )
        if values.get("quantization", "disabled") != "disabled":
            self._notes.append(
                f"quantization {quoted(values['quantization'])} is not carried over; --quantize int8 saves as much"
            )
        if values.get("enable_sequential_cpu_offload"):
            self._notes.append("enable_sequential_cpu_offload is not carried over; --memory auto is alike")
        for name in ("block_edit",):
            if (found := self._graph.source(node, name)) is not None:
                self._notes.append(f"{found[0]} is not carried over: no blocks are left out here")
        return model, self._loras(node)

    def _loras(self, node: Node) -> tuple[tuple[str, float], ...]:
        """The chain of LoRAs, the first of which was loaded first."""
        found: list[tuple[str, float]] = []
        seen, one = set[str](), self._node(node, "lora", *LORAS)
        while one is not None:
            if one.id in seen:
                raise ValueError(f"{one} comes from itself")
            seen.add(one.id)
            if one.values["strength"]:
                found.insert(
                    0, (below(self._comfyui, LORAS[one.kind], one.values["lora"]), float(one.values["strength"]))
                )
            one = self._node(one, "prev_lora", *LORAS)
        return tuple(found)


def one_line(text: str) -> str:
    """A prompt without line ends and control characters, which the tokenizer takes for spaces anyway."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
