"""What a language model is asked for: the instructions, and examples of how a prompt becomes a description."""

from collections.abc import Callable
from typing import Any, NamedTuple

Message = dict[str, Any]


class Wording(NamedTuple):
    """What a language model is told, by the kind of prompt that a model reads.

    messages: the conversation that asks for a prompt, of what the user says and the first frame's URL.
    shorter: what goes on with it after an answer that was too long, with the number of units that would do.
    unit: tokens of the model that makes the video -> about how many words or letters of the language.
    """

    messages: Callable[[str, str | None], list[Message]]
    shorter: Callable[[str, int], list[Message]]
    unit: float


FROM_TEXT = """\
You write prompts for a text-to-video model. It knows English alone, and draws only what the text says.
The user gives an idea, in whatever language. Answer with one paragraph of English that describes the video of it:
- what is seen, with its looks, material and colour; where it is; the light, and the time of day;
- what moves, how and how fast, from the beginning to the end of one shot of six seconds;
- the camera: how near it is, from where it looks, and whether it moves.
Keep everything that the user says, also names, numbers and words on signs. Add nothing that contradicts it.
Write in the present tense, about 90 words, without headings, lists or quotation marks around the whole.
Answer with the paragraph alone."""

FROM_IMAGE = """\
You write prompts for an image-to-video model. It knows English alone. The picture is the first frame of its video.
The user may say what is to happen, in whatever language. Answer with one paragraph of English, in the present tense:
- begin with what the picture shows, in one sentence;
- then say what moves, how and how fast, for six seconds, and what stays still;
- let nothing appear that could not come out of this picture, and keep the camera where it is: no cut, no other view.
Keep everything that the user says. About 70 words, without headings or lists. Answer with the paragraph alone."""

EXAMPLES = (  # what a user may say -> the answer
    (
        "a dog on the beach",
        "A young golden retriever with wet, tousled fur runs along the edge of a wide sandy beach. Small waves roll in "
        "beside it and break into white foam around its paws, and drops of water fly up at every leap. The low sun of "
        "a late summer evening stands behind the dog and rims its coat with warm light, while the sand ahead shines "
        "like a mirror. The dog turns its head towards the viewer, ears flapping, tongue out. The camera moves beside "
        "it at the height of its shoulders, at the same speed.",
    ),
    (
        "雨夜,一辆出租车",  # a rainy night, a taxi
        "A yellow taxi drives slowly through a narrow city street on a rainy night. Red and blue neon signs shine from "
        "both sides and lie as long, trembling stripes on the wet asphalt. Rain falls in dense lines through the cone "
        "of the headlights, and the wipers sweep the windscreen in a steady beat. Behind the glass the driver is only "
        "a dark outline. Steam rises from a drain and drifts across the street as the car passes. The camera stands "
        "low at the kerb and turns to follow the taxi until its tail lights leave the frame.",
    ),
    (
        "time lapse of a mushroom growing",
        "In a time lapse, a single brown mushroom pushes up through damp green moss on the floor of a forest. First a "
        "small round cap lifts a crumb of earth; then the pale stem stretches, sways a little, and the cap spreads "
        "into a wide umbrella with fine gills below its rim. Around it blades of grass twitch and a dry leaf curls. "
        "Patches of sunlight wander quickly over the moss while the mushroom grows. The background is soft and dark "
        "green. The camera is very near, at the height of the ground, and does not move.",
    ),
)
WITHOUT_WISH = "Say what happens next in this picture."


def messages(prompt: str, image_url: str | None) -> list[Message]:
    """The conversation that asks for a description. `image_url` is of the first frame, such as a data: URL."""
    if image_url is not None:
        parts = [
            {"type": "text", "text": prompt or WITHOUT_WISH},
            {"type": "image_url", "image_url": {"url": image_url}},
        ]
        return [{"role": "system", "content": FROM_IMAGE}, {"role": "user", "content": parts}]
    shown = [
        message
        for wish, answer in EXAMPLES
        for message in ({"role": "user", "content": wish}, {"role": "assistant", "content": answer})
    ]
    return [{"role": "system", "content": FROM_TEXT}, *shown, {"role": "user", "content": prompt}]


def shorter(answer: str, words: int) -> list[Message]:
    """What goes on with a conversation whose answer was too long."""
    said = f"That is too long. Say the same in at most {words} words."
    return [{"role": "assistant", "content": answer}, {"role": "user", "content": said}]


ENGLISH = Wording(messages, shorter, 0.7)  # T5 has 226 tokens for about 170 words

CHINESE_SENTENCE = """\
You write prompts for a text-to-video model of 2022. It reads Simplified Chinese alone, and one short sentence.
The user gives an idea, in whatever language. Answer with one sentence in Simplified Chinese that says who or what is
seen, what it does, and where. Leave out style, light and camera unless the user names them. Keep everything else that
the user says. At most 25 characters, no quotation marks, no Latin letters. Answer with the sentence alone."""
CHINESE_EXAMPLES = (  # what a user may say -> the answer
    ("a lion is drinking water from a glass", "一头狮子正在用玻璃杯喝水"),
    ("Ein Kind fährt im Park auf einem roten Fahrrad.", "一个孩子在公园里骑红色的自行车"),
    ("时间流逝，夜空中的星星", "夜空中的星星随时间缓缓移动"),  # time passes, stars in the night sky
)


def chinese_messages(prompt: str, image_url: str | None) -> list[Message]:
    """As `messages`, for one short sentence in Chinese."""
    shown = [
        message
        for wish, answer in CHINESE_EXAMPLES
        for message in ({"role": "user", "content": wish}, {"role": "assistant", "content": answer})
    ]
    asked: Any = prompt
    if image_url is not None:
        picture = {"type": "image_url", "image_url": {"url": image_url}}
        asked = [{"type": "text", "text": prompt or WITHOUT_WISH}, picture]
    return [{"role": "system", "content": CHINESE_SENTENCE}, *shown, {"role": "user", "content": asked}]


def chinese_shorter(answer: str, letters: int) -> list[Message]:
    """As `shorter`."""
    said = f"That is too long. Say the same in at most {letters} Chinese characters."
    return [{"role": "assistant", "content": answer}, {"role": "user", "content": said}]


CHINESE = Wording(chinese_messages, chinese_shorter, 1.0)
