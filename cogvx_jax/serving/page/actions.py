"""What the page does, without a widget: forms in, jobs and settings out. It is thin over the service."""

import dataclasses
import functools
import secrets
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cogvx_jax.configs import Distilled
from cogvx_jax.pipelines.record import read_record
from cogvx_jax.prompting.languages import other_language
from cogvx_jax.serving.asking import Asked, read_asked
from cogvx_jax.serving.bodies import Fields
from cogvx_jax.serving.finishing import enlarges, interpolates
from cogvx_jax.serving.jobs import Job
from cogvx_jax.serving.keys import Key, Keys
from cogvx_jax.serving.looks import Looks
from cogvx_jax.serving.page.fields import SEED, WITH_AUDIO, fields_of, files_of
from cogvx_jax.serving.page.refused import refused_words
from cogvx_jax.serving.page.settings import MOST, Filled, Form, asked_of, of_job, of_record, weights_of
from cogvx_jax.serving.page.words import say
from cogvx_jax.serving.queue import Full, KeyUsed
from cogvx_jax.serving.refusals import Refused, refusal_of
from cogvx_jax.serving.service import Service
from cogvx_jax.serving.worker import is_full

LISTED = 24  # jobs of the history
REMEMBERED = 200  # ids that a browser keeps
# (prompt, path of the first frame or None) -> the better prompt, and who wrote it. Raises ValueError, OSError.
Improve = Callable[[str, str | None], tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Begun:
    """Jobs that were put into the queue.

    notes: sentences beside them, as of why they are fewer than asked for.
    wrong: one of the notes is an error.
    """

    ids: tuple[str, ...]
    notes: tuple[str, ...] = ()
    wrong: bool = False


class Desk:
    """Everything that the page may ask for.

    Args:
      improve: rewrites prompts; None where the server knows no language model.
    """

    def __init__(self, service: Service, keys: Keys, improve: Improve | None = None):
        self.service, self.keys, self._improve = service, keys, improve
        self.looks = Looks(service.queue)
        self.fields, self.files = fields_of(service.spec), files_of(service.spec)

    @functools.cached_property
    def missing(self) -> frozenset[str]:
        """Fields of finishing whose networks' weights, or whose maker, are not here."""
        sounds = self.service.rules.sounds
        there = {"upscaling_scale": enlarges(), "output_fps": interpolates(), WITH_AUDIO: sounds}
        return frozenset(name for name, here in there.items() if not here)

    @property
    def improves(self) -> bool:
        return self._improve is not None

    def start(self, form: Form, key: Key, language: str) -> Begun:
        """Puts the videos of a form into the queue."""
        return self._start(lambda: asked_of(form, self.fields, self.service, language), form.count, key, language)

    def start_fields(self, fields: Mapping[str, Any], count: int, key: Key) -> Begun:
        """The same of fields of the API."""
        service = self.service
        how = service.rules.of_reading | {"fetches": False}
        return self._start(lambda: read_asked(Fields(fields), service.spec, **how), count, key, "en")

    def _start(self, ask: Callable[[], Asked], count: int, key: Key, language: str) -> Begun:
        """Up to `MOST` videos; where the seed is given, each further one has the next."""
        ids: list[str] = []
        try:
            asked = ask()
            notes = self._about_prompt(asked.prompt, language)
            for i in range(min(max(count, 1), MOST)):
                seed = asked.options[SEED] + i if asked.seeded else secrets.randbelow(2**31)
                one = dataclasses.replace(asked, options=asked.options | {SEED: seed})
                ids.append(self.service.submit(one, key).id)
        except Exception as error:
            began = (say("started", language, count=len(ids)),) if ids else ()
            return Begun(tuple(ids), (*began, sentence(error, language)), wrong=True)
        return Begun(tuple(ids), notes)

    def replay(self, id: str, key: Key, language: str) -> Begun:
        """Makes a video once more as it was made."""
        return self._again(id, key, language, self.service.same)

    def remix(self, id: str, prompt: str, key: Key, language: str) -> Begun:
        """Makes a video anew by another prompt."""
        if not prompt.strip():
            return Begun((), (say("refused.no prompt", language),), wrong=True)
        shown = {"remixed_from_video_id": id}
        return self._again(id, key, language, lambda job: self.service.again(job, prompt), shown)

    def _again(
        self, id: str, key: Key, language: str, make: Callable[[Job], Any], shown: dict[str, Any] | None = None
    ) -> Begun:
        try:
            job = self.service.submit(make(self.service.get(id, key)), key, shown=shown)
        except Exception as error:
            return Begun((), (sentence(error, language),), wrong=True)
        return Begun((job.id,))

    def cancel(self, ids: Sequence[str], key: Key) -> None:
        """Stops what waits or runs of these; ids that are gone are passed over."""
        for id in self.service.queue.several(ids, key.name):
            self.service.cancel(id, key)

    def delete(self, id: str, key: Key) -> None:
        """Removes a video; one that is gone is passed over."""
        if id in self.service.queue.several([id], key.name):
            self.service.delete(id, key)

    def settings(self, id: str, key: Key) -> Filled:
        """Of a job. Raises: Refused where it is gone."""
        return of_job(self.service.get(id, key), self.fields, self.service)

    def load(self, path: str, language: str) -> Filled:
        """The settings that a dropped video tells of. Raises: ValueError, a sentence, where it tells of none."""
        name = repr(Path(path).name)
        try:
            record = read_record(path)
        except (ValueError, OSError) as error:
            raise ValueError(str(error).replace(repr(path), name)) from None
        try:
            return of_record(record, self.fields, self.service, language)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name} carries a record with options that cannot be: {error}") from None

    def history(self, ids: Sequence[str], key: Key) -> list[Job]:
        """Jobs, the newest first: all of a key, or, where anyone may ask, those that this browser knows by id."""
        queue = self.service.queue
        if not self.keys.open:
            return queue.page(key.name, after=None, limit=LISTED, newest_first=True)
        found = queue.several(list(ids)[-REMEMBERED:], key.name)
        return sorted(found.values(), key=lambda job: -job.seq)[:LISTED]

    def improve(self, prompt: str, image: str | None, language: str) -> tuple[str, str]:
        """A better prompt, and who wrote it. Raises: ValueError or OSError, a sentence."""
        if self._improve is None:
            raise ValueError(say("improve.none", language))
        return self._improve(prompt, image)

    def few_steps(self, loras: Sequence[str], weights: str, language: str) -> Distilled | None:
        """How the model is sampled from with these LoRAs, where one of them is of few steps.

        Raises: Refused for weights that are none, or for a LoRA of another model.
        """
        form = Form(prompt="", loras=loras, weights=weights)
        return self.service.few_steps(list(zip(loras, weights_of(form, language), strict=True)))

    def _about_prompt(self, prompt: str, language: str) -> tuple[str, ...]:
        found = self.language_note(prompt, language)
        return () if found is None else (found,)

    def language_note(self, prompt: str, language: str) -> str | None:
        """A sentence where a prompt does not look English."""
        found = other_language(prompt)
        return None if found is None else say("other language", language, found=found)


def sentence(error: Exception, language: str) -> str:
    """An error in words for the user; one of this program goes into the log."""
    if isinstance(error, Refused):
        gone = error.code == "not_found"
        return say("refused.gone", language) if gone else refused_words(error.code, str(error), language, error.param)
    if isinstance(error, Full | KeyUsed | OSError):
        refused = refusal_of(error, is_full(error))
        assert refused is not None
        print(f"cogvx: {error}", file=sys.stderr)
        return refused_words(refused.code, str(refused), language)
    if isinstance(error, ValueError):
        return str(error)
    traceback.print_exception(error)
    return say("refused.bug", language)
