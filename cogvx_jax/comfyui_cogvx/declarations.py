"""What the nodes are called, take and give. `v3` and `v1` declare them from here.

Saved workflows keep widget values by their position, and files of the API by their name. So a node's id, the names of
its inputs and their order never change. A new widget comes last, and optional: a test holds the lists.
"""

import dataclasses
from typing import Any

CATEGORY = "CogVideoX (cogvx)"
SERVER, LORAS = "COGVX_SERVER", "COGVX_LORAS"  # kinds of our own
STRING, INT, FLOAT, COMBO = "STRING", "INT", "FLOAT", "COMBO"  # kinds that have a widget
IMAGE, VIDEO = "IMAGE", "VIDEO"
WIDGETS = (STRING, INT, FLOAT, COMBO)
OWN = "own"  # of `sampler`: the model's
MAX_SEED = 2**64 - 1
SAMPLERS = ("ddim", "dpm", "euler", "euler-ancestral", "dpmpp-2m", "unipc", "deis", "heun", "lcm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """Something that a node takes, by a widget or a link.

    low, high, step: of numbers.
    choices: of a COMBO.
    control: let ComfyUI change it after each run; that is a widget more, right after it.
    """

    name: str
    kind: str
    default: Any = None
    low: float | None = None
    high: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    multiline: bool = False
    control: bool = False
    optional: bool = False
    tooltip: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """What V1 has beside the kind."""
        found: dict[str, Any] = {"tooltip": self.tooltip} if self.tooltip else {}
        if self.kind in WIDGETS:
            found["default"] = self.default
        if self.low is not None:
            found |= {"min": self.low, "max": self.high, "step": self.step}
        if self.kind == STRING:
            found["multiline"] = self.multiline
        if self.control:
            found["control_after_generate"] = True
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """Something that a node gives."""

    name: str
    kind: str
    tooltip: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """A node. `id` is what workflows store."""

    id: str
    title: str
    description: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]


def _own(name: str, kind: str, high: float, step: float, tooltip: str) -> Input:
    """A number that is the model's own where it is 0."""
    zero = 0.0 if kind == FLOAT else 0
    told = f"{tooltip}; 0 is the model's own"
    return Input(name=name, kind=kind, default=zero, low=zero, high=high, step=step, tooltip=told)


_SERVER = Input(name="server", kind=SERVER, tooltip="where the video is made")
_LORAS = Input(name="loras", kind=LORAS, optional=True, tooltip="LoRAs of the server")
_PROMPT = Input(name="prompt", kind=STRING, default="", multiline=True, tooltip="what the video shows, in English")
_SEED = Input(
    name="seed",
    kind=INT,
    default=0,
    low=0,
    high=MAX_SEED,
    step=1,
    control=True,
    tooltip="the same seed gives the same video; of 64 bits, the halves are folded into one",
)
# Names are fields of the server's API.
_WIDGETS = (
    _PROMPT,
    Input(name="negative_prompt", kind=STRING, default="", multiline=True, tooltip="what to steer away from"),
    _own("width", INT, 4096, 16, "in pixels, a multiple of 16"),
    _own("height", INT, 4096, 16, "in pixels, a multiple of 16"),
    _own("num_frames", INT, 10_000, 1, "8N+1, of 1.5 models 16N+1"),
    _own("num_inference_steps", INT, 1000, 1, "sampling steps"),
    _own("guidance_scale", FLOAT, 30.0, 0.1, "weight of the prompt; 1 turns guidance off"),
    Input(name="sampler", kind=COMBO, default=OWN, choices=(OWN, *SAMPLERS), tooltip="own is the model's"),
    _own("fps", FLOAT, 240.0, 0.5, "frames per second of the file"),
    _SEED,
    Input(
        name="more",
        kind=STRING,
        default="",
        multiline=True,
        tooltip='other fields of the server, as JSON, such as {"reuse": "teacache:0.2"}',
    ),
)
_VIDEO = (
    Output(name="video", kind=VIDEO, tooltip="the file of the server, which tells how it was made"),
    Output(name="images", kind=IMAGE, tooltip="its frames"),
    Output(name="fps", kind=FLOAT, tooltip="its frames per second"),
    Output(name="info", kind=STRING, tooltip="what the server says of it, as JSON: seed, size, notes"),
)

NODES = (
    Node(
        id="CogvxServer",
        title="CogVideoX server",
        description="A `cogvx serve`, on this machine or another.",
        inputs=(
            Input(name="url", kind=STRING, default="http://127.0.0.1:8000", tooltip="what `cogvx serve` prints"),
            Input(
                name="key",
                kind=STRING,
                default="$COGVX_KEY",
                tooltip="$NAME is a variable of ComfyUI's environment. A key that is typed here is saved in workflows, "
                "and in every file that ComfyUI saves",
            ),
        ),
        outputs=(Output(name="server", kind=SERVER),),
    ),
    Node(
        id="CogvxTextToVideo",
        title="CogVideoX text to video",
        description="Has a video made of a prompt.",
        inputs=(_SERVER, *_WIDGETS, _LORAS),
        outputs=_VIDEO,
    ),
    Node(
        id="CogvxImageToVideo",
        title="CogVideoX image to video",
        description="Has a picture moved by a prompt; for image-to-video and inpainting models.",
        inputs=(
            _SERVER,
            Input(name="image", kind=IMAGE, tooltip="the first frame, which is stretched to the video's size"),
            *_WIDGETS,
            _LORAS,
            Input(name="last_image", kind=IMAGE, optional=True, tooltip="the last frame, for models that take one"),
        ),
        outputs=_VIDEO,
    ),
    Node(
        id="CogvxVideoToVideo",
        title="CogVideoX video to video",
        description="Has a clip redrawn by a prompt; for text-to-video and inpainting models.",
        inputs=(
            _SERVER,
            *_WIDGETS,
            Input(
                name="strength",
                kind=FLOAT,
                default=0.8,
                low=0.01,
                high=1.0,
                step=0.01,
                tooltip="how much is redrawn",
            ),
            _LORAS,
            Input(name="video", kind=VIDEO, optional=True, tooltip="the clip; give it or images"),
            Input(name="images", kind=IMAGE, optional=True, tooltip="the frames of the clip; give them or video"),
        ),
        outputs=_VIDEO,
    ),
    Node(
        id="CogvxLoRA",
        title="CogVideoX LoRA",
        description="A LoRA of the server. Several in a row add up.",
        inputs=(
            Input(name="name", kind=STRING, default="", tooltip="of GET /v1/list_loras"),
            Input(name="weight", kind=FLOAT, default=1.0, low=-10.0, high=10.0, step=0.05, tooltip="its weight"),
            _LORAS,
        ),
        outputs=(Output(name="loras", kind=LORAS),),
    ),
    Node(
        id="CogvxEnhancePrompt",
        title="CogVideoX enhance prompt",
        description="Lets the server's language model describe the video at length, in English.",
        inputs=(
            _SERVER,
            _PROMPT,
            Input(name="image", kind=IMAGE, optional=True, tooltip="the first frame, for a language model that sees"),
        ),
        outputs=(Output(name="prompt", kind=STRING),),
    ),
)
