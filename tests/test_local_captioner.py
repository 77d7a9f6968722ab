"""The captioner on this machine, with a small random model as transformers saves it."""

import concurrent.futures

import numpy as np
import pytest

from cogvx_jax.prepare.captioners import Local
from cogvx_jax.prepare.settings import Captions

TEMPLATE = """{% for m in messages %}{{ m['role'] }} : {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> \
{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}assistant :"""


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        Local(Captions(local=str(tmp_path / "none")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch = pytest.importorskip("torch", reason="runs the models of transformers")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    place = str(tmp_path_factory.mktemp("captioner"))
    torch.manual_seed(0)
    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "user", "assistant", ":", *(f"word{n}" for n in range(56))]
    model = tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=["<image>"], **special
    )
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**small, image_size=32, patch_size=16),
        text_config=transformers.LlamaConfig(
            **small, vocab_size=64, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2
        ),
        image_token_index=4,
        vision_feature_layer=-1,
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(place)
    side = {"height": 32, "width": 32}
    transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side),
        tokenizer=fast,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(place)
    return place


@pytest.mark.full
def test_answers_are_the_same_each_time_and_by_several_threads(folder):
    """They are greedy, so a question has one answer; pictures and their number count."""
    local = Local(Captions(local=folder))
    frames = list(np.random.default_rng(0).integers(0, 255, (3, 40, 60, 3), np.uint8))
    first = local("word3 word4", frames[:2], 8)
    assert first.split() and all(word.startswith("word") for word in first.split() if not word.startswith("<"))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert set(pool.map(lambda _: local("word3 word4", frames[:2], 8), range(3))) == {first}
    assert local("word3 word4", frames, 8) and len(local("word3 word4", frames[:2], 2).split()) <= 2
