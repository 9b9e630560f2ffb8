"""The checkpoint's own chat template: which file it comes from, what it is given, what it may not do;
and the formats known by name."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from live import live
from minivlm.families.internvl_config import InternVLConfig
from minivlm.io.text import render
from minivlm.io.text.formats import FORMATS
from minivlm.io.text.template import TEMPLATES, Jinja, Missing, Raw, chosen, own_template, special_tokens, template_of
from minivlm.io.text.tokenizer import ENDS, next_turn, prompt
from minivlm.lab.cli import session
from minivlm.parts.config import LlavaConfig
from pruning.base import UserError

IMAGES = "{% for c in m['content'] if c['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
TEXTS = "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"
LLAVA = ("{% for m in messages %}{{ m['role'].upper() + ': ' }}" + IMAGES
         + "{% for c in m['content'] if c['type'] == 'text' %}"
         "{% if m['role'] == 'assistant' %}{% generation %}{{ c['text'] + ' ' }}{% endgeneration %}"
         "{% else %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
         "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}")
CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}" + IMAGES + TEXTS
          + "{{ '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
LLAMA3 = ("{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
          + IMAGES + TEXTS + "{{ '<|eot_id|>' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
BAKLLAVA = ("{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}" + IMAGES + TEXTS + "{{ ' [/INST]' }}"
            "{% else %}{{ ' ' }}" + TEXTS + "{{ '<\\\\s> ' }}{% endif %}{% endfor %}")
STRINGS = ("{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
           "{{ raise_exception('roles must alternate') }}{% endif %}"
           "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
           "{% else %}{{ m['content'] | trim + eos_token }}{% endif %}{% endfor %}")
TURNS = [("What?", "A cat."), ("Old?", None)]


def jinja(source, **special):
    return Jinja(source, "the file", special)


def files(folder, **contents):
    """Write files: a string as it is, all else as JSON; "__" stands for "." in their names."""
    for name, content in contents.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text)
    return folder


# --- what is written ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("source, expected", [
    (LLAVA, "USER: <image>\nWhat? ASSISTANT: A cat. USER: Old? ASSISTANT:"),
    (
        CHATML,
        "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
        "<|im_start|>user\nOld?<|im_end|>\n<|im_start|>assistant\n",
    ),
    (BAKLLAVA, "[INST] <image>\nWhat? [/INST] A cat.<\\s> [INST] Old? [/INST]"),
    (STRINGS, "<s>[INST] <image>\nWhat? [/INST]A cat.</s>[INST] Old? [/INST]"),
], ids=["llava", "chatml", "bakllava", "strings"])
def test_turns_by_the_letter(source, expected):
    """One picture, an answered question and an open one: the whole text, the first prompt, and the text after the
    answer."""
    template = jinja(source, bos_token="<s>", eos_token="</s>")
    assert prompt(TURNS, 1, template) == expected
    asked, _, rest = expected.partition("A cat.")
    assert asked.startswith(prompt([("What?", None)], 1, template))
    assert next_turn("Old?", template=template, turns=TURNS[:1]) == rest
    around = template.around([("What?", "A cat."), ("Old?", "Yes.")])
    assert "".join([asked, *around[1:]]).startswith(expected.replace("A cat.", ""))


def test_marks_and_pictures():
    """Marks stand before the first question, or where the questions place them; another number of them is refused."""
    template = jinja(CHATML)
    assert "user\n<image>\n<image>\nBoth?<|im_end|>" in prompt([("Both?", None)], 2, template)
    assert "user\nIs <image> like <image>?<|im_end|>" in prompt([("Is <image> like <image>?", None)], 2, template)
    assert "<image>" not in prompt([("Why?", None)], 0, template)
    with pytest.raises(UserError, match="1 <image> marks for 2 pictures"):
        prompt([("<image>?", None)], 2, template)
    assert next_turn("and <image>?", images=1, template=template, turns=TURNS[:1]).count("<image>") == 1


def test_internvls_mark():
    """Its template writes <IMG_CONTEXT>, for which <image> is short."""
    template = jinja(CHATML.replace("<image>", "<IMG_CONTEXT>"))
    assert prompt(TURNS, 1, template) == prompt(TURNS, 1, "internvl-hf")


def test_blocks_are_trimmed_as_transformers_trims_them():
    indented = jinja("  {% if true %}\n" + CHATML + "\n  {% endif %}\n")
    assert prompt([("What?", None)], 1, indented) == prompt([("What?", None)], 1, "chatml")


@pytest.mark.parametrize("source, message", [
    ("{{ messages[0]['content'] | length }}", "does not write"),
    ("nothing", "does not write a question and its picture"),
    ("{{ raise_exception('only\ntools') }}", "only tools"),
    ("{% if %}", "TemplateSyntaxError"),
    ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    ("{{ messages.clear() }}", "SecurityError"),
    ("{{ 'a' * 10 ** 11 }}", "memory"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "Recursion"),
    ("{{ range(10 ** 9) | list }}", "MAX_RANGE"),
    ("{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
     "memory"),
    ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "more than 4000000 characters"),
    ("x" * 600_000, "600000 characters"),
    ("{% include 'file' %}", "cannot be used"),
], ids=range(13))
def test_a_template_that_writes_no_prompt(source, message):
    with pytest.raises(UserError, match=message) as error:
        prompt([("What?", None)], 1, jinja(source))
    assert "the file" in str(error.value) and "--template" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.internal
@pytest.mark.parametrize("source", ["{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
                                    "{{ (range(9999) | list * 9999) | sort | length }}"])
def test_a_template_without_an_end(monkeypatch, source):
    """It is ended, and the next one is rendered all the same."""
    monkeypatch.setattr(render, "SECONDS", 3)
    with pytest.raises(UserError, match="the file takes more than 3 seconds|memory"):
        render.render(source, {}, "the file")
    monkeypatch.undo()
    assert render.render("{{ 1 + 1 }}", {}) == "2"


def test_the_process_that_renders_imports_no_torch(tmp_path):
    """It is started for every checkpoint with a template: torch alone would take seconds and hundreds of megabytes."""
    python, *file = render.COMMAND
    question = json.dumps(dict(template="{{ 1 + 1 }}", variables={}))
    done = subprocess.run(
        [python, "-X", "importtime", *file], input=question, capture_output=True, text=True, cwd=tmp_path
    )
    assert json.loads(done.stdout) == dict(text="2")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "jinja2" in imported
    assert not imported & {"torch", "minivlm", "pruning", "numpy"}


def test_a_template_that_rewrites_earlier_turns_ends_a_chat():
    """It writes the last question alone with its number: the first prompt is no longer how the text begins."""
    template = jinja(CHATML + "{# #}").source.replace("{% for m", "{{ messages | length }}{% for m", 1)
    with pytest.raises(UserError, match="writes earlier turns otherwise"):
        next_turn("Old?", template=jinja(template), turns=TURNS[:1])
    silent = CHATML.replace(TEXTS, "{% if m['role'] == 'user' %}" + TEXTS + "{% endif %}")
    with pytest.raises(UserError, match="does not write each answer once"):
        jinja(silent).around(TURNS)


# --- which file it comes from ---------------------------------------------------------------------------------------

def test_the_first_of_four_files_counts(tmp_path):
    """As in transformers: the processor's own key, the older JSON file, the jinja file, the tokenizer's key."""
    files(tmp_path, tokenizer_config__json=dict(chat_template="four"))
    assert own_template(tmp_path).source == "four"
    files(tmp_path, chat_template__jinja="three")
    assert own_template(tmp_path).source == "three"
    files(tmp_path, chat_template__json=dict(chat_template="two"))
    assert own_template(tmp_path).source == "two"
    files(tmp_path, processor_config__json=dict(patch_size=14))
    assert own_template(tmp_path).source == "two"
    files(tmp_path, processor_config__json=dict(chat_template="one"))
    assert own_template(tmp_path).source == "one"


@pytest.mark.parametrize("value, source", [
    ([dict(name="rag", template="no"), dict(name="default", template="yes")], "yes"),
    (dict(default="yes", tool="no"), "yes"),
    (None, None),
])
def test_several_templates(tmp_path, value, source):
    files(tmp_path, tokenizer_config__json=dict(chat_template=value))
    own = own_template(tmp_path)
    assert (own and own.source) == source


@pytest.mark.parametrize("value", [5, [], [5], [dict(name="rag", template="no")], True])
def test_no_template_among_what_is_there(tmp_path, value):
    """A model is opened all the same; a question without --template is refused."""
    files(tmp_path, tokenizer_config__json=dict(chat_template=value))
    template = template_of(tmp_path, LlavaConfig())
    unnamed = "tokenizer_config.json: chat_template holds no template named default.*--template"
    with pytest.raises(UserError, match=unnamed):
        prompt([("What?", None)], 1, template)


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="chat_template.jinja cannot be read as a chat template"):
        prompt([("What?", None)], 1, template_of(tmp_path, LlavaConfig()))
    (tmp_path / "chat_template.jinja").write_bytes(b"a" * 3_000_000)
    with pytest.raises(UserError, match="cannot be read as a chat template .it is larger than 1 MiB"):
        prompt([("What?", None)], 1, template_of(tmp_path, LlavaConfig()))


def test_special_tokens(tmp_path):
    """tokenizer_config.json's before special_tokens_map.json's, as strings or objects; null is none."""
    files(tmp_path, tokenizer_config__json=dict(bos_token=None, eos_token=dict(content="</e>")),
          special_tokens_map__json=dict(bos_token="<b>", pad_token="<p>", additional_special_tokens=["<a>"]))
    assert special_tokens(tmp_path) == dict(eos_token="</e>", pad_token="<p>")


# --- the formats known by name --------------------------------------------------------------------------------------

def tokenizer(*pieces):
    """What is asked of a tokenizer: its pieces by name."""
    fast = SimpleNamespace(token_to_id={name: id for id, name in enumerate(pieces)}.get,
                           id_to_token=lambda id: pieces[id])
    return SimpleNamespace(fast=fast, bos=None, eos=None)


@pytest.mark.parametrize("raw, original, pieces, name", [
    (dict(text_config=dict(model_type="llama")), False, ["</s>"], "llava-hf"),
    (dict(text_config={}), False, ["</s>"], "llava-hf"),
    (dict(text_config=dict(model_type="mistral")), False, ["</s>"], "mistral"),
    (dict(model_type="llava_mistral"), True, ["</s>"], "mistral_instruct"),
    (dict(model_type="llava"), True, ["</s>"], "llava-hf"),
    (dict(text_config=dict(model_type="llama")), False, ["<|start_header_id|>"], "llama-3"),
    (dict(model_type="llava_llama"), True, ["<|start_header_id|>"], "llava_llama_3"),
    (dict(text_config=dict(model_type="qwen2")), False, ["<|im_start|>"], "chatml"),
    (dict(text_config=dict(model_type="llama")), False, ["</s>", "<|im_start|>"], "chatml"),
    (dict(model_type="llava"), True, ["</s>", "<|im_start|>"], "chatml_direct"),
    (dict(model_type="qwen2"), True, ["<|im_start|>"], "qwen_1_5"),
    (dict(text_config=dict(model_type="llama")), False, ["</s>", "<|user|>"], "phi-3"),
], ids=str)
def test_family_of_a_folder_without_a_template(tmp_path, raw, original, pieces, name):
    files(tmp_path, config__json=raw)
    assert template_of(tmp_path, LlavaConfig(original=original), tokenizer(*pieces)) == name


@pytest.mark.parametrize(
    "kind, pieces", [("qwen2", ["<|endoftext|>"]), ("llama", ["<|endoftext|>"]), ("gemma", ["</s>"])]
)
def test_another_family_is_not_asked_in_vicunas_words(tmp_path, kind, pieces):
    files(tmp_path, config__json=dict(text_config=dict(model_type=kind)))
    unknown = "no chat template, and its tokenizer is of no family that is known: choose one with --template"
    with pytest.raises(UserError, match=unknown):
        prompt([("What?", None)], 1, template_of(tmp_path, LlavaConfig(), tokenizer(*pieces)))


def test_internvls_own_config_names_its_template(tmp_path):
    """The template in its tokenizer's file is the language model's, and has not the sentence of training."""
    files(tmp_path, tokenizer_config__json=dict(chat_template=CHATML))
    assert template_of(tmp_path, InternVLConfig(original=True, template="Hermes-2")) == "Hermes-2"
    assert template_of(tmp_path, InternVLConfig()).source == CHATML


def test_formats_by_the_letter():
    asked = {
        "llama-3": "<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "phi-3": "<|user|>\n<image>\nWhat?<|end|>\n<|assistant|>\n",
        "chatml": "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n",
        "chatml_direct": "<|im_start|>system\nAnswer the questions.<|im_end|>"
        "<|im_start|>user\n<image>\nWhat?<|im_end|><|im_start|>assistant\n",
        "qwen_1_5": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n",
    }
    for name, text in asked.items():
        assert prompt([("What?", None)], template=name) == text
    first = prompt([("What?", None)], template="llava_llama_3")
    assert first.startswith("<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful")
    second = next_turn("Old?", template="llama-3")
    assert second.startswith("<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nOld?<|eot_id|>")
    assert prompt(TURNS, 1, "phi-3").endswith("\nA cat.<|end|>\n<|user|>\nOld?<|end|>\n<|assistant|>\n")


@pytest.mark.parametrize("name", TEMPLATES)
def test_going_on_is_the_rest_of_the_whole(name):
    whole, asked = prompt(TURNS, 1, name), prompt([("What?", None)], 1, name)
    going_on = next_turn("Old?", template=name, turns=TURNS[:1])
    assert whole.startswith(asked) and whole[len(asked):].strip() == ("A cat." + going_on).strip()
    assert name == "llava-hf" or ENDS.match(going_on)
    rest = going_on if name == "llava-hf" else going_on[ENDS.match(going_on).end(1):]
    assert next_turn("Old?", ended=True, template=name) == rest


# --- what the command line chooses ----------------------------------------------------------------------------------

def arguments(**given):
    return SimpleNamespace(**dict(dict(template=None, system=None, raw=False), **given))


@pytest.fixture
def model(tmp_path):
    return SimpleNamespace(config=LlavaConfig(template="llava_v1"), folder=tmp_path, tokenizer=None)


def test_a_template_from_a_file(tmp_path, model):
    files(tmp_path, own__jinja=LLAMA3, own__json=dict(chat_template=CHATML),
          tokenizer_config__json=dict(bos_token="<|begin|>"))
    own = session.template(arguments(template=str(tmp_path / "own.jinja")), model)
    assert prompt([("What?", None)], 1, own) == "<|begin|>" + prompt([("What?", None)], 1, "llama-3")
    own = session.template(arguments(template=str(tmp_path / "own.json")), model)
    assert prompt(TURNS, 1, own) == prompt(TURNS, 1, "chatml")


@pytest.mark.parametrize("name", ["alpaca", "no/such/file", "", "a\0b", "a" * 5000, "."])
def test_a_template_that_is_none(model, name):
    with pytest.raises(UserError, match="is not known: use one of llava-hf, .*or the path of a jinja file"):
        chosen(name, model.folder)


@pytest.mark.parametrize("name, expected", [
    ("llava_v1", "Be brief. USER: <image>\nWhat? ASSISTANT:"),
    ("llama-3", "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"),
    ("phi-3", "<|system|>\nBe brief.<|end|>\n<|user|>\n"),
    ("internvl-hf", "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user"),
    ("Hermes-2", "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user"),
])
def test_a_system_message(model, name, expected):
    """In place of the format's own."""
    template = session.template(arguments(template=name, system="Be brief."), model)
    assert prompt([("What?", None)], 1, template).startswith(expected) and "Be brief." in str(template)
    own = session.template(arguments(system="Be brief."), SimpleNamespace(config=LlavaConfig(template=jinja(CHATML))))
    assert prompt(TURNS, 1, own) == "<|im_start|>system\nBe brief.<|im_end|>\n" + prompt(TURNS, 1, "chatml")


