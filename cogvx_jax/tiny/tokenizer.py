"""The tokenizer of the `tiny` model: a SentencePiece file with one piece per word of the grammar."""

from collections.abc import Sequence
from pathlib import Path

from cogvx_jax.tiny import shapes

WORD, LETTER = -2.0, -10.0  # log probabilities: a whole word always beats its letters


def build_tokenizer(folder: Path, length: int) -> None:
    """Writes `spiece.model`, `tokenizer.json` and their configuration for T5Tokenizer.

    Case is folded; other words fall apart into letters. Ids: padding 0, end 1, unknown 2.
    """
    from transformers import T5Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(word_model())
    tokenizer = T5Tokenizer.from_pretrained(folder, extra_ids=0, model_max_length=length)
    tokenizer.save_pretrained(folder)


def word_model(more: Sequence[str] = ()) -> bytes:
    """A SentencePiece file with a piece for each word of the grammar, each letter, and each of `more`.

    Case is folded; other words fall apart into letters. Ids: padding 0, end 1, unknown 2.
    """
    import io
    import string

    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as messages

    captions = [str(scene) for scene in shapes.scenes()]
    words = sorted({word for text in captions for word in text.split()})
    # SentencePiece compiles the rules of case folding while it trains; the pieces are then replaced.
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions),
        model_writer=model,
        model_type="unigram",
        vocab_size=64,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc_cf",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    proto = messages.ModelProto.FromString(model.getvalue())  # type: ignore[attr-defined]  # made at import
    del proto.pieces[3:]
    letters = ["▁", *string.ascii_lowercase, *string.digits, *".,;:!?'\"-()"]
    for piece, score in (
        [(f"▁{w}", WORD) for w in words] + [(c, LETTER) for c in letters] + [(piece, WORD) for piece in more]
    ):
        if piece not in {p.piece for p in proto.pieces}:
            proto.pieces.add(piece=piece, score=score)
    return bytes(proto.SerializeToString())
