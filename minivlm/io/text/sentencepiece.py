"""SentencePiece's tokenizer.model, read without that library: the original LLaVA's checkpoints have no other tokenizer.

The file is a protocol buffer. Field 1, repeated, is a piece with its score and type. Field 2 says how it was trained
(its field 3 is the model type; 2 is byte-pair encoding). Field 3 says how text is prepared (2: rules for characters,
3: a space is put in front, 4: runs of spaces are squeezed).
"""

import struct

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
LONGEST_PIECE = 500                    # bytes: its splits are as many strings; LLaMA's longest piece has 48


def from_sentencepiece(data, added=()):
    """The tokenizer of the bytes of a SentencePiece tokenizer.model that is byte-pair encoding, as LLaMA's is.

    The file has scores in place of merges: the pair whose union scores highest is merged first. So the merges are all
    splits of pieces into two pieces, best score first; LLaMA's tokenizer.json has this very list. Raises ValueError.

    `added` {id: {"content": .., "special": ..}} renames pieces, or adds some at the end, as tokenizer_config.json tells.
    """
    message = list(_message(data))
    pieces = [_piece(value) for field, value in message if field == 1]             # (piece, score, type), by id
    for id, token in sorted((int(id), token) for id, token in dict(added).items()):
        if id > len(pieces):
            raise ValueError(f"tokenizer_config.json adds the token {id}, and there are {len(pieces)} before it")
        if id == len(pieces) or pieces[id][0] != token["content"]:
            pieces[id:id + 1] = [(token["content"], 0.0, CONTROL if token.get("special") else USER_DEFINED)]
    parts = dict(message)
    trainer, normalizer = (dict(_message(parts.get(field, b""))) for field in (2, 3))
    if not pieces or trainer.get(3, 2) != 2:
        raise ValueError("it is not byte-pair encoding: make a tokenizer.json of it with transformers")
    if normalizer.get(2) or normalizer.get(4, bool(normalizer)):       # rules for characters, squeezing of spaces
        raise ValueError("it rewrites text before encoding: make a tokenizer.json of it with transformers")
    space = [normalizers.Prepend("▁")] if normalizer.get(3, 1) else []
    fast = Tokenizer(_bpe(pieces))
    fast.normalizer = normalizers.Sequence([*space, normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1 if space else 0, 0)])
    fast.add_special_tokens([AddedToken(p, normalized=False) for p, _, kind in pieces if kind in (UNKNOWN, CONTROL)])
    fast.add_tokens([AddedToken(p, normalized=False) for p, _, kind in pieces if kind == USER_DEFINED])
    return fast


def _bpe(pieces):
    vocab = {piece: id for id, (piece, _, _) in enumerate(pieces)}
    score = {piece: score for piece, score, kind in pieces if kind == NORMAL}
    splits = ((piece[:at], piece[at:]) for piece in score for at in range(1, len(piece)))
    merges = [(left, right) for left, right in splits if left in score and right in score]
    merges.sort(key=lambda pair: (-score[pair[0] + pair[1]], vocab[pair[0]], vocab[pair[1]]))
    unknown = next((piece for piece, _, kind in pieces if kind == UNKNOWN), None)
    spelled = any(kind == BYTE for *_, kind in pieces)
    return models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=spelled)


def _piece(data):
    fields = {1: b"", 2: bytes(4), 3: NORMAL} | dict(_message(data))
    if len(fields[1]) > LONGEST_PIECE:
        raise ValueError(f"a piece has {len(fields[1])} bytes, and at most {LONGEST_PIECE} are read")
    return fields[1].decode("utf-8"), struct.unpack("<f", fields[2])[0], fields[3]


def _message(data):
    """(field number, value) of a protocol buffer: a number, or the bytes of text, fixed-width numbers and messages."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind, size = key & 7, {1: 8, 5: 4}.get(key & 7)
        if kind in (0, 2):
            size, at = _varint(data, at)
        if size is None or kind and at + size > len(data):
            raise ValueError("it is damaged, or no SentencePiece file")
        yield key >> 3, data[at:at + size] if kind else size
        at += size if kind else 0


def _varint(data, at):
    """(number, where it ends): seven bits a byte, the lowest first; the eighth bit says that more follow."""
    number = shift = 0
    while True:
        if shift > 63:
            raise ValueError("it is damaged: a number has more than 64 bits")
        number |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return number, at
