"""Prompts of CogVideo (2022) to ids: SentencePiece's pieces after the 20,000 codes of pictures, and three words more.

Source: icetk 0.0.7, `icetk/text_tokenizer.py`.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from cogvx_jax import git_lfs
from cogvx_jax.convert.cogvideo2022_sizes import CHINESE
from cogvx_jax.json_files import POINTER, quoted
from cogvx_jax.models.cogvideo2022.configs import ADDED, LINE_BREAK, MAX_TEXT, PAD, START_OF_IMAGE, TEXT_OFFSET
from cogvx_jax.models.cogvideo2022.transformer import Text
from cogvx_jax.pipelines.tokenizer import check_sentencepiece
from cogvx_jax.storage import open_files, parent_and_name

MAX_BYTES = 64 * 2**20  # of the model's file
HAN = (CHINESE, "Japanese", "Korean")  # languages that are written with Chinese letters, too
FIRST_SUFFIX, GUIDE = " 高清摄影", "视频"  # "high-definition photograph"; "video"


class TextTokenizer:
    """`encode` and `decode`; `ids` of single pieces."""

    def __init__(self, processor: Any, where: str, offset: int = TEXT_OFFSET, language: str = CHINESE):
        self._processor, self.where, self.offset, self.language = processor, where, offset, language
        self.pad, self.line_break, self.start_of_image = map(self._id, (PAD, LINE_BREAK, START_OF_IMAGE))

    @classmethod
    def read(cls, place: str | Path, *, offset: int = TEXT_OFFSET, language: str = CHINESE) -> Self:
        """The tokenizer of a file as `ice_text.model`.

        Args:
          offset: ids below are codes of pictures.
          language: of the prompts that the model reads.
        Raises: FileNotFoundError; ValueError for another file.
        """
        folder, name = parent_and_name(place)
        data = open_files(folder).bytes(name, MAX_BYTES)
        try:
            if data.startswith(git_lfs.START):
                raise ValueError(POINTER)
            check_sentencepiece(data)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        return cls(_processor(data, str(place)), str(place), offset, language)

    @property
    def size(self) -> int:
        """Ids, those of pictures among them."""
        return self.offset + int(self._processor.get_piece_size())

    def encode(self, text: str) -> list[int]:
        """A line break is the piece `<n>` or, as in the reference, white space: see `icetk`'s `ignore_linebreak`."""
        return [self.offset + piece for piece in self._processor.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids that are no codes of pictures."""
        return str(self._processor.decode([int(i) - self.offset for i in ids if i >= self.offset]))

    def _id(self, piece: str) -> int:
        found = int(self._processor.piece_to_id(piece))
        if self._processor.id_to_piece(found) != piece:
            raise ValueError(f"{self.where} has no piece {piece}: it is not CogVideo's tokenizer, ice_text.model")
        return self.offset + found


def first_frame_text(tokenizer: TextTokenizer, prompt: str) -> list[int]:
    """What the first frame is made of."""
    return tokenizer.encode(prompt + FIRST_SUFFIX)


def frames_text(tokenizer: TextTokenizer, prompt: str, seconds: float) -> list[int]:
    """What other frames are made of.

    Args:
      seconds: 4.0 for key frames; for frames in between half of it, and half of that.
    """
    return [*tokenizer.encode(f"{float(seconds)}秒"), tokenizer.line_break, *tokenizer.encode(prompt)]


def check_prompts(tokenizer: TextTokenizer, prompts: Sequence[str]) -> None:
    """As `check_texts`; warns of prompts that are in another language than the model reads, by their letters."""
    check_texts(tokenizer, prompts)
    for prompt in prompts:
        chinese = any("\u4e00" <= letter <= "\u9fff" for letter in prompt)
        if tokenizer.language == CHINESE and not chinese:
            said = "no Chinese in it, which is what CogVideo (2022) was trained on"
        elif tokenizer.language not in HAN and chinese:
            said = f"Chinese in it, but this CogVideo (2022) was trained on {tokenizer.language}"
        else:
            continue
        warnings.warn(
            f"the prompt {quoted(prompt[:40])} has {said}; translate it first, or give --enhance-prompt with "
            "OPENAI_BASE_URL or OPENAI_API_KEY set",
            stacklevel=3,
        )


def check_texts(tokenizer: TextTokenizer, prompts: Sequence[str]) -> None:
    """Raises: ValueError for an empty prompt, or one that is too long."""
    for prompt in prompts:
        if not prompt.strip():
            raise ValueError(f"a prompt is empty; this CogVideo (2022) reads a sentence in {tokenizer.language}")
        length = longest_text(tokenizer, prompt)
        if length > MAX_TEXT:
            around = length - len(tokenizer.encode(prompt))
            raise ValueError(
                f"the prompt {quoted(prompt[:40])} takes {length} tokens, {around} of them for what is put around it; "
                f"CogVideo (2022) reads {MAX_TEXT}: shorten it"
            )


def longest_text(tokenizer: TextTokenizer, prompt: str) -> int:
    """Tokens of a prompt with what is put around it, the most of what it is read as."""
    texts = first_frame_text(tokenizer, prompt), frames_text(tokenizer, f"{prompt} {GUIDE}", 4.0)
    return max(map(len, texts))


def batch_of(tokenizer: TextTokenizer, texts: Sequence[Sequence[int]], length: int = MAX_TEXT) -> Text:
    """Ids padded in front: (B, length)."""
    ids = np.full((len(texts), length), tokenizer.pad, np.int32)
    real = np.zeros(ids.shape, bool)
    for row, text in enumerate(texts):
        ids[row, length - len(text) :] = text
        real[row, length - len(text) :] = True
    return Text(ids, real)  # type: ignore[arg-type]


def _processor(data: bytes, where: str) -> Any:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as messages

    proto = messages.ModelProto.FromString(data)  # type: ignore[attr-defined]  # made at import
    present = {piece.piece for piece in proto.pieces}
    for piece in ADDED:
        if piece not in present:
            proto.pieces.add(piece=piece, score=0)
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error)[:200].split())
        raise ValueError(f"{where} is damaged, or no SentencePiece model: {said}") from None
