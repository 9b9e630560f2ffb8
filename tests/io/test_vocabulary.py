"""Tokenizer files: byte pairs from vocab.json and merges.txt, tokens that other files add,
and files that ask for too much."""

import json
import random
from base64 import b64encode

import pytest
from tokenizers import AddedToken, Tokenizer as FastTokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from live import live
from minivlm.io.text import tokenizer as text_module
from minivlm.io.text.formats import IMAGE
from minivlm.io.text.tokenizer import Tokenizer
from minivlm.io.text.vocabulary import FILES, has_tokenizer
from pruning.base import UserError

WORDS = "What is shown in this image? How many boats are on the lake? It's 3.14, they're 42\nsystem user assistant\n\n"
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<IMG_CONTEXT>", "<img>", "</img>")
LETTERS = ["the", " lake", " What", "é", "e\u0301", "日本", "😀", "\n", "\n\n", " ", "  ", "\t", "'s", "'RE", "3",
           "42", ".", "?!", "<", "|", "\u00a0", "<img>", "<IMG>", "<|im_end|>", "<|im_start|>user\n"]


def trained():
    """Byte pairs over bytes, 300 pieces."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, initial_alphabet=alphabet)
    fast.train_from_iterator([WORDS] * 2, trainer)
    return fast


def pairs(folder, kind="Qwen2Tokenizer", marks=MARKS, **settings):
    """A folder as Qwen2's: vocab.json, merges.txt, added_tokens.json from 300 on, tokenizer_config.json."""
    model = json.loads(trained().to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n")
    (folder / "added_tokens.json").write_text(json.dumps({mark: 300 + i for i, mark in enumerate(marks)}))
    settings = dict(tokenizer_class=kind, eos_token="<|im_end|>", **settings)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def added(*marks, start=300, **flags):
    """{id: token} as tokenizer_config.json has it."""
    flags = dict(dict(special=True, normalized=False, lstrip=False, rstrip=False, single_word=False), **flags)
    return {str(start + i): dict(content=mark, **flags) for i, mark in enumerate(marks)}


def stored(folder, fast, **settings):
    """A folder with this tokenizer.json."""
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def texts(seed=0, count=200):
    draw = random.Random(seed)
    return ["".join(draw.choices(LETTERS, k=draw.randint(0, 12))) for _ in range(count)]


# --- vocab.json and merges.txt --------------------------------------------------------------------------------------

def test_qwen2_by_the_letter(tmp_path):
    """Digits one by one, a contraction for itself, é in one spelling; marks are one id; nothing in front;
    the text comes back."""
    tokenizer = Tokenizer(pairs(tmp_path), 303)
    pieces = tokenizer.pieces(tokenizer.encode("lake's 42é\n"))
    assert pieces[-3:] == ["Ã", "©", "Ċ"] and pieces[-6:-3] == ["Ġ", "4", "2"]
    assert tokenizer.encode("e\u0301") == tokenizer.encode("é") and tokenizer.bos is None and tokenizer.eos == 302
    assert tokenizer.encode(IMAGE) == [304, 303, 305]
    assert tokenizer.decode(tokenizer.encode("What is <b>?  日本 😀\n")) == "What is <b>?  日本 😀\n"


def test_gpt2_cuts_otherwise(tmp_path):
    """Digits stay together, and no spelling of é is changed."""
    tokenizer = Tokenizer(pairs(tmp_path, "GPT2Tokenizer"), 310)
    assert len(tokenizer.encode("e\u0301")) > len(tokenizer.encode("é")) and tokenizer.image == 310
    assert tokenizer.encode("What<|im_end|>")[-1] == 302


@live
@pytest.mark.parametrize("kind", ["Qwen2Tokenizer", "Qwen2TokenizerFast", "GPT2Tokenizer"])
@pytest.mark.parametrize("newer", [False, True])
def test_pairs_as_transformers_reads_them(tmp_path, kind, newer):
    from transformers import AutoTokenizer
    pairs(tmp_path, kind, **(dict(added_tokens_decoder=added(*MARKS)) if newer else {}))
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type="qwen2" if "Qwen" in kind else "gpt2")))
    reference, tokenizer = AutoTokenizer.from_pretrained(tmp_path), Tokenizer(tmp_path)
    for text in texts():
        assert tokenizer.encode(text) == reference(text).input_ids, text
    assert tokenizer.decode(range(303)) == reference.decode(range(303), skip_special_tokens=True)


