"""The widgets of the page: the form on one side, videos and history on the other, below each other on a phone."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from cogvx_jax.pipelines.inputs import KINDS
from cogvx_jax.pipelines.request import frame_unit
from cogvx_jax.serving.asking import WHOLE, YES
from cogvx_jax.serving.page.actions import Desk
from cogvx_jax.serving.page.fields import FINER, FINISH, Field
from cogvx_jax.serving.page.prompts import FORMULAS, MOVEMENTS, examples
from cogvx_jax.serving.page.settings import MOST
from cogvx_jax.serving.page.style import CLICKS
from cogvx_jax.serving.page.view import notice
from cogvx_jax.serving.page.words import LANGUAGES, WORDS, say

Words = Callable[[str], dict[str, Any]]  # a language -> properties of a widget
CLIPS = (".mp4", ".webm", ".gif")


@dataclasses.dataclass
class Widgets:
    """All widgets that events read or write.

    said: of each that has words, these in a language.
    """

    said: list[tuple[Any, Words]] = dataclasses.field(default_factory=list)
    inputs: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the form, by name
    files: dict[str, Any] = dataclasses.field(default_factory=dict)  # option -> widget
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # field -> widget
    parts: dict[str, Any] = dataclasses.field(default_factory=dict)  # the others, by name
    cards: list[Any] = dataclasses.field(default_factory=list)

    def put(self, kind: Callable[..., Any], words: Words, **how: Any) -> Any:
        """A widget whose words change with the language; it begins in English."""
        made = kind(**words("en"), **how)
        self.said.append((made, words))
        return made


def lay_out(desk: Desk) -> Widgets:
    """All widgets, inside the `gr.Blocks` that is open."""
    page = Widgets()
    with gr.Row(elem_id="cogvx-head"):
        page.put(gr.Markdown, lambda lang: {"value": f"## {say('title', lang, model=desk.service.model)}"})
        languages = [(name, key) for key, name in LANGUAGES.items()]
        page.parts["language"] = gr.Radio(languages, value="en", show_label=False, container=False, min_width=180)
    with gr.Row(elem_id="cogvx-main"):  # `style` says where these three lie: the videos after the button, on a phone
        with gr.Column(elem_id="cogvx-form"):
            _form(page, desk)
        with gr.Column(elem_id="cogvx-results"):
            _results(page)
        with gr.Column(elem_id="cogvx-more"):
            _numbers(page, desk)
            _finer(page, desk)
    return page


def _form(page: Widgets, desk: Desk) -> None:
    _prompt(page, desk)
    _inputs(page, desk)
    with gr.Row():
        page.parts["generate"] = page.put(gr.Button, _value("generate"), variant="primary", scale=3, min_width=120)
        page.parts["stop"] = page.put(gr.Button, _value("stop"), variant="secondary", scale=1, min_width=80)
    page.parts["notice"] = gr.HTML(elem_id="cogvx-notice")


def _prompt(page: Widgets, desk: Desk) -> None:
    def words(lang: str) -> dict[str, Any]:
        return {"label": say("prompt", lang), "placeholder": say("prompt.placeholder", lang)}

    page.inputs["prompt"] = page.put(gr.Textbox, words, lines=4, max_lines=12, elem_id="cogvx-prompt")
    with gr.Row():
        page.parts["improve"] = page.put(
            gr.Button, _value("improve"), interactive=desk.improves, size="sm", scale=2, min_width=140
        )
        page.parts["undo"] = page.put(gr.Button, _value("undo"), interactive=False, size="sm", scale=1, min_width=80)
    if not desk.improves:
        page.put(gr.Markdown, _value("improve.none"), elem_classes="cogvx-help")
    page.inputs["movement"] = page.put(gr.Dropdown, _movements, value="")
    with page.put(gr.Accordion, _label("formulas"), open=False):
        page.put(gr.Markdown, lambda lang: {"value": FORMULAS[lang]})
    with page.put(gr.Accordion, _label("examples"), open=False):
        page.parts["examples"] = gr.Examples([[one] for one in examples(desk.service.spec)], page.inputs["prompt"])


def _movements(lang: str) -> dict[str, Any]:
    names = [(say("movement.none", lang), ""), *((getattr(one, lang), key) for key, one in MOVEMENTS.items())]
    return {"label": say("movement", lang), "info": say("movement.help", lang), "choices": names}


def _inputs(page: Widgets, desk: Desk) -> None:
    """What the video is made of beside the prompt; what the served model cannot take says so."""
    model = desk.service.model
    with gr.Tabs():
        with page.put(gr.Tab, _label("from text")):
            needs = "text.needs" if _needs(desk) else "from text.help"
            page.put(gr.Markdown, _value(needs, model=model), elem_classes="cogvx-help")
        with page.put(gr.Tab, _label("from image")):
            pictures = [option for option, is_clip in desk.files.items() if not is_clip]
            _files(page, desk, pictures, "image.none")
        with page.put(gr.Tab, _label("from clip")):
            clips = [option for option, is_clip in desk.files.items() if is_clip]
            first = [option for option in clips if option in ("video", "control")] or clips[:1]
            _files(page, desk, first, "clip.none")
            if rest := [option for option in clips if option not in first]:
                with page.put(gr.Accordion, _label("more clips"), open=False):
                    _files(page, desk, rest, "clip.none")
            _of(page, desk, "clip")


def _needs(desk: Desk) -> bool:
    return bool(KINDS[desk.service.spec.kind].needs)


def _files(page: Widgets, desk: Desk, options: Sequence[str], none: str) -> None:
    if not options:
        page.put(gr.Markdown, _value(none, model=desk.service.model), elem_classes="cogvx-help")
    for option in options:
        if not desk.files[option]:
            how: dict[str, Any] = dict(type="filepath", image_mode=None, sources=["upload", "clipboard"], height=220)
            page.files[option] = page.put(gr.Image, _label(option), **how)
        elif option == "mask":  # a picture or a clip
            kinds = [*CLIPS, ".png", ".jpg", ".jpeg", ".webp"]
            page.files[option] = page.put(gr.File, _label(option), file_types=kinds, type="filepath")
        else:
            page.files[option] = page.put(gr.Video, _label(option), sources=["upload"], include_audio=True, height=220)


def _numbers(page: Widgets, desk: Desk) -> None:
    """The settings that most videos want, and the seed."""
    _of(page, desk, "prompt")
    with page.put(gr.Accordion, _label("settings"), open=True):
        with gr.Row():
            _of(page, desk, "video")
        with gr.Row():
            how: dict[str, Any] = dict(precision=0, value=0, min_width=140)
            page.inputs["seed"] = page.put(gr.Number, _explained("seed"), **how)
            page.inputs["random"] = page.put(gr.Checkbox, _label("random"), value=True, min_width=140)
        page.inputs["count"] = page.put(gr.Radio, _explained("count"), choices=list(range(1, MOST + 1)), value=1)
        names = sorted(desk.service.adapters.names())
        page.inputs["loras"] = page.put(gr.Dropdown, _explained("loras"), choices=names, multiselect=True)
        page.inputs["weights"] = page.put(gr.Textbox, _explained("weights"), max_lines=1)


def _finer(page: Widgets, desk: Desk) -> None:
    with page.put(gr.Accordion, _label("finer"), open=False):
        _of(page, desk, FINER)
    with page.put(gr.Accordion, _label("dropped"), open=False):
        page.put(gr.Markdown, _value("dropped.help"), elem_classes="cogvx-help")
        kinds = [".mp4", ".webm"]
        page.parts["dropped"] = gr.File(show_label=False, file_types=kinds, type="filepath", height=120)
    with page.put(gr.Accordion, _label("finish"), open=False):
        with gr.Row():
            _of(page, desk, FINISH)


def _of(page: Widgets, desk: Desk, place: str) -> None:
    """The widgets of all fields of a place."""
    for field in (one for one in desk.fields if one.place == place):
        there: dict[str, Any] = {"interactive": False} if field.name in desk.missing else {}
        page.options[field.name] = page.put(*_widget(field, desk), **there)


def _widget(field: Field, desk: Desk) -> tuple[Callable[..., Any], Words]:
    """The kind of a field's widget, with all but its words, and these."""

    def words(lang: str) -> dict[str, Any]:
        return _words_of(field, desk, lang)

    def make(**given: Any) -> Any:
        how = dict(min_width=140) | given
        if field.kind == YES:
            return gr.Checkbox(value=False, **how)
        if field.choices:
            none = () if field.own else ("",)
            return gr.Dropdown([*none, *field.choices], value=field.own, allow_custom_value=field.free, **how)
        if field.is_part:
            return gr.Slider(0, 1, value=field.shown, step=0.01, **how)
        if field.is_number and field.own:
            step: dict[str, Any] = dict(precision=0) if field.kind == WHOLE else dict(step=0.5)
            return gr.Number(value=field.shown, minimum=field.low, maximum=field.high, **step, **how)
        return gr.Textbox(max_lines=2, **how)  # of numbers too: Gradio's own field of them is never empty

    return make, words


