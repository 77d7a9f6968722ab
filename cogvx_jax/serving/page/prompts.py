"""What helps to write a prompt: formulas, movements of the camera, examples."""

from typing import NamedTuple

from cogvx_jax.configs import ModelSpec
from cogvx_jax.presets import SHIPPED


class Movement(NamedTuple):
    """A movement of the camera: its names in the menu, and the English sentence that a prompt gets."""

    en: str
    zh: str
    sentence: str


STILL = "still"
MOVEMENTS = {
    STILL: Movement("Fixed", "固定镜头", "The camera does not move."),
    "in": Movement("Push in", "推近", "The camera moves slowly towards the subject."),
    "out": Movement("Pull out", "拉远", "The camera moves slowly away from the subject."),
    "left": Movement("Move left", "左移", "The camera moves to the left."),
    "right": Movement("Move right", "右移", "The camera moves to the right."),
    "up": Movement("Rise", "上升", "The camera rises."),
    "down": Movement("Sink", "下降", "The camera sinks."),
    "pan-left": Movement("Pan left", "左摇", "The camera pans to the left."),
    "pan-right": Movement("Pan right", "右摇", "The camera pans to the right."),
    "tilt-up": Movement("Tilt up", "上摇", "The camera tilts up."),
    "tilt-down": Movement("Tilt down", "下摇", "The camera tilts down."),
    "follow": Movement("Follow", "跟拍", "The camera follows the subject."),
    "around": Movement("Around", "环绕", "The camera moves in a circle around the subject."),
    "hand": Movement("Handheld", "手持", "The camera is held by hand and shakes a little."),
}


def with_movement(prompt: str, movement: str | None) -> str:
    """The prompt, with the sentence of a movement after it.

    Args:
      movement: a key of `MOVEMENTS`; None or another word changes nothing.
    """
    found, text = MOVEMENTS.get(movement or ""), prompt.strip()
    if found is None or text.endswith(found.sentence):
        return prompt
    if not text:
        return found.sentence
    return f"{text}{'' if text[-1] in '.!?。！？' else '.'} {found.sentence}"


# Of Qingying's manual, in both languages.
FORMULAS = {
    "en": """\
**Short:** camera + scene + details

*Close up, a cafe in the rain, steam rises from a white cup.*

**Whole:** lens + light + subject and how it looks + motion + scene + mood and style

*Wide lens, low evening sun, a young golden retriever with wet fur, it runs towards us, an empty beach, joyful and
cinematic.*

- Say what is seen and what moves, in English. Long descriptions work best: about 100 words, under 200.
- Say one shot. What the video is not to show belongs into the negative prompt.
- For a video from an image, say what moves; the image shows the rest.""",
    "zh": """\
**简单公式：** 镜头 + 场景 + 细节

*Close up, a cafe in the rain, steam rises from a white cup.*

**完整公式：** 镜头语言 + 光影 + 主体及描述 + 主体运动 + 场景 + 情绪、氛围、风格

*Wide lens, low evening sun, a young golden retriever with wet fur, it runs towards us, an empty beach, joyful and
cinematic.*

- 请用英文写明画面内容和运动。较长的描述效果最好：约 100 个单词，不超过 200 个。
- 只描述一个镜头。不希望出现的内容写入反向提示词。
- 图生视频只需写明什么在动，其余由图片给出。""",
}

DRAWN = (  # of the models of the package, which know such sentences alone
    "a red circle moves right on a white background",
    "a blue star grows on a yellow background",
    "a green square moves up on a black background",
    "a purple triangle shrinks on a white background",
)
FILMED = (
    "A small wooden boat with a red sail drifts across a still mountain lake at dawn. Mist hangs over the water "
    "and parts slowly around the bow, and the first sunlight touches the snow on the peaks behind. Ripples spread "
    "from the hull and break the mirror image of the sky. The camera moves alongside at the height of the water.",
    "Close up of a street cook's hands folding dumplings on a floured board. Warm light from a paper lantern "
    "falls on the dough, flour dusts the air with every movement, and steam from bamboo baskets drifts through "
    "the background. The camera does not move, and the focus stays on the quick fingers.",
    "A curious red fox steps through fresh snow in a birch forest. It stops, lifts one paw, turns its ears and "
    "looks straight at the viewer, its breath white in the cold air. Flakes fall slowly between the trunks. The "
    "camera is low and moves gently towards the fox.",
    "Time lapse of a city harbour from a rooftop as the day ends. Clouds race, shadows climb the towers, ships "
    "leave trails on the darkening water, and one after another the windows and street lamps light up until the "
    "whole shore glitters.",
)


def examples(spec: ModelSpec) -> tuple[str, ...]:
    """Prompts that a model knows what to do with."""
    return DRAWN if spec.name in SHIPPED else FILMED