@pytest.mark.parametrize("change, message", [
    (lambda f: (f / "merges.txt").unlink(), "merges.txt is not beside it"),
    (lambda f: (f / "merges.txt").write_text("a b c\n"), "no pair: 'a b c'"),
    (lambda f: (f / "merges.txt").write_text("qq zz\n"), "qq"),
    (lambda f: (f / "merges.txt").write_bytes(b"\xff \xfe\n"), "merges.txt|decode"),
    (lambda f: (f / "vocab.json").write_text("[1, 2]"), "vocab.json cannot be read"),
    (lambda f: (f / "vocab.json").write_text('{"a": "b"}'), "vocab.json cannot be read"),
    (lambda f: (f / "vocab.json").write_text("{"), "vocab.json cannot be read"),
    (lambda f: pairs(f, "CodeGenTokenizer"), "tokenizer_class CodeGenTokenizer is not known"),
    (lambda f: (f / "added_tokens.json").write_text('{"<img>": "x"}'), "are no tokens with ids"),
    (lambda f: (f / "added_tokens.json").write_text('{"<img>": null}'), "are no tokens with ids"),
    (lambda f: (f / "added_tokens.json").write_text('{"<img>": 7}'), "'<img>' is added as 7, and here it is 300"),
    (lambda f: (f / "added_tokens.json").write_text('{"<img>": 1000000000}'),
     "is added as 1000000000, and there are 300 before it"),
    (lambda f: pairs(f, added_tokens_decoder=[1]), "are no tokens with ids"),
    (lambda f: pairs(f, added_tokens_decoder={"300": "<img>"}), "are no tokens with ids"),
    (lambda f: pairs(f, added_tokens_decoder={"300": {"content": 5}}), "are no tokens with ids"),
], ids=range(15))
def test_pairs_that_cannot_be_read(tmp_path, change, message):
    change(pairs(tmp_path))
    with pytest.raises(UserError, match=message) as error:
        Tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("settings", [
    dict(bos_token=5),
    dict(bos_token="\ud800"),
    dict(bos_token=[]),
    dict(bos_token={}),
    dict(eos_token=dict(content=5)),
    dict(tokenizer_class=5),
    dict(tokenizer_class=["x"]),
    dict(additional_special_tokens=5),
    dict(chat_template=5),
    dict(additional_special_tokens=[5, {}]),
], ids=ascii)
def test_settings_of_a_wrong_kind_are_none(tmp_path, settings):
    """They name no token; the file's own are enough."""
    fast = trained()
    fast.add_special_tokens(["</s>"])
    assert Tokenizer(stored(tmp_path, fast, **settings)).encode("the lake</s>")[-1] == 300
    (tmp_path / "added_tokens.json").write_text('{"<a>": 301}')
    assert Tokenizer(tmp_path).encode("<a>")[-1] == 301


def test_which_files_are_a_tokenizer(tmp_path):
    assert not has_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert not has_tokenizer(tmp_path)
    for name in FILES:
        (tmp_path / name).write_text("{}")
        assert has_tokenizer(tmp_path)
        (tmp_path / name).unlink()


# --- tokens that other files add ------------------------------------------------------------------------------------

@live
@pytest.mark.parametrize("flags", [
    dict(),
    dict(special=False),
    dict(special=False, normalized=True),
    dict(lstrip=True),
    dict(rstrip=True),
    dict(single_word=True),
])
def test_the_configs_tokens_beside_a_tokenizer_json(tmp_path, flags):
    """The file has none of them; a space beside them belongs to them, or not; as in transformers."""
    from transformers import AutoTokenizer
    fast = trained()
    fast.normalizer = normalizers.Lowercase()          # a normalized token is looked for in what this leaves
    stored(tmp_path, fast, tokenizer_class="PreTrainedTokenizerFast", added_tokens_decoder=added(*MARKS, **flags))
    reference, tokenizer = AutoTokenizer.from_pretrained(tmp_path), Tokenizer(tmp_path)
    for text in texts(1):
        assert tokenizer.encode(text, bos=False) == reference(text).input_ids, text
        ids = reference(text).input_ids
        assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)


def test_a_token_of_the_config_keeps_its_id(tmp_path):
    """Ids that nobody names are left free; one that the file has already under another id is refused."""
    tokenizer = Tokenizer(stored(tmp_path, trained(), added_tokens_decoder=added("<a>", start=310)))
    assert tokenizer.encode("<a>", bos=False) == [310]
    fast = trained()
    fast.add_special_tokens([AddedToken("<b>", normalized=False)])
    tokenizer = Tokenizer(stored(tmp_path, fast, added_tokens_decoder=added("<b>", start=300)))
    assert tokenizer.encode("<b>", bos=False) == [300]
    with pytest.raises(UserError, match="'Ġ' is added as 310, and here it is"):
        Tokenizer(stored(tmp_path, fast, added_tokens_decoder=added("Ġ", start=310)))


