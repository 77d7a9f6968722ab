"""What a server does for whoever asks: jobs in, videos out. The APIs, and a page, are thin over it."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cogvx_jax.configs import Distilled, ModelSpec
from cogvx_jax.models.lora import first_distilled
from cogvx_jax.pipelines.inputs import KINDS as MODEL_KINDS
from cogvx_jax.pipelines.lora import find_lora
from cogvx_jax.pipelines.request import Request, few_steps_note
from cogvx_jax.pipelines.short_schedule import lossy_note
from cogvx_jax.pipelines.together import likeness
from cogvx_jax.serving.adapters import Adapters, Parts, find_parts, without_folders
from cogvx_jax.serving.asking import Asked
from cogvx_jax.serving.composed import COMPOSED
from cogvx_jax.serving.files import CLIPS, check_clip
from cogvx_jax.serving.finishing import finished_facts
from cogvx_jax.serving.jobs import ALIKE, COMPLETED, SOUND, Job, new_id
from cogvx_jax.serving.keys import Key, Signer
from cogvx_jax.serving.making import request_of
from cogvx_jax.serving.queue import Queue, Retention
from cogvx_jax.serving.refusals import Refused
from cogvx_jax.serving.store import ID, WORKFLOW, Store
from cogvx_jax.serving.warned import warned

ROOM = 64 * 2**20  # bytes that the disk must have free, or no job is taken
OF_INPUTS = ("frames", "windows", "strength", "mask_dilation", "control_strength", "control_start", "control_end")
ACTIVE = "active LoRAs of "  # and an owner: what the queue keeps for all processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """How a server answers.

    Args:
      strict: refuse the vendors' sizes and durations that the model does not make, instead of mapping them.
      fetches: take addresses of the open internet as pictures and clips.
      sounds: the workers have a maker of sound.
      url_seconds: for which an address of a video needs no key.
      keep: how much is kept of what has ended.
      public_url: under which clients reach the server, where that is not what they say, as behind a proxy.
      poll: milliseconds after which a client is to ask again.
    """

    strict: bool = False
    fetches: bool = False
    sounds: bool = False
    url_seconds: float = 3600.0
    keep: Retention = Retention()
    public_url: str | None = None
    poll: int = 1000

    @property
    def of_reading(self) -> dict[str, bool]:
        """Of `asking.read_asked`."""
        return {"strict": self.strict, "fetches": self.fetches, "sounds": self.sounds}


class Service:
    """Jobs of one model.

    Args:
      model: its name, as workers have it.
      spec: that requests are checked against.
      check: raises ValueError or OSError for a request that the workers refuse by how they compute.
      enhance: (prompt, image) -> a description that a language model wrote; None where no language model is named.
      parts: what requests may name beside LoRAs.
    """

    def __init__(
        self,
        queue: Queue,
        store: Store,
        *,
        model: str,
        spec: ModelSpec,
        adapters: Adapters | None = None,
        rules: Rules = Rules(),  # noqa: B008
        check: Callable[[Request], None] = lambda request: None,
        enhance: Callable[[str, Any], str] | None = None,
        parts: Parts | None = None,
    ):
        self.queue, self.store, self.model, self.spec = queue, store, model, spec
        self.adapters, self.rules, self._check = adapters or Adapters(None), rules, check
        self._enhance, self.parts = enhance, parts or find_parts()
        self.signer = Signer(queue.kept("secret", lambda: secrets.token_hex(32)), rules.url_seconds)
        self._reading = threading.Lock()  # pictures and clips of one request at a time are in memory

    @property
    def names(self) -> tuple[str, ...]:
        """Under which the model may be asked for."""
        return tuple(dict.fromkeys((self.model, self.spec.name)))

    def check_model(self, name: Any, others: Sequence[str] = ()) -> tuple[str, ...]:
        """Notes of a model's name; `others` are names that mean whichever is served, which is noted.

        Raises: Refused for a model that is not served.
        """
        if name is None or name in self.names:
            return ()
        if name in others and not self.rules.strict:
            return (f"model {name} is not served here; {self.model} makes the video",)
        raise Refused("model_not_found", f"there is no model {str(name)[:80]!r} here; there is {self.model!r}", "model")

    def submit(
        self,
        asked: Asked,
        key: Key,
        *,
        request_key: str | None = None,
        shown: Mapping[str, Any] | None = None,
        repeated: bool = True,
        priority: int = 0,
        extra_seconds: float | None = None,
    ) -> Job:
        """Checks what is asked for, all of it, and puts it into the queue.

        Args:
          request_key: of the client: the same key and request again give the same job.
          shown: what the APIs answer of the job, too.
          repeated: False refuses a key that was used before, also for the same request.
          priority: added to that of the key.
          extra_seconds: by which a video is extended; None is a clip of the model's own.
        Raises: Refused; OSError of queue and disk.
        """
        fingerprint = _fingerprint(asked, extra_seconds)
        if request_key is not None and (before := self.queue.of_request(key.name, request_key)) is not None:
            if before.fingerprint != fingerprint or not repeated:
                raise Refused("request_repeated", "this id of a request was used before; give each request its own")
            return before
        if self.store.free() < ROOM:
            raise Refused("disk_full", "the server's disk is full; try again later")
        id = new_id()
        folder = self.store.make(id)
        try:
            stored = self._stored(asked, folder, key)
            with self._naming(asked, stored, folder):
                completed = self._complete(stored, folder, extra_seconds)
            facts = {"model": self.model, "prompt": asked.prompt} | completed
            facts["notes"] = [*asked.notes, *facts["notes"]]
            self.store.publish(id)
            job, new = self.queue.submit(
                id=id,
                owner=key.name,
                model=self.model,
                asked=stored,
                shown=facts | dict(shown or {}),
                fingerprint=fingerprint,
                request_key=request_key,
                priority=key.priority + priority,
                most=key.jobs,
                size=self.store.size(id),
            )
        except BaseException:
            self.store.remove(id)
            raise
        if not new:  # the same request came twice at a time
            self.store.remove(id)
        return job

    @contextlib.contextmanager
    def _naming(self, asked: Asked, stored: Mapping[str, Any], folder: Path) -> Iterator[None]:
        """Inside, what is refused names the field at fault: one that is refused with the same words by itself."""
        try:
            yield
        except Refused as refused:
            if refused.param is None:
                refused.param = self._field_at_fault(asked, stored, folder, refused.message)
            raise

    def _field_at_fault(self, asked: Asked, stored: Mapping[str, Any], folder: Path, said: str) -> str | None:
        for option, field in asked.fields.items():
            alone = dict(stored) | {"options": {option: asked.options[option]}}
            if option not in COMPOSED:
                alone["files"] = {}
            try:
                request_of(self.spec, alone, folder, self.parts)
            except (ValueError, OSError) as error:
                if self._told(error, folder) == said:
                    return field
        return None

    def _told(self, error: Exception, folder: Path) -> str:
        """An error's words, which do not tell where files lie here."""
        return without_folders(str(error), (folder, *(part.folder for part in self.parts.values())))

    def _stored(self, asked: Asked, folder: Path, key: Key) -> dict[str, Any]:
        """What the worker reads; the files are written. Raises: Refused for a LoRA that is not here."""
        files = {}
        for label, (suffix, data) in asked.files.items():
            files[label] = f"{label}{suffix}"
            (folder / files[label]).write_bytes(data)
        if asked.workflow is not None:
            (folder / WORKFLOW).write_text(asked.workflow, encoding="utf-8")
        loras: list[Any] = self.active(key) if asked.loras is None else [list(one) for one in asked.loras]
        with _refused("loras"):
            for name, _ in loras:
                self.adapters.path(name)
        found = {"prompt": asked.prompt, "options": dict(asked.options), "files": files, "loras": loras}
        return found | ({SOUND: True} if asked.sound else {})

    def _complete(self, stored: dict[str, Any], folder: Path, extra: float | None) -> dict[str, Any]:
        """Checks what is stored and writes into it what it is completed to; gives facts of the video."""
        with _refused("loras"):
            spec = self._spec_with(stored["loras"])
        told = functools.partial(self._told, folder=folder)
        with _refused(None, told), self._reading if stored["files"] else contextlib.nullcontext():
            for label, file in stored["files"].items():
                if Path(file).suffix in CLIPS:
                    check_clip(folder / file, label.partition("-")[0])
            with warned() as warnings:
                request = request_of(spec, stored, folder, self.parts)
            if extra is not None and request.extend is not None:
                more = max(1, round(extra * float(request.fps)))
                stored["options"]["frames"] = len(request.extend) + more
                with warned() as warnings:  # those before were of other frames
                    request = request_of(spec, stored, folder, self.parts)
            self._check(request)
        facts, own = _facts(request), (lossy_note(request, spec), few_steps_note(request, spec))
        facts["notes"] = [note for note in own if note is not None]
        facts["notes"] += [note.replace(f"{folder}/", "") for note in warnings]
        stored["options"] |= {
            "size": f"{request.height}x{request.width}",
            "frames": facts["num_frames"],
            "steps": request.steps,
            "guidance_scale": request.guidance,
            "sampler": request.sampler,
            "seed": request.seed,
        }
        like = likeness(request)
        stored[ALIKE] = None if like is None else f"{like} {json.dumps(stored['loras'])}"
        return facts | finished_facts(request, facts["num_frames"])

    def _spec_with(self, loras: Sequence[Sequence[Any]]) -> ModelSpec:
        """The spec with what distilled LoRAs bring. Raises: ValueError, OSError for LoRAs that cannot be had."""
        return self.spec.distilled(self._distilled(loras))

    def _distilled(self, loras: Sequence[Sequence[Any]]) -> Distilled | None:
        found = [(find_lora(self.adapters.path(name), self.spec).distilled, weight) for name, weight in loras]
        return None if self.spec.defaults.distilled else first_distilled(found)

    def few_steps(self, loras: Sequence[tuple[str, float]]) -> Distilled | None:
        """How the model is sampled from with LoRAs, where one is of few steps; the first of them decides.

        Raises: Refused for a name that is not here, or a LoRA of another model.
        """
        with _refused("loras"):
            return self._distilled(loras)

    def get(self, id: str, key: Key) -> Job:
        """Raises: Refused where there is no such job of this key."""
        job = self.queue.get(id, key.name) if ID.fullmatch(id) else None
        if job is None:
            raise no_such(id)
        return job

    def video_of(self, job: Job) -> Path:
        """The file of a video that is whole. Raises: Refused."""
        if job.status != COMPLETED or job.result is None:
            said = "has failed" if job.ended else "is not ready yet"
            raise Refused("not_ready", f"the video {job.id} {said}; its status is {job.status}")
        try:
            return self.store.fetch(job.id, job.result)
        except FileNotFoundError:
            raise Refused("not_found", f"the file of the video {job.id} is gone") from None

    def cancel(self, id: str, key: Key) -> Job:
        """Ends a job that waits or runs; one that has ended stays as it is. Raises: Refused."""
        self.get(id, key)
        self.queue.cancel(id)
        return self.get(id, key)

    def delete(self, id: str, key: Key) -> None:
        """Removes a job and its files, and stops it. Raises: Refused."""
        self.get(id, key)
        self.queue.delete(id)
        self.store.remove(id)

    def again(self, job: Job, prompt: str) -> Asked:
        """What a remix asks for: the video redrawn by another prompt, or, of a model that takes none, made anew."""
        same = self.same(job)
        options: dict[str, Any] = dict(same.options) | {"seed": secrets.randbelow(2**31)}
        files = same.files
        if self.takes("video"):
            options = {name: value for name, value in options.items() if name not in (*OF_INPUTS, *COMPOSED)}
            files = {"video": (".mp4", self.video_of(job).read_bytes())}
        return dataclasses.replace(same, prompt=prompt, options=options, files=files, seeded=False)

    def same(self, job: Job) -> Asked:
        """What asks for a job's video once more: all that it was completed to, its seed and its files."""
        found = {option: self.store.fetch(job.id, name) for option, name in job.asked["files"].items()}
        files = {option: (file.suffix, file.read_bytes()) for option, file in found.items()}
        loras = tuple((name, weight) for name, weight in job.asked["loras"])
        how: dict[str, Any] = dict(files=files, loras=loras, sound=SOUND in job.asked)
        return Asked(prompt=job.asked["prompt"], options=dict(job.asked["options"]), **how)

    def enhanced(self, prompt: str, image: Any = None) -> str:
        """A prompt as a long English description, by the language model that the server's environment names.

        Args:
          image: the first frame, what `read_image` takes.
        Raises: Refused where none is named, or gives no answer.
        """
        if self._enhance is None:
            said = "no language model is named: the server needs OPENAI_API_KEY, or OPENAI_BASE_URL, in its environment"
            raise Refused("not_implemented", said)
        try:
            return self._enhance(prompt, image)
        except (ValueError, OSError) as error:
            raise Refused("unavailable", str(error)) from None

    def takes(self, option: str) -> bool:
        """Whether the model takes such an input."""
        return option in MODEL_KINDS[self.spec.kind].inputs

    # --- LoRAs that are active for all requests of a key that name none

    def active(self, key: Key) -> list[list[Any]]:
        """Names and weights."""
        return json.loads(self.queue.kept(f"{ACTIVE}{key.name}", lambda: "[]"))

    def set_active(self, loras: Sequence[tuple[str, float]], key: Key) -> None:
        """Raises: Refused for a name that is not here, or a LoRA of another model."""
        with _refused("lora_nickname"):
            for name, _ in loras:
                find_lora(self.adapters.path(name), self.spec)
        self.queue.keep(f"{ACTIVE}{key.name}", [list(one) for one in loras])

    # --- in the background

    def tidy(self) -> None:
        """Removes what is beyond what is kept, and files of jobs that are no more."""
        for id in self.queue.expire(self.rules.keep):
            self.store.remove(id)
        ids = self.store.ids()
        known = [id for i in range(0, len(ids), 500) for id in self.queue.several(ids[i : i + 500])]
        self.store.remove_others(known)
        self.store.forget()

    def expires(self, job: Job) -> float | None:
        """When the files of an ended job may go, in seconds since 1970."""
        if job.finished is None or self.rules.keep.age is None:
            return None
        return job.finished + self.rules.keep.age


