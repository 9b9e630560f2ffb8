"""Text: the ids of the reference library, text that streams as it decodes, and Vicuna's prompts."""

import json

import pytest
from hypothesis import given, strategies as st
from tokenizers import Tokenizer as FastTokenizer, decoders, models, pre_tokenizers

from minivlm.io.text.chatml import INTERNVL2, INTERNVL2_5
from minivlm.io.text.tokenizer import TEMPLATES, Stream, Tokenizer, next_turn, prompt
from paths import CASES, PARITY
from pruning.base import UserError

TEXTS = ["USER: <image>\nWhat is shown in this image? ASSISTANT:", "a<image>b", "<image>", "<image><image>\n", "", "\n",
         "the answer", "x</s>USER: y", "a  b\tc\n\n", "héllo 😀 日本語", "3.14 = ½?", "ends with space ", "<pad>", "<unk>x"]
words = st.text(st.sampled_from("the image of aBcé日😀\n\t  ?.\u00a0"), max_size=25)


@pytest.fixture
def folder(tmp_path):
    """A folder with LLaMA's tokenizer in small, from a recorded case, to be changed."""
    if not (PARITY / "llava15_mha" / "tokenizer.json").is_file():
        pytest.skip("tests/parity/llava15_mha is not there")
    for name in "tokenizer.json", "tokenizer_config.json":
        (tmp_path / name).write_bytes((PARITY / "llava15_mha" / name).read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def llama():
    if not (PARITY / "llava15_mha" / "tokenizer.json").is_file():
        pytest.skip("tests/parity/llava15_mha is not there")
    return Tokenizer(PARITY / "llava15_mha", 500)


def changed(folder, name, **fields):
    """The file with other fields; None takes a field out."""
    content = json.loads((folder / name).read_text()) | fields
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# --- ids ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("case", CASES or ["none"])
def test_recorded_ids(case):
    if case == "none":
        pytest.skip("no recorded case under tests/parity")
    from minivlm.families.registry import read_config
    tokenizer = Tokenizer(PARITY / case, read_config(PARITY / case).image_token_index)
    prompts = json.loads((PARITY / case / "expected.json").read_text())["prompts"]
    prompts = [p for p in prompts if "ids_unexpanded" in p]
    assert prompts
    for p in prompts:
        batch = isinstance(p["text"], list)
        texts, rows = p["text"], p["ids_unexpanded"]
        if not batch:
            texts, rows = [texts], [rows]
        for text, ids in zip(texts, rows):
            assert tokenizer.encode(text) == ids


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_ids_equal_the_reference_library(llama, text, transformers):
    reference = transformers.AutoTokenizer.from_pretrained(PARITY / "llava15_mha")
    assert llama.encode(text) == reference(text).input_ids
    assert llama.decode(llama.encode(text)) == reference.decode(reference(text).input_ids, skip_special_tokens=True)


@given(words)
def test_decoding_gives_the_text_back(llama, text):
    assert llama.decode(llama.encode(text)) == text


@given(words)
def test_a_mark_stands_between_two_texts(llama, text):
    """Each side of a mark is encoded as a text of its own, with its own space before it."""
    assert llama.encode(f"{text}<image>{text}x") == llama.encode(text) + [500] + llama.encode(text + "x", bos=False)


@pytest.mark.parametrize("post_processor", [True, False])
@pytest.mark.parametrize("settings, bos", [
    ({}, [1]), ({"add_bos_token": False}, []), ({"add_bos_token": None}, [1]), ({"bos_token": {"content": "<s>"}}, [1]),
    ({"tokenizer_class": "PreTrainedTokenizerFast"}, [1]),
    ({"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": None}, "the file's"), (None, [1])], ids=str)
def test_a_text_begins_with_bos_once(folder, settings, bos, post_processor):
    """Whether or not the file's post-processor adds it too; only a class that is not LLaMA's leaves it to the file."""
    if settings is None:
        (folder / "tokenizer_config.json").unlink()
    else:
        changed(folder, "tokenizer_config.json", **settings)
    if not post_processor:
        changed(folder, "tokenizer.json", post_processor=None)
    tokenizer = Tokenizer(folder)
    bos = ([1] if post_processor else []) if bos == "the file's" else bos
    assert tokenizer.encode("the") == bos + tokenizer.encode("the", bos=False)
    assert 1 not in tokenizer.encode("the", bos=False)
    assert tokenizer.encode("<s>the") == [1] + tokenizer.encode("the", bos=False)


def test_both_spellings_of_merges(folder):
    """Older files write "a b", newer ones ["a", "b"]."""
    expected = [Tokenizer(folder).encode(text) for text in TEXTS]
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    other = [pair.split(" ") if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    changed(folder, "tokenizer.json", model=model | {"merges": other})
    assert [Tokenizer(folder).encode(text) for text in TEXTS] == expected


@pytest.mark.parametrize("index", [500, 600, None])
def test_the_mark_has_the_callers_id(folder, index):
    """The original LLaVA's files have no <image>, and config.json decides where a file says otherwise."""
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    for added in tokens, [t for t in tokens if t["content"] not in ("<image>", "<pad>")]:
        changed(folder, "tokenizer.json", added_tokens=added)
        tokenizer = Tokenizer(folder, index)
        ids = tokenizer.encode("the<image>the")
        if index is None and added is not tokens:
            assert tokenizer.image is None and tokenizer.pieces(ids)[2:-1] != ["<image>"]
        else:
            assert tokenizer.image == (index or 500) and ids.count(index or 500) == 1
            assert tokenizer.pieces(ids)[1:] == ["▁the", "<image>", "▁the"] and tokenizer.decode(ids) == "the the"


def test_another_token_with_the_id_of_the_mark(folder):
    """config.json gives the mark the id of <pad>: written out, it is no picture."""
    tokenizer = Tokenizer(folder, 501)
    assert tokenizer.encode("the<image>").count(501) == 1
    with pytest.raises(UserError, match="the token <pad> has the id 501, which config.json gives the image mark"):
        tokenizer.encode("the<pad><image>")


def test_a_stored_truncation_or_padding_is_not_applied(folder):
    """tokenizer.json may have been saved by a training script that cut and padded."""
    ids = Tokenizer(folder).encode("the answer is")
    changed(
        folder,
        "tokenizer.json",
        truncation=dict(max_length=2, strategy="LongestFirst", stride=0, direction="Right"),
        padding=dict(strategy={"Fixed": 40}, direction="Left", pad_to_multiple_of=None, pad_id=0, pad_type_id=0,
                     pad_token="<unk>"),
    )
    assert Tokenizer(folder).encode("the answer is") == ids


def test_names_and_pieces(llama):
    assert (llama.bos, llama.eos, llama.image) == (1, 2, 500)
    assert llama.pieces([1, 13, 500, 511, llama.encode("the")[1]]) == ["<s>", "<0x0A>", "<image>", "<511>", "▁the"]
    assert llama.decode([1, 511, -200, *llama.encode("the"), 2, 501]) == "the"     # rows without a piece, marks


# --- streaming ------------------------------------------------------------------------------------------------------

def bytes_tokenizer():
    """A byte-level tokenizer, as Qwen's: each of 256 ids is one byte; 256 is " the", 257 ends in half a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("a", "æ"), ("aæ", "Ĺ")]
    vocab = {piece: id for id, piece in enumerate(alphabet + [a + b for a, b in merges])}
    fast = FastTokenizer(models.BPE(vocab, merges))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return fast


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    bytes_tokenizer().save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


@pytest.mark.parametrize("name", ["llama", "byte_level"])
@given(st.data())
def test_a_stream_equals_decoding_at_once(name, request, data):
    """Whatever the ids: half characters, wrong bytes, lone spaces, marks, ids without a piece."""
    tokenizer = request.getfixturevalue(name)
    space = tokenizer.fast.token_to_id("▁") or 0
    likely = st.sampled_from([space, 3 + 0xE6, 3 + 0x97, 3 + 0xA5, 3 + 0x20, 2, 500])
    ids = data.draw(st.lists(st.one_of(st.integers(0, 520), st.integers(3, 258), likely), max_size=12))
    stream, text = tokenizer.stream(), ""
    for n, id in enumerate(ids):
        text += stream.push(id)
        assert tokenizer.decode(ids).startswith(text), "what is out is final"
    assert text + stream.finish() == tokenizer.decode(ids)


@given(words)
def test_a_stream_gives_a_text_back(llama, text):
    stream = llama.stream()
    assert "".join(map(stream.push, llama.encode(text))) + stream.finish() == text


def test_pieces_come_at_once_and_bytes_when_they_are_sure(llama):
    """Of 😀 = F0 9F 98 80 nothing is sure before the next piece: one wrong byte more would spoil all four."""
    stream, the, space = llama.stream(), llama.fast.token_to_id("▁the"), llama.fast.token_to_id("▁")
    assert [stream.push(id) for id in (1, the, the, 3 + 0xF0, 3 + 0x9F, 3 + 0x98, 3 + 0x80, the)] == \
        ["", "the", " the", "", "", "", "", "😀 the"]
    assert [stream.push(3 + 0x0A), stream.finish()] == ["", "\n"]
    assert [stream.push(id) for id in (space, the, space)] == ["", " the", " "]        # as new: one space dropped
    assert Stream(llama).finish() == ""


# --- prompts --------------------------------------------------------------------------------------------------------

def test_templates_by_the_letter():
    human = ("A chat between a curious human and an artificial intelligence assistant. "
             "The assistant gives helpful, detailed, and polite answers to the human's questions. "
             "USER: <image>\nWhat? ASSISTANT:")
    assert prompt([("What?", None)]) == "USER: <image>\nWhat? ASSISTANT:"
    assert prompt([("What?", None)], template="llava_v1") == human
    assert prompt([("What?", None)], template="vicuna_v1") == human.replace("human", "user")
    assert prompt([("What?", None)], images=0) == "USER: What? ASSISTANT:"
    assert prompt([("What?", None)], images=2) == "USER: <image>\n<image>\nWhat? ASSISTANT:"


def test_further_turns_as_the_released_templates_write_them():
    """llava-1.5's closes an answer with a space; LLaVA's own chat with </s> and none."""
    turns = [("What?", "A cat."), ("Old?", "Yes."), ("Sure?", None)]
    assert prompt(turns) == "USER: <image>\nWhat? ASSISTANT: A cat. USER: Old? ASSISTANT: Yes. USER: Sure? ASSISTANT:"
    assert prompt(turns[:1]) == "USER: <image>\nWhat? ASSISTANT: A cat. "
    end = "What? ASSISTANT: A cat.</s>USER: Old? ASSISTANT: Yes.</s>USER: Sure? ASSISTANT:"
    assert prompt(turns, template="vicuna_v1").endswith(end)


def test_a_question_may_place_its_marks_itself():
    assert prompt([("Is <image> like <image>?", None)], images=2) == "USER: Is <image> like <image>? ASSISTANT:"
    assert prompt([("Hello", "Hi"), ("<image>?", None)]) == "USER: Hello ASSISTANT: Hi USER: <image>? ASSISTANT:"
    assert next_turn("and <image>?", images=1).endswith("USER: and <image>? ASSISTANT:")


def test_internvls_templates_by_the_letter():
    """The three templates differ in what they tell the assistant to be, and in the line break after a turn."""
    asked = "<|im_start|>user\n<image>\nWhat?<|im_end|>{0}<|im_start|>assistant\n"
    two, two_five = INTERNVL2, INTERNVL2_5
    assert prompt([("What?", None)], template="internvl-hf") == asked.format("\n")
    question = [("What?", None)]
    expected = f"<|im_start|>system\n{two}<|im_end|>" + asked.format("")
    assert prompt(question, template="internlm2-chat") == expected
    expected = f"<|im_start|>system\n{two_five}<|im_end|>\n" + asked.format("\n")
    assert prompt(question, template="internvl2_5") == expected
    assert prompt([("What?", None)], template="Hermes-2") == prompt([("What?", None)], template="internlm2-chat")
    assert "商汤" in two and "书生·万象" in two_five


def test_pictures_of_a_chatml_prompt():
    assert prompt([("Both?", None)], 2, "internvl-hf").startswith("<|im_start|>user\n<image>\n<image>\nBoth?")
    with pytest.raises(UserError, match="1 <image> marks for 2 pictures"):
        prompt([("<image>?", None)], 2, "internvl-hf")


@pytest.mark.parametrize("question, images", [("<image>", 0), ("<image>", 2), ("<image> and <image>", 1)])
def test_marks_and_pictures_must_match(question, images):
    with pytest.raises(UserError, match=f"{question.count('<image>')} <image> marks for {images} pictures"):
        prompt([(question, None)], images)


def test_mistral_by_the_letter():
    """The template of LLaVA-NeXT's folder: a space after </s>; its own chat: one before it."""
    turns = [("What?", "A cat."), ("Old?", None)]
    assert prompt(turns, template="mistral") == "[INST] <image>\nWhat? [/INST] A cat.</s> [INST] Old? [/INST]"
    assert prompt(turns, template="mistral_instruct") == "[INST] <image>\nWhat? [/INST] A cat. </s>[INST] Old? [/INST]"
    assert next_turn("Old?", template="mistral") == "</s> [INST] Old? [/INST]"
    assert next_turn("Old?", ended=True, template="mistral") == " [INST] Old? [/INST]"


@pytest.mark.parametrize("template", ["llava_v1", "vicuna_v1"])
def test_a_further_turn_has_no_system_sentence(template):
    assert next_turn("Old?", template=template) == "</s>USER: Old? ASSISTANT:"


def test_an_unknown_template_lists_the_known():
    with pytest.raises(UserError, match=", ".join(TEMPLATES)):
        prompt([("What?", None)], template="alpaca")


@pytest.mark.parametrize("template, ended", [
    ("llava-hf", False), ("llava_v1", False), ("llava_v1", True), ("mistral", False), ("mistral", True)
])
def test_going_on_equals_reading_all_again(llama, template, ended):
    """First prompt, answer as generated (with or without its </s>), next turn: the ids of the whole conversation."""
    asked = prompt([("What?", None)], template=template)
    answer = llama.encode("The man.", bos=False) + [llama.eos] * ended
    going_on = next_turn("Old?", ended, template=template)
    going_on = llama.encode(going_on, bos=False, after="" if ended else asked + " The man.")
    together = llama.encode(prompt([("What?", "The man."), ("Old?", None)], template=template))
    assert llama.encode(asked) + answer + going_on == together


# --- what cannot be read --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, content, message", [
    ("README.md", b"", "no tokenizer.json, no tokenizer.model and no vocab.json"),
    ("tokenizer.json", b"{", "tokenizer.json"),
    ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\n", "tokenizer.json"),
    ("tokenizer.model", b"version https://git-lfs.github.com/spec/v1\n", "no SentencePiece file"),
    ("tokenizer.model", b"", "not byte-pair"),
    ("tokenizer_config.json", b"{", "JSON"),
], ids=str)
def test_a_bad_folder_is_one_line_that_names_it(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        Tokenizer(tmp_path, 500)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_text_that_is_not_unicode(llama):
    """What a shell hands over for bytes that are not UTF-8."""
    with pytest.raises(UserError, match="Unicode"):
        llama.encode("caf\udce9")