def test_a_piece_that_the_config_calls_a_token(tmp_path):
    """It is in the vocabulary, where byte pairs would never make it of its letters."""
    model = json.loads(trained().to_str())
    model["model"]["vocab"]["<|im_start|>"] = 300
    (tmp_path / "tokenizer.json").write_text(json.dumps(model))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(added_tokens_decoder=added("<|im_start|>"))))
    assert Tokenizer(tmp_path).encode("<|im_start|>", bos=False) == [300]


@pytest.mark.parametrize("missing", ["<img>", "</img>", "<IMG_CONTEXT>", "<|im_end|>"])
def test_internvl_without_one_of_its_marks(tmp_path, missing):
    """The language model's own tokenizer with InternVL's weights would read the letters of the mark."""
    folder = pairs(tmp_path, marks=[mark for mark in MARKS if mark != missing])
    message = f"the tokenizer has no {missing.replace('|', '[|]')}: InternVL's own tokenizer files"
    with pytest.raises(UserError, match=message):
        Tokenizer(folder, 303, internvl=True)


# --- files that ask for too much ------------------------------------------------------------------------------------

def charsmap(letters):
    """SentencePiece's rules for characters, with an empty trie and one text of so many letters."""
    return b64encode((4).to_bytes(4, "little") + bytes(4) + b"a" * letters + b"\0").decode()


EXPLODING = {
    "a letter becomes a megabyte": dict(normalizer=normalizers.Replace("a", "b" * 10 ** 6)),
    "ten rules": dict(normalizer=normalizers.Sequence([normalizers.Replace("a", "aaaaaaaaaa")] * 10)),
    "in front": dict(normalizer=normalizers.Prepend("b" * 10 ** 6)),
    "the decoder": dict(decoder=decoders.Sequence([decoders.Replace("a", "aaaaaaaaaa")] * 10)),
    "nested": dict(normalizer=normalizers.Sequence([normalizers.Sequence([normalizers.Replace("a", "b" * 500)])]))}


@pytest.mark.parametrize("name", EXPLODING)
def test_rules_that_make_a_text_enormous(tmp_path, name):
    fast = trained()
    for part, rule in EXPLODING[name].items():
        setattr(fast, part, rule)
    message = "tokenizer.json cannot be read as a tokenizer .its rules can make a text [0-9]+ times longer"
    with pytest.raises(UserError, match=message):
        Tokenizer(stored(tmp_path, fast))


def test_rules_for_characters(tmp_path):
    """SentencePiece's rules: the file of a T5 or XLM has some thousands, and none writes more than a few letters."""
    from minivlm.io.text.vocabulary import _growths
    assert list(_growths([{"type": "Precompiled", "precompiled_charsmap": charsmap(18)}])) == [18]
    assert list(_growths([{"type": "Precompiled", "precompiled_charsmap": charsmap(10 ** 6)}])) == [10 ** 6]


def test_a_piece_of_100_000_letters(tmp_path):
    fast = FastTokenizer(models.WordLevel({"a" * 100_000: 0, "<unk>": 1}, unk_token="<unk>"))
    with pytest.raises(UserError, match="a piece has 100000 letters, and at most 2000 are read"):
        Tokenizer(stored(tmp_path, fast))


@pytest.mark.parametrize("model", [
    models.WordLevel({"a": 0}), models.WordLevel({"a": 0}, unk_token="<u>"),
    models.WordPiece({"a": 0}, unk_token="<u>"), models.Unigram([("a", 0.0)])
], ids=["words", "words, unnamed", "word pieces", "unigram"])
def test_no_unknown_token(tmp_path, model):
    """What is in no vocabulary is a sentence."""
    tokenizer = Tokenizer(stored(tmp_path, FastTokenizer(model)))
    assert tokenizer.encode("a", bos=False) == [0]
    with pytest.raises(UserError, match="the tokenizer cannot encode 'xyz'") as error:
        tokenizer.encode("xyz")
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.internal
def test_a_text_without_end(tmp_path, monkeypatch):
    tokenizer = Tokenizer(stored(tmp_path, trained()))
    monkeypatch.setattr(text_module, "LONGEST_TEXT", 100)
    assert len(tokenizer.encode("lake " * 20)) > 20
    with pytest.raises(UserError, match="the text has 101 characters, which fit into no context"):
        tokenizer.encode("a" * 101)
