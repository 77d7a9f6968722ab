"""How jobs look: a card for each video, and the history, as HTML in which nothing of a user is more than text."""

import html
import urllib.parse
from collections.abc import Sequence
from typing import Any

from cogvx_jax.serving.jobs import CANCELLED, COMPLETED, QUEUED, Job
from cogvx_jax.serving.openai_api import preview_url
from cogvx_jax.serving.page.refused import refused_words
from cogvx_jax.serving.page.words import WORDS, duration, say
from cogvx_jax.serving.service import Service

# What Gradio's templates of HTML would read as their own.
_OF_TEMPLATES = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;", "\\": "&#92;"})
LIVE, DONE = ("cancel",), ("reuse", "remix", "replay", "delete")  # what can be done with a job
SHOWN_PROMPT = 300  # characters


def text(value: Any) -> str:
    """A value as text of HTML and of templates, in attributes too."""
    return html.escape(str(value)).translate(_OF_TEMPLATES)


def card(
    service: Service,
    job: Job | None,
    language: str,
    *,
    left: float | None = None,
    place: int | None = None,
    plays: bool = False,
) -> str:
    """One video: its picture, where it stands, and what can be done.

    Args:
      job: None is one that is not kept any more.
      left: seconds that it will take yet, where that is known.
      place: how many jobs come before it.
      plays: a video begins to play by itself.
    """
    if job is None:
        return f'<div class="cogvx-card"><p class="cogvx-status">{text(say("gone", language))}</p></div>'
    status = text(status_words(service, job, language, left, place))
    kind = "failed" if job.ended and job.status != COMPLETED else job.status
    parts = [_frame(service, job, plays), _bar(job), f'<p class="cogvx-status" role="status">{status}</p>']
    parts += [_about(job, language), _buttons(service, job, language)]
    return f'<div class="cogvx-card cogvx-{kind}" data-id="{text(job.id)}">{"".join(parts)}</div>'


def cards(service: Service, jobs: Sequence[Job], language: str) -> str:
    """The history: jobs as small cards, the newest first; each with its place, no time left."""
    if not jobs:
        return f'<p class="cogvx-empty">{text(say("history.empty", language))}</p>'
    made = "".join(card(service, job, language, place=service.queue.position(job)) for job in jobs)
    keep = service.rules.keep.age
    hours = "" if keep is None else say("history.kept", language, hours=f"{keep / 3600:g}")
    kept = f'<p class="cogvx-empty">{text(hours)}</p>' if hours else ""
    return f'<div class="cogvx-history">{made}</div>{kept}'


def notice(words: Sequence[str] | str, *, wrong: bool = False) -> str:
    """Sentences above the form; "" is none."""
    several = [words] if isinstance(words, str) else words
    said = "".join(f"<p>{text(one)}</p>" for one in several if one)
    return f'<div class="cogvx-notice{" cogvx-wrong" if wrong else ""}" role="status">{said}</div>' if said else ""


def status_words(service: Service, job: Job, language: str, left: float | None, place: int | None) -> str:
    """Where a job stands, in words."""
    if job.status == COMPLETED:
        return say("completed", language, seconds=duration(float(job.shown.get("inference_time_s") or 0), language))
    if job.ended:
        if job.error_code == CANCELLED:
            return say("cancelled", language)
        said = refused_words(job.error_code, job.error_message or "", language)
        return say("failed", language, message=said)
    if job.status == QUEUED and not job.stage:
        if not service.queue.workers():
            return say("queued.no worker", language)
        return say("queued", language, position=place) if place else say("queued.first", language)
    stage = f"stage.{job.stage}"
    said = say(stage, language, step=job.step, steps=job.steps) if stage in WORDS else job.stage
    return said if left is None else f"{said}, {say('left', language, left=duration(left, language))}"


def address(service: Service, job: Job, variant: str = "video") -> str:
    """Of a file of a job on this server, for a while without a key."""
    base = (service.rules.public_url or "").rstrip("/")
    query = service.signer.query(job.id, variant, service.expires(job))
    return f"{base}/v1/videos/{job.id}/content?{urllib.parse.urlencode(query)}"


def _frame(service: Service, job: Job, plays: bool) -> str:
    width, _, height = str(job.shown.get("size", "3x2")).partition("x")
    if job.status == COMPLETED:
        video, still = text(address(service, job)), text(address(service, job, "thumbnail"))
        how = "autoplay" if plays else f'preload="none" poster="{still}"'
        inside = f'<video controls loop muted playsinline {how} src="{video}"></video>'
    elif job.preview is not None:
        inside = f'<img alt="" src="{preview_url(job.preview)}">'
    else:
        inside = ""
    return f'<div class="cogvx-frame" style="aspect-ratio:{text(width)}/{text(height)}">{inside}</div>'


def _bar(job: Job) -> str:
    """How far it is; of a stage without steps, a bar that tells nothing but that something happens."""
    if job.ended or job.status == QUEUED:
        return ""
    known = job.stage == "sampling" and job.steps
    return f'<progress max="{job.steps}" value="{job.step}"></progress>' if known else "<progress></progress>"


def _about(job: Job, language: str) -> str:
    shown = job.shown
    prompt = str(shown.get("prompt", ""))
    prompt = prompt if len(prompt) <= SHOWN_PROMPT else f"{prompt[:SHOWN_PROMPT]}…"
    numbers = {"size": shown.get("size"), "frames": shown.get("num_frames"), "seconds": shown.get("seconds")}
    facts = say("facts", language, seed=shown.get("seed"), **numbers)
    notes = "".join(f'<p class="cogvx-note">{text(note)}</p>' for note in shown.get("notes", ()))
    return f'<p class="cogvx-prompt">{text(prompt)}</p><p class="cogvx-facts">{text(facts)}</p>{notes}'


def _buttons(service: Service, job: Job, language: str) -> str:
    names = LIVE if not job.ended else DONE if job.status == COMPLETED else tuple(n for n in DONE if n != "remix")
    made = [_button(name, job, language) for name in names]
    if job.status == COMPLETED:
        made += [_link(service, job, variant) for variant in ("video", "gif")]
    return f'<div class="cogvx-buttons">{"".join(made)}</div>'


def _button(name: str, job: Job, language: str) -> str:
    help = say(f"do.{name}.help", language) if f"do.{name}.help" in WORDS else ""
    about = f'data-do="{name}" data-id="{text(job.id)}" title="{text(help)}"'
    return f'<button type="button" {about}>{text(say(f"do.{name}", language))}</button>'


def _link(service: Service, job: Job, variant: str) -> str:
    kind = "gif" if variant == "gif" else "mp4"
    return f'<a href="{text(address(service, job, variant))}" download="{text(job.id)}.{kind}">{kind.upper()}</a>'