def _words_of(field: Field, desk: Desk, lang: str) -> dict[str, Any]:
    """Label and help of a field: of the table of words, or else the option's own."""
    spec = desk.service.spec
    if field.name not in WORDS:
        return {"label": field.name.replace("_", " "), "info": field.help}
    own = spec.defaults
    values = {"unit": frame_unit(spec), "own": own.num_frames, "seconds": f"{own.num_frames / own.fps:.3g}"}
    key = f"{field.name}.none" if field.name in desk.missing else f"{field.name}.help"
    return {"label": say(field.name, lang), "info": say(key, lang, **values) if key in WORDS else field.help}


def _results(page: Widgets) -> None:
    page.put(gr.Markdown, lambda lang: {"value": f"### {say('results', lang)}"})
    page.parts["none"] = page.put(gr.Markdown, _value("nothing yet"), elem_classes="cogvx-help")
    with gr.Column(elem_id="cogvx-cards"):
        page.cards = [gr.HTML(visible=False, js_on_load=CLICKS, elem_classes="cogvx-one") for _ in range(MOST)]
    with gr.Row(equal_height=True):
        page.put(gr.Markdown, lambda lang: {"value": f"### {say('history', lang)}"})
        page.parts["refresh"] = page.put(gr.Button, _value("refresh"), size="sm", min_width=80, scale=0)
    page.parts["history"] = gr.HTML(js_on_load=CLICKS, elem_id="cogvx-history")


def told(words: Sequence[str] | str, *, wrong: bool = False) -> Any:
    """What the place for sentences becomes."""
    return gr.update(value=notice(words, wrong=wrong))


def _label(key: str) -> Words:
    return lambda lang: {"label": say(key, lang)}


def _value(key: str, **values: Any) -> Words:
    return lambda lang: {"value": say(key, lang, **values)}


def _explained(key: str) -> Words:
    return lambda lang: {"label": say(key, lang), "info": say(f"{key}.help", lang)}
