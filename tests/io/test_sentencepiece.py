"""tokenizer.model without sentencepiece: files typed by hand, LLaMA's own ids, and the library if it is installed."""

import struct

import pytest
from hypothesis import given, strategies as st

from minivlm.io.text.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, from_sentencepiece
from minivlm.io.text.tokenizer import Tokenizer
from paths import PARITY
from pruning.base import UserError

BPE, LLAMA = b"\x12\x02\x18\x02", b"\x1a\x04\x18\x01\x20\x00"          # trained as 2; a space in front, none squeezed
START = [("<unk>", 0, UNKNOWN), ("<s>", 0, CONTROL), ("</s>", 0, CONTROL)]


def field(number, content):
    """A field of bytes: its number and wire type 2, its length in groups of seven bits, the bytes."""
    length, left = b"", len(content)
    while left > 127:
        length, left = length + bytes([left & 127 | 128]), left >> 7
    return bytes([number << 3 | 2]) + length + bytes([left]) + content


def model(pieces, rest=BPE + LLAMA):
    """The file of [(piece, score, type)]."""
    return b"".join(field(1, field(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + bytes([0x18, kind]))
                    for piece, score, kind in pieces) + rest


def ids(pieces, text, rest=BPE + LLAMA):
    return from_sentencepiece(model(pieces, rest)).encode(text, add_special_tokens=False).ids


def test_the_best_score_is_merged_first():
    """▁abc: "bc" (-1) beats "ab" (-2), so ▁ a bc, and then ▁a (-3): ▁a bc. By id or by place it would be ab."""
    def pieces(score):
        return START + [(piece, score.get(piece, -9), NORMAL) for piece in ["ab", "bc", "▁a", "▁", "a", "b", "c"]]
    assert ids(pieces({"bc": -1, "ab": -2, "▁a": -3}), "abc") == [5, 4]
    assert ids(pieces({"bc": -2, "ab": -1, "▁a": -3}), "abc") == [6, 3, 9]        # ▁ ab c
    assert ids(pieces({"bc": -2, "ab": -3, "▁a": -1}), "abc") == [5, 4]           # ▁a bc


def test_bytes_unknown_and_marks():
    """é is C3 A9: bytes if the file has them all, else one <unk> for a run. Marks cut the text; "<0x41>" is a word."""
    letters = [(c, -1, NORMAL) for c in ["▁", "a", "<", "0", "x", "4", "1", ">", "<0", "<0x", "<0x4", "<0x41"]]
    spelled = START + [(f"<0x{b:02X}>", 0, BYTE) for b in range(256)] + letters
    assert ids(spelled, "aé") == [259, 260, 3 + 0xC3, 3 + 0xA9]
    assert ids(START + letters, "aéé") == [3, 4, 0]
    assert ids(spelled, "a</s>a") == [259, 260, 2, 259, 260]
    assert ids(spelled, "<0x41>") == [259, 270, 266]                   # <0x41 and >, which together are no word
    assert from_sentencepiece(model(spelled)).decode([1, 259, 260, 3 + 0xC3, 3 + 0xA9, 2]) == "aé"


def test_defined_pieces_and_no_space_in_front():
    pieces = START + [("a", -1, NORMAL), ("b", -2, NORMAL), ("▁", -3, NORMAL), ("ab", -4, USER_DEFINED)]
    tight = b"\x1a\x04\x18\x00\x20\x00"
    assert ids(pieces, "aab b", BPE + tight) == [3, 6, 5, 4]
    fast = from_sentencepiece(model(pieces, BPE + tight))
    assert fast.decode([5, 3, 6]) == " aab"                            # not a mark: shown, and no space dropped


def test_llamas_own_ids():
    """Its 32000 ids with only the pieces of these texts typed in, at their real places: what the real file gives.

    Scores fall with the id; only runs of spaces are merged last of all.
    """
    real = {298: "▁h", 3610: "él", 417: "lo", 8981: "▁№", 259: "▁▁", 29871: "▁", 29896: "1", 29906: "2", 29941: "3",
            29946: "4", 29945: "5", 29953: "6", 29955: "7", 29947: "8", 29929: "9", 29900: "0", 29889: ".",
            30325: "日", 30346: "本", 30968: "語", 30226: "½"}
    other = dict(zip(range(31000, 31005), "hélo№"))                    # characters of no id of their own here
    named = START + [(f"<0x{b:02X}>", 0, BYTE) for b in range(256)]
    names = [(real | other).get(id, f"<{id}>") for id in range(259, 32000)]
    pieces = named + [(name, -1e9 if name == "▁▁" else -n, NORMAL) for n, name in enumerate(names)]
    assert ids(pieces, "héllo 😀 日本語 ½ №") == [298, 3610, 417, 29871, 243, 162, 155, 131, 29871, 30325, 30346, 30968,
                                              29871, 30226, 8981]
    assert ids(pieces, "1234567890 3.14") == [29871, 29896, 29906, 29941, 29946, 29945, 29953, 29955, 29947, 29929,
                                              29900, 29871, 29941, 29889, 29896, 29946]
    assert ids(pieces, " ") == [259] and ids(pieces, "\n") == [29871, 13]


@given(st.text(st.sampled_from("the image of aBcé日😀\n\t  ?.<>x"), max_size=30))
def test_both_files_of_one_tokenizer_agree(text):
    """The cases stored in the two ways have the same pieces; only the other marks differ."""
    one, two = PARITY / "llava15_original", PARITY / "llava15_hub"
    if not (one / "tokenizer.model").is_file() or not (two / "tokenizer.json").is_file():
        pytest.skip("tests/parity has no case stored in both ways")
    assert Tokenizer(one, 500).encode(text + "<image>") == Tokenizer(two, 500).encode(text + "<image>")


@pytest.mark.parametrize("byte_fallback", [True, False])
def test_the_library_gives_the_same_ids(tmp_path, byte_fallback):
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    (tmp_path / "text").write_text("the image of a man and the images of the answer, an answer\n" * 9)
    sentencepiece.SentencePieceTrainer.train(
        input=tmp_path / "text", model_prefix=tmp_path / "tokenizer", model_type="bpe",
        vocab_size=60 + 256 * byte_fallback, byte_fallback=byte_fallback,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    tokenizer = Tokenizer(tmp_path)
    for text in "the man", "  an  image ", "é the\n", "theanswerimage", "<0x0A>":
        assert tokenizer.encode(text, bos=False) == library.encode(text)


@pytest.mark.parametrize("content, message", [
    (model(START, b"\x12\x02\x18\x01" + LLAMA), "not byte-pair"),
    (b"", "not byte-pair"),
    (model(START, BPE + field(3, field(2, b"rules") + b"\x20\x00")), "rewrites"),
    (model(START, BPE + b"\x1a\x02\x18\x01"), "rewrites"),
    (model(START + [("a" * 100_000, -1, NORMAL)]), "a piece has 100000 bytes, and at most 500"),
    (model(START)[:-3], "damaged"),
    (model(START)[:1], "index"),
    (b"hello", "damaged|no SentencePiece"),
    (b"\x08" + b"\xff" * 20, "a number has more than 64 bits"),
], ids=lambda value: str(value)[:60])
def test_what_cannot_be_read_is_one_line(tmp_path, content, message):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        Tokenizer(tmp_path)
    assert "tokenizer.model" in str(error.value) and "\n" not in str(error.value)