@pytest.mark.parametrize("template", [
    "llava-hf",
    "mistral",
    jinja(STRINGS, bos_token="", eos_token=""),
    jinja(BAKLLAVA.replace("{% else %}", "{% elif 0 %}")),
])
def test_a_template_without_a_place_for_a_system_message(template):
    with pytest.raises(UserError, match="has no place for a system message: leave --system out"):
        session.template(arguments(system="Be brief."), SimpleNamespace(config=LlavaConfig(template=template)))


def test_raw(model):
    """The prompt as it is; later turns too. Marks are the user's to write."""
    raw = session.template(arguments(raw=True), model)
    assert raw == Raw() and prompt([("Q: <image> A:", None)], 1, raw) == "Q: <image> A:"
    assert next_turn(" Q:", template=raw, turns=[("Q: <image> A:", "cat")]) == " Q:"
    with pytest.raises(UserError, match="0 <image> marks for 1 pictures: with --raw write one mark a picture"):
        prompt([("What?", None)], 1, raw)
    for other in (dict(template="mistral"), dict(system="Be brief.")):
        with pytest.raises(UserError, match="--raw takes the prompt as it is"):
            session.template(arguments(raw=True, **other), model)


def test_a_missing_template_says_why():
    for use in (
        lambda t: prompt([("What?", None)], 1, t),
        lambda t: t.with_system("Be brief."),
        lambda t: next_turn("Old?", template=t),
    ):
        with pytest.raises(UserError, match="because"):
            use(Missing("because"))