def no_such(id: str) -> Refused:
    """The refusal of an id of no job."""
    return Refused("not_found", f"there is no video {id[:60]!r}")


def _facts(request: Request) -> dict[str, Any]:
    """What the APIs answer of a checked request; sizes have the width first."""
    frames = request.frames if request.finished is None else request.finished
    return {
        "size": f"{request.width}x{request.height}",
        "num_frames": frames,
        "fps": round(float(request.fps), 3),
        "seconds": f"{float(frames / request.fps):.4g}",
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "seed": request.seed,
        "task": request.task,
    }


def _fingerprint(asked: Asked, extra: float | None) -> str:
    """Of what is asked for, but for a seed that was drawn here, which differs each time."""
    found = hashlib.sha256(asked.prompt.encode())
    options = {name: value for name, value in asked.options.items() if name != "seed" or asked.seeded}
    facts = [options, asked.loras, asked.user, extra, asked.workflow, *[asked.sound] * asked.sound]
    found.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for option, (_, data) in sorted(asked.files.items()):
        found.update(option.encode() + hashlib.sha256(data).digest())
    return found.hexdigest()


@contextlib.contextmanager
def _refused(param: str | None, told: Callable[[Exception], str] = str) -> Iterator[None]:
    """Inside, an input that cannot be used is the client's fault; `told` words an error."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise Refused("invalid_value", told(error), param) from None
