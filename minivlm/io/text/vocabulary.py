"""A folder's tokenizer files: tokenizer.json, or tokenizer.model (SentencePiece), or vocab.json with merges.txt
(Qwen2, GPT-2).

Beside each of them, tokenizer_config.json or the older added_tokens.json may name tokens that the file itself lacks.
What a file says is bounded before any text meets it: a few bytes of it could ask for gigabytes.
"""

import json
from base64 import b64decode
from functools import partial
from math import prod

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from minivlm.io.files import parse_json, read_bytes, read_json
from minivlm.io.text.sentencepiece import from_sentencepiece
from pruning.base import UserError

MOST_RESERVED = 100_000                # ids that are left free before one that is added
LONGEST_PIECE = 2000                   # characters
GROWTH = 100                           # how many times longer the rules of a file may make a text
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def has_tokenizer(folder):
    """Whether one of the files is there."""
    return any((folder / name).is_file() for name in FILES)


def read_vocabulary(folder, settings):
    """The tokenizer of a folder, with the tokens that its settings (tokenizer_config.json) add. Raises UserError."""
    added = added_tokens(folder, settings)
    readers = (("tokenizer.json", Tokenizer.from_buffer), ("tokenizer.model", partial(from_sentencepiece, added=added)),
               ("vocab.json", partial(_from_pairs, folder, settings)))
    for name, read in readers:
        if (folder / name).exists():
            return _read(folder / name, read, added)
    raise UserError(f"{folder} has no tokenizer.json, no tokenizer.model and no vocab.json: copy one of them from "
                    f"the checkpoint")


def _read(path, read, added):
    try:
        tokenizer = read(read_bytes(path))
        _bounded(tokenizer)
        _add(tokenizer, added)
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:                 # the library's own, and its panics, which are no Exception
        sentence = (str(error) or type(error).__name__).splitlines()[0][:300]
        raise UserError(f"{path} cannot be read as a tokenizer ({sentence}): fetch it again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def added_tokens(folder, settings):
    """{id: {"content", "special", ..}} of the tokens that are named beside the vocabulary, in the order of their
    ids."""
    path = folder / "added_tokens.json"
    tokens = settings.get("added_tokens_decoder") or {}
    if not tokens and path.is_file():              # the older file: {token: id}
        named = {"<|endoftext|>"}                  # which the classes name where the settings do not
        named |= {token for key, token in settings.items() if key.endswith("_token") and isinstance(token, str)}
        more = settings.get("additional_special_tokens")
        named |= {token for token in more if isinstance(token, str)} if isinstance(more, list) else set()
        tokens = {id: dict(content=token, special=token in named, normalized=token not in named)
                  for token, id in read_json(path).items()}
    try:
        tokens = sorted((int(id), dict(token)) for id, token in tokens.items())
        assert all(isinstance(token["content"], str) for _, token in tokens)
    except (AttributeError, TypeError, ValueError, KeyError, AssertionError):
        raise UserError(f"{folder}: the added tokens of tokenizer_config.json or added_tokens.json are no tokens "
                        f"with ids: "
                        "fetch both again") from None
    return dict(tokens)


def _add(tokenizer, added):
    """Add the tokens that the tokenizer lacks, each with its id: ids in between are reserved.

    Raises ValueError if that fails.
    """
    there = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for id, token in added.items():
        content = token["content"]
        if content in there:
            continue
        if tokenizer.token_to_id(content) is None:
            free = range(tokenizer.get_vocab_size(), id)
            if len(free) > MOST_RESERVED:
                raise ValueError(f"the token {content!r} is added as {id}, and there are {free.start} before it")
            tokenizer.add_special_tokens([AddedToken(f"<|reserved_token_{i}|>", normalized=False) for i in free])
        flags = {name: bool(token.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "special")}
        flags["normalized"] = bool(token.get("normalized", not flags["special"]))
        add = tokenizer.add_special_tokens if flags["special"] else tokenizer.add_tokens
        add([AddedToken(content, **flags)])
        if tokenizer.token_to_id(content) != id:
            raise ValueError(f"the token {content!r} is added as {id}, and here it is {tokenizer.token_to_id(content)}")


def _from_pairs(folder, settings, data):
    """Byte pairs over bytes: vocab.json {piece: id} and merges.txt, a pair a line; text is cut as the class of the
    tokenizer does."""
    kind = str(settings.get("tokenizer_class") or "Qwen2Tokenizer").removesuffix("Fast")
    if kind not in ("Qwen2Tokenizer", "GPT2Tokenizer"):
        raise ValueError(f"tokenizer_class {kind} is not known beside vocab.json: make a tokenizer.json of it with "
                         f"transformers")
    if not (folder / "merges.txt").is_file():
        raise ValueError("merges.txt is not beside it: fetch it too")
    lines = read_bytes(folder / "merges.txt").decode("utf-8").split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line.strip() and not line.startswith("#version")]
    wrong = next((pair for pair in merges if len(pair) != 2), None)
    if wrong:
        raise ValueError(f"merges.txt has a line that is no pair: {' '.join(wrong)[:80]!r}")
    tokenizer = Tokenizer(models.BPE(parse_json(data.decode("utf-8")), merges))
    spaced = bool(settings.get("add_prefix_space"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    tokenizer.decoder = decoders.ByteLevel()
    if kind == "Qwen2Tokenizer":
        cut = pre_tokenizers.Split(Regex(QWEN2), behavior="isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=spaced, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, letters])
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _bounded(tokenizer):
    """Raises ValueError if the tokenizer could make something enormous of a short text, or of a few ids."""
    longest = max(map(len, tokenizer.get_vocab()), default=0)
    if longest > LONGEST_PIECE:
        raise ValueError(f"a piece has {longest} letters, and at most {LONGEST_PIECE} are read")
    for part in (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder):
        rules = json.loads(part.__getstate__()) if part is not None else None
        if (times := prod(_growths(rules))) > GROWTH:
            raise ValueError(f"its rules can make a text {times} times longer, and at most {GROWTH} times is read")


def _growths(rules):
    """By how much each rule can multiply a text's length: what it writes for one character, or in front of a word."""
    if isinstance(rules, list):
        for rule in rules:
            yield from _growths(rule)
    elif isinstance(rules, dict):
        for key, value in rules.items():
            if key in ("content", "prepend", "prefix", "suffix", "replacement") and isinstance(value, str):
                yield max(1, len(value))
            elif key == "precompiled_charsmap":
                yield _longest_in_charsmap(value)
            else:
                yield from _growths(value)


def _longest_in_charsmap(text):
    """Letters of the longest text in SentencePiece's rules for characters: a trie after its size, then texts that
    end with 0."""
    data = b64decode(text)
    texts = data[4 + int.from_bytes(data[:4], "little"):]
    return max(1, max(len(part.decode("utf-8", "replace")) for part in texts.split(b"\0")))