def test_named_formats_are_their_names():
    assert all(str(format) == name for name, format in FORMATS.items())
    assert str(jinja(CHATML)).startswith("the file (sha256 ") and str(jinja(CHATML)) != str(jinja(LLAVA))


# --- transformers ---------------------------------------------------------------------------------------------------

@pytest.mark.internal
@live
@pytest.mark.parametrize("source", [
    LLAVA, CHATML, LLAMA3, BAKLLAVA,
    "  {% if true %}\n  a{{ messages | tojson }}\n {%- endif %}\n"
    "{% for m in messages %}" + TEXTS + "\n{% break %}{% endfor %}\n<image>",
], ids=["llava", "chatml", "llama3", "bakllava", "blocks"])
def test_transformers_writes_the_same(source):
    from transformers.utils.chat_template_utils import render_jinja_template
    def message(role, text, images=0):
        return dict(role=role, content=[dict(type="image")] * images + [dict(type="text", text=text)])
    template = jinja(source, bos_token="<s>", eos_token="</s>")
    conversation = [message("user", "What? <é>", 1), message("assistant", "A cat."), message("user", "Old?")]
    for turns, messages in (
        ([("What? <é>", None)], conversation[:1]),
        ([("What? <é>", "A cat."), ("Old?", None)], conversation),
    ):
        written = render_jinja_template(conversations=[messages], chat_template=source, add_generation_prompt=True,
                                        bos_token="<s>", eos_token="</s>")
        assert template._written(turns, 1, True) == written[0][0]
