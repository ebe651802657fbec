"""The vocabulary: SentencePiece pieces, then 100 sentinels, as T5's; read from a file or trained.

Ids: 0 padding, 1 end of sequence, 2 unknown, then the pieces; the last 100 ids are sentinels, the
first sentinel being the last id. The model's table is padded to a multiple of 128 rows.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from deepnarrow.errors import InputError
from deepnarrow_text_t5.cache import cached, digest

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
NUM_SENTINELS = 100
TABLE_MULTIPLE = 128
# 3 special ids and 256 bytes leave too little below; a table larger than T5's is for other corpora.
MIN_PIECES, MAX_PIECES = 512, 32_000
MAX_MODEL_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A SentencePiece model and the ids around it.

    Attributes:
      model: the serialised SentencePiece model.
      num_pieces: its pieces, special ids included (T5: 32000).
    """

    model: bytes
    num_pieces: int

    @property
    def vocab_size(self) -> int:
        """Pieces and sentinels (T5: 32100)."""
        return self.num_pieces + NUM_SENTINELS

    @property
    def table_size(self) -> int:
        """Rows of the embedding table: `vocab_size` rounded up to a multiple of 128 (T5: 32128)."""
        return table_size(self.num_pieces)

    @property
    def first_sentinel(self) -> int:
        """Id of the first sentinel; the others descend from it (T5: 32099)."""
        return self.vocab_size - 1

    @property
    def content_hash(self) -> str:
        """sha256 (hex) of everything that decides an id."""
        return digest([self.model, str(NUM_SENTINELS)])

    @functools.cached_property
    def _processor(self) -> Any:
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without EOS; white space counts as one blank."""
        return self._processor.encode(text)

    def encode_all(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """Returns the ids of each text; the same as `encode` one by one, faster."""
        return self._processor.encode(list(texts), num_threads=num_threads)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids` up to the first EOS; padding and sentinels are left out."""
        pieces = []
        for token in ids:
            if token == EOS_ID:
                break
            if token != PAD_ID and token < self.num_pieces:
                pieces.append(int(token))
        return self._processor.decode(pieces)


def table_size(num_pieces: int) -> int:
    """Returns the rows of the embedding table for so many pieces.

    >>> table_size(32000)
    32128
    """
    used = num_pieces + NUM_SENTINELS
    return -(-used // TABLE_MULTIPLE) * TABLE_MULTIPLE


def load_vocabulary(texts: Sequence[str], num_pieces: int) -> Vocabulary:
    """Returns the vocabulary of `texts`, trained at first use (seconds) and cached from then on.

    Raises:
      InputError: `num_pieces` is out of range, or the texts are too few for it.
    """
    import sentencepiece

    check_pieces(num_pieces)
    key = digest([sentencepiece.__version__, str(num_pieces), *texts])
    model = cached("vocabulary", key, lambda: train_vocabulary(texts, num_pieces))
    return Vocabulary(model, num_pieces)


def read_vocabulary(path: str | Path) -> Vocabulary:
    """Reads a SentencePiece model, e.g. T5's `spiece.model` (32,000 pieces, 32,128 rows).

    Raises:
      InputError: no such file, no SentencePiece model, or special ids that are not T5's.
    """
    where = f"vocabulary '{path}'"
    try:
        size = Path(path).stat().st_size
        if size > MAX_MODEL_BYTES:
            raise InputError(where, "is too large for a SentencePiece model", got=f"{size} bytes",
                             expected=f"at most {MAX_MODEL_BYTES}")
        model = Path(path).read_bytes()
    except OSError as error:
        raise InputError(where, f"cannot be read: {error.strerror}", expected="a SentencePiece "
                         "model, e.g. T5's spiece.model") from error
    return parse_vocabulary(model, where)


def parse_vocabulary(model: bytes, where: str) -> Vocabulary:
    """Returns the vocabulary of a serialised SentencePiece model.

    Raises:
      InputError: it is none, or its special ids are not T5's; `where` names it.
    """
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        known = model and processor.LoadFromSerializedProto(model)
    except RuntimeError:
        known = False
    if not known:
        raise InputError(where, "is no SentencePiece model", hint="T5's is spiece.model, about "
                         "0.8 MB")
    ids = (processor.pad_id(), processor.eos_id(), processor.unk_id())
    if ids != (PAD_ID, EOS_ID, UNK_ID):
        raise InputError(where, "has other special ids than T5's", got=f"pad {ids[0]}, eos "
                         f"{ids[1]}, unk {ids[2]}", expected="pad 0, eos 1, unk 2",
                         hint="train it with pad_id=0 eos_id=1 unk_id=2 bos_id=-1")
    return Vocabulary(model, processor.vocab_size())


def train_vocabulary(texts: Sequence[str], num_pieces: int) -> bytes:
    """Trains a SentencePiece model on the lines of `texts`; the same input gives the same bytes.

    Raises:
      InputError: `num_pieces` is out of range, or the texts are too few for it.
    """
    import sentencepiece

    check_pieces(num_pieces)
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, vocab_size=num_pieces,
            model_type="unigram", byte_fallback=True, num_threads=1, pad_id=PAD_ID, eos_id=EOS_ID,
            unk_id=UNK_ID, bos_id=-1, minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError("vocabulary", "SentencePiece cannot train it", got=f"{num_pieces} pieces "
                         f"from {len(lines)} lines", hint=f"lower num_pieces ({error})") from error
    return model.getvalue()


def check_pieces(num_pieces: int) -> None:
    """Raises `InputError` unless a vocabulary of so many pieces can be trained."""
    if not MIN_PIECES <= num_pieces <= MAX_PIECES:
        raise InputError("vocabulary", "num_pieces is out of range", got=num_pieces,
                         expected=f"{MIN_PIECES}..{MAX_PIECES}")
