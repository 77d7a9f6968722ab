"""What happens on the page: widgets in, `actions.Desk` asked, widgets out."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import gradio as gr
from starlette.concurrency import run_in_threadpool

from cogvx_jax.serving.jobs import COMPLETED, Job
from cogvx_jax.serving.keys import Key
from cogvx_jax.serving.page.actions import REMEMBERED, Begun, Desk, sentence
from cogvx_jax.serving.page.following import Seen, follow
from cogvx_jax.serving.page.layout import Widgets, told
from cogvx_jax.serving.page.prompts import with_movement
from cogvx_jax.serving.page.settings import MOST, Filled, Form
from cogvx_jax.serving.page.uploads import Uploads
from cogvx_jax.serving.page.view import address, card, cards
from cogvx_jax.serving.page.words import LANGUAGES, language_of, say
from cogvx_jax.serving.refusals import Refused
from cogvx_jax.serving.service import Service

FOLLOWED = 100  # pages that follow videos at a time; further ones wait, their jobs do not
IMPROVED = 2  # prompts at a time
OF_FEW_STEPS = ("steps", "guidance_scale", "sampler")  # options that a LoRA of few steps sets
SKIP = gr.skip()
QUICK: dict[str, Any] = dict(show_progress="hidden", concurrency_limit=None, api_visibility="private")
FOLLOWING: dict[str, Any] = dict(concurrency_limit=FOLLOWED, concurrency_id="follow")


class Events:
    """Ties the widgets of a page to what they do, inside the `gr.Blocks` that is open.

    Args:
      uploads: where files of jobs go that the form shows.
    """

    def __init__(self, desk: Desk, page: Widgets, browser: gr.BrowserState, uploads: Uploads):
        self.desk, self.page, self.browser, self._uploads = desk, page, browser, uploads
        self.before, self.none = gr.State(""), gr.State(None)  # the prompt before it was improved; no picture
        self._looking: dict[str | None, object] = {}  # the newest look of each page

    def bind(self, blocks: gr.Blocks) -> None:
        page, parts = self.page, self.page.parts
        form, kept = (
            [*page.inputs.values(), *page.options.values(), *page.files.values()],
            [parts["notice"], self.browser],
        )
        context = [parts["language"], self.browser]
        begun = parts["generate"].click(self.begin, [*form, *context], kept, trigger_mode="multiple", **QUICK)
        self._show_after(begun)
        for widget in (*page.cards, parts["history"]):
            inputs = [page.inputs["prompt"], page.inputs["movement"], *context]
            picked = widget.pick(self.pick, inputs, [*form, *kept], trigger_mode="multiple", **QUICK)
            self._show_after(picked)
        parts["stop"].click(self.stop, self.browser, None, **QUICK)
        parts["refresh"].click(self.history, context, parts["history"], **QUICK)
        parts["dropped"].upload(self.load, [parts["dropped"], parts["language"]], [*form, parts["notice"]], **QUICK)
        self._bind_prompt()
        self._bind_loras()
        self._bind_language(blocks)
        gr.api(self.program, api_name="generate", **FOLLOWING)

    def _show_after(self, event: Any) -> None:
        """Lets an event be followed by its videos until they have ended, then by the history."""
        context = [self.page.parts["language"], self.browser]
        cards = [self.page.parts["none"], *self.page.cards]
        hidden: dict[str, Any] = dict(show_progress="hidden", api_visibility="private")
        event.then(self.history, context, self.page.parts["history"], **QUICK)
        shown = event.then(self.look, context, cards, **hidden, **FOLLOWING)
        shown.then(self.history, context, self.page.parts["history"], **QUICK)

    def _bind_prompt(self) -> None:
        parts, prompt, language = self.page.parts, self.page.inputs["prompt"], self.page.parts["language"]
        outputs = [prompt, self.before, parts["undo"], parts["notice"]]
        image = self.page.files.get("image", self.none)
        how = QUICK | dict(concurrency_limit=IMPROVED, show_progress="minimal")
        parts["improve"].click(self.improve, [prompt, image, language], outputs, **how)
        parts["undo"].click(self.undo, self.before, outputs[:3], **QUICK)
        prompt.blur(self.note, [prompt, language], parts["notice"], **QUICK)

    def _bind_loras(self) -> None:
        """LoRAs of few steps set the steps and what belongs to them, where a user picks them."""
        page, few = self.page, gr.State(False)
        inputs = [page.inputs["loras"], page.inputs["weights"], few, page.parts["language"]]
        outputs = [*(page.options[name] for name in OF_FEW_STEPS), few, page.parts["notice"]]
        page.inputs["loras"].input(self.few_steps, inputs, outputs, **QUICK)

    def _bind_language(self, blocks: gr.Blocks) -> None:
        """The browser says which language, unless this page was told before; all words follow the switch."""
        language, said = self.page.parts["language"], [widget for widget, _ in self.page.said]
        opened = blocks.load(self.greet, self.browser, language, **QUICK)
        self._show_after(opened)
        changed = language.change(self.relabel, [language, self.browser], [self.browser, *said], **QUICK)
        self._show_after(changed)

    # --- videos

    def begin(self, request: gr.Request, *values: Any) -> list[Any]:
        """Puts the videos of the form into the queue."""
        page, language, state = self.page, *values[-2:]
        given = dict(zip([*page.inputs, *page.options, *page.files], values, strict=False))
        form = Form(
            prompt=given["prompt"] or "",
            movement=given["movement"],
            values={name: given[name] for name in page.options},
            files={name: given[name] for name in page.files},
            loras=given["loras"] or (),
            weights=given["weights"] or "",
            seed=None if given["random"] else int(given["seed"] or 0),
            count=int(given["count"] or 1),
        )
        return _kept(self.desk.start(form, self.key(request), language), kept_of(state))

    def pick(
        self, prompt: str, movement: str, language: str, state: Any, event: gr.EventData, request: gr.Request
    ) -> list[Any]:
        """A button of a card: outputs are the form, sentences, and what the browser keeps."""
        what, id, key = str(event._data.get("what")), str(event._data.get("id")), self.key(request)
        kept, form = kept_of(state), [SKIP] * (len(self.page.inputs) + len(self.page.options) + len(self.page.files))
        if what == "cancel":
            self.desk.cancel([id], key)
        elif what == "delete":
            self.desk.delete(id, key)
            kept |= {name: [one for one in kept[name] if one != id] for name in ("ids", "shown")}
        elif what == "reuse":
            try:
                return [*self.filled(self.desk.settings(id, key)), told(say("loaded", language)), kept]
            except Refused as error:
                return [*form, told(sentence(error, language), wrong=True), kept]
        elif what == "remix":
            begun = self.desk.remix(id, with_movement(prompt or "", movement), key, language)
            return [*form, *_kept(begun, kept)]
        elif what == "replay":
            return [*form, *_kept(self.desk.replay(id, key, language), kept)]
        return [*form, SKIP, kept]

    async def look(self, language: str, state: Any, request: gr.Request) -> AsyncIterator[list[Any]]:
        """The videos that a page looks at, until they have ended or it looks at others."""
        ids, before, mine = kept_of(state)["shown"], [""] * MOST, object()
        self._looking[request.session_hash] = mine
        try:
            async for seen in follow(self.desk.looks, ids, self.key(request)):
                if self._looking.get(request.session_hash) is not mine:
                    return
                yield self._cards(seen, language, before)
        finally:
            if self._looking.get(request.session_hash) is mine:
                del self._looking[request.session_hash]

    def _cards(self, seen: Sequence[Seen], language: str, before: list[str]) -> list[Any]:
        """What the cards become; one that stays as it was is left alone, for a video in it may play."""
        now = [card(self.desk.service, one.job, language, left=one.left, place=one.place, plays=True) for one in seen]
        now += [""] * (MOST - len(now))
        changed = [not new or new != old for new, old in zip(now, before, strict=True)]
        before[:] = now
        pairs = zip(now, changed, strict=True)
        cards = [gr.update(value=new, visible=bool(new)) if is_new else SKIP for new, is_new in pairs]
        return [gr.update(visible=not seen), *cards]

    async def program(
        self, request: gr.Request, prompt: str, fields: dict[str, Any] | None = None, count: int = 1
    ) -> list[dict[str, Any]]:
        """For Gradio's clients: makes up to four videos, and says where they are when all have ended.

        Args:
          fields: those of `POST /v1/videos`, such as {"seed": 3, "num_inference_steps": 20}.
        """
        key = self.key(request)
        begun = await run_in_threadpool(self.desk.start_fields, (fields or {}) | {"prompt": prompt}, count, key)
        if not begun.ids:
            raise gr.Error(" ".join(begun.notes))
        async for seen in follow(self.desk.looks, begun.ids, key):
            found = [one.job for one in seen if one.job is not None]
        return [_told_of(self.desk.service, job) for job in found]

    def stop(self, state: Any, request: gr.Request) -> None:
        """Stops all videos that the page shows."""
        self.desk.cancel(kept_of(state)["shown"], self.key(request))

    def history(self, language: str, state: Any, request: gr.Request) -> str:
        try:
            kept = kept_of(state)
            jobs = self.desk.history(kept["ids"], self.key(request))
            jobs = [job for job in jobs if job.ended or job.id not in kept["shown"]]  # those are seen as they change
            return cards(self.desk.service, jobs, language)
        except OSError as error:
            raise gr.Error(sentence(error, language)) from None

    # --- the form

    def filled(self, filled: Filled) -> list[Any]:
        """What the widgets of the form become."""
        page, of_form = (
            self.page,
            dict[str, Any](prompt=filled.prompt, seed=filled.seed, random=False, movement="", count=1),
        )
        of_form["loras"] = [name for name, _ in filled.loras]
        of_form["weights"] = ", ".join(f"{weight:g}" for _, weight in filled.loras)
        options = [filled.values.get(name) for name in page.options]
        files = [self._uploads.copy(filled.files[name]) if name in filled.files else None for name in page.files]
        return [*(of_form[name] for name in page.inputs), *options, *files]

    def load(self, path: str | None, language: str) -> list[Any]:
        """A video was dropped: its settings go into the form."""
        form = [SKIP] * (len(self.page.inputs) + len(self.page.options) + len(self.page.files))
        if path is None:
            return [*form, SKIP]
        try:
            filled = self.desk.load(path, language)
        except ValueError as error:
            return [*form, told(say("loaded.none", language, message=error), wrong=True)]
        return [*self.filled(filled), told(filled.notes)]

    def improve(self, prompt: str, image: str | None, language: str) -> list[Any]:
        """A language model writes the prompt anew."""
        try:
            better, llm = self.desk.improve(prompt or "", image or None, language)
        except (ValueError, OSError) as error:
            said = (
                str(error)
                if str(error) == say("improve.none", language)
                else say("improve.failed", language, message=error)
            )
            return [SKIP, SKIP, SKIP, told(said, wrong=True)]
        return [better, prompt, gr.update(interactive=True), told(say("improve.done", language, llm=llm))]

    def few_steps(self, loras: list[str] | None, weights: str | None, was: bool, language: str) -> list[Any]:
        """LoRAs were picked: the settings that they are for, or again the model's own, which others have left."""
        try:
            found = self.desk.few_steps(loras or (), weights or "", language)
        except Refused as error:
            return [*[SKIP] * len(OF_FEW_STEPS), was, told(sentence(error, language), wrong=True)]
        if found is None:
            own = {field.name: field.shown for field in self.desk.fields}
            return [*(own[name] if was else SKIP for name in OF_FEW_STEPS), False, told("")]
        how = dict(steps=found.steps, guidance=f"{found.guidance_scale:g}", sampler=found.sampler)
        return [found.steps, found.guidance_scale, found.sampler, True, told(say("few steps", language, **how))]

    def undo(self, before: str) -> list[Any]:
        return [before, "", gr.update(interactive=False)]

    def note(self, prompt: str, language: str) -> Any:
        """Warns of a prompt that is not English, as soon as it is written."""
        return told(self.desk.language_note(prompt or "", language) or "")

    # --- who, and in which language

    def key(self, request: gr.Request) -> Key:
        """Of who is signed in."""
        return self.desk.keys.named(request.username)

    def greet(self, state: Any, request: gr.Request) -> str:
        return kept_of(state)["language"] or language_of(request.headers.get("accept-language"))

    def relabel(self, language: str, state: Any) -> list[Any]:
        words = [gr.update(**words(language)) for _, words in self.page.said]
        return [kept_of(state) | {"language": language}, *words]


def kept_of(state: Any) -> dict[str, Any]:
    """What a browser keeps: its language, the ids of its jobs, and of those that it looks at. It may send anything."""
    found = state if isinstance(state, dict) else {}
    lists = {name: found.get(name) for name in ("ids", "shown")}
    ids = {name: [id for id in of if isinstance(id, str)] if isinstance(of, list) else [] for name, of in lists.items()}
    language = found.get("language")
    return {"language": language if language in LANGUAGES else None, "ids": ids["ids"], "shown": ids["shown"][:MOST]}


def _kept(begun: Begun, kept: dict[str, Any]) -> list[Any]:
    """What is said of jobs that were begun, and what the browser keeps then."""
    if begun.ids:
        kept |= {"ids": [*kept["ids"], *begun.ids][-REMEMBERED:], "shown": list(begun.ids)}
    return [told(begun.notes, wrong=begun.wrong), kept]


def _told_of(service: Service, job: Job) -> dict[str, Any]:
    """A job for programs; its address needs no key for a while."""
    of_all = {"id": job.id, "status": job.status, "seed": job.shown["seed"], "notes": job.shown["notes"]}
    if job.status == COMPLETED:
        return of_all | {"url": address(service, job)}
    return of_all | {"error": job.error_message}
