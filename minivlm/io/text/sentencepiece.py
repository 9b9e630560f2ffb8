"""SentencePiece's tokenizer.model, read without that library: the original LLaVA's checkpoints have no other tokenizer.

The file is a protocol buffer. Field 1, repeated, is a piece with its score and type. Field 2 says how it was trained
(its field 3 is the model type; 2 is byte-pair encoding). Field 3 says how text is prepared (2: rules for characters,
3: a space is put in front, 4: runs of spaces are squeezed).
"""

import struct
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
LONGEST_PIECE = 500                    # bytes: its splits are as many strings; LLaMA's longest piece has 48


def from_sentencepiece(data, added=()):
    """The tokenizer of the bytes of a SentencePiece tokenizer.model that is byte-pair encoding, as LLaMA's is.

    The file has scores in place of merges: the pair whose union scores highest is merged first. So the merges are all
    splits of pieces into two pieces, best score first; LLaMA's tokenizer.json has this very list. Raises ValueError.

    `added` {id: {"content": .., "special": ..}} renames pieces, or adds some at the end, as tokenizer_config.json says.
    """
    message = list(_message(data))
    pieces = [_piece(value) for field, value in message if field == 1]             # by id
    _add(pieces, dict(added))
    # what the file says of its training, and of the preparation of a text
    parts = dict(message)
    trainer = dict(_message(parts.get(2, b"")))
    preparation = dict(_message(parts.get(3, b"")))
    if not pieces or trainer.get(3, 2) != 2:
        raise ValueError("it is not byte-pair encoding: make a tokenizer.json of it with transformers")
    has_rules = preparation.get(2)
    squeezes = preparation.get(4, bool(preparation))
    if has_rules or squeezes:
        raise ValueError("it rewrites text before encoding: make a tokenizer.json of it with transformers")
    starts_with_space = bool(preparation.get(3, 1))
    # the same as a tokenizer of the library
    fast = Tokenizer(_bpe(pieces))
    to_pieces = [normalizers.Replace(" ", "▁")]
    if starts_with_space:
        to_pieces.insert(0, normalizers.Prepend("▁"))
    fast.normalizer = normalizers.Sequence(to_pieces)
    fast.decoder = decoders.Sequence([
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", int(starts_with_space), 0),
    ])
    fast.add_special_tokens(_marks(pieces, (UNKNOWN, CONTROL)))
    fast.add_tokens(_marks(pieces, (USER_DEFINED,)))
    return fast


def _add(pieces, added):
    """Rename pieces, or add some at the end, in place."""
    tokens = {int(id): token for id, token in added.items()}
    for id in sorted(tokens):
        name = tokens[id]["content"]
        if id > len(pieces):
            raise ValueError(f"tokenizer_config.json adds the token {id}, and there are {len(pieces)} before it")
        if id < len(pieces) and pieces[id].text == name:
            continue
        kind = CONTROL if tokens[id].get("special") else USER_DEFINED
        pieces[id:id + 1] = [Piece(name, 0.0, kind)]


def _marks(pieces, kinds):
    """The pieces of these kinds, as tokens that a text is cut at first."""
    return [AddedToken(piece.text, normalized=False) for piece in pieces if piece.kind in kinds]


def _bpe(pieces):
    """Byte-pair encoding with these pieces."""
    vocab = {piece.text: id for id, piece in enumerate(pieces)}
    score = {piece.text: piece.score for piece in pieces if piece.kind == NORMAL}
    merges = []
    for text in score:
        for at in range(1, len(text)):
            left = text[:at]
            right = text[at:]
            if left in score and right in score:
                merges.append((left, right))

    def rank(pair):
        left, right = pair
        return -score[left + right], vocab[left], vocab[right]
    merges.sort(key=rank)
    unknown = [piece.text for piece in pieces if piece.kind == UNKNOWN] or [None]
    spells_bytes = any(piece.kind == BYTE for piece in pieces)
    return models.BPE(vocab, merges, unk_token=unknown[0], fuse_unk=True, byte_fallback=spells_bytes)


class Piece(NamedTuple):
    """A piece of the vocabulary."""

    text: str
    score: float
    kind: int                          # NORMAL, UNKNOWN, ..


def _piece(data):
    fields = {1: b"", 2: bytes(4), 3: NORMAL} | dict(_message(data))
    if len(fields[1]) > LONGEST_PIECE:
        raise ValueError(f"a piece has {len(fields[1])} bytes, and at most {LONGEST_PIECE} are read")
    (score,) = struct.unpack("<f", fields[2])
    return Piece(fields[1].decode("utf-8"), score, fields[3])


def _message(data):
    """(field number, value) of a protocol buffer: a number, or the bytes of text, fixed-width numbers and messages."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field = key >> 3
        kind = key & 7
        if kind == 0:
            number, at = _varint(data, at)
            yield field, number
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, at = _varint(data, at)
        if size is None or at + size > len(data):
            raise ValueError("it is damaged, or no SentencePiece file")
        yield field, data[at:at + size]
        at += size


def _varint(data, at):
    """(number, where it ends): seven bits a byte, the lowest first; the eighth bit says that more follow."""
    number = 0
    shift = 0
    while True:
        if shift > 63:
            raise ValueError("it is damaged: a number has more than 64 bits")
        byte = data[at]
        number |= (byte & 127) << shift
        at += 1
        shift += 7
        if byte < 128:
            return number, at
