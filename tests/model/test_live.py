"""The same folder through the installed transformers and through us: pixels, every stage, greedy text, end tokens.

Skipped without a transformers of the range tested; what verify --live says then is tested all the same.
"""

import copy
import json
import re
import shutil
import sys
import types
from functools import partial

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import weights
from command import done
from live import live, transformers_or_skip
from minivlm.attention import rope, rotate
from minivlm.generate import Conversation
from minivlm.io.text.template import Missing
from minivlm.lab.check import hf
from minivlm.lab.check.recorded import NO_ROUNDING, distance, read_expected
from minivlm.lab.check.stages import verify
from paths import CASES, IMAGES, PARITY, ROOT
from pruning.base import UserError
from stages import failing

HUGGING_FACE = [case for case in CASES if not case.endswith(("_original", "_internlm2"))]
PICTURES = sorted(IMAGES.glob("*.png"))


@live
@pytest.mark.parametrize("case", HUGGING_FACE)
def test_every_stage(case):
    """A question that was not recorded, from the picture file to the last greedy id."""
    expected = hf.live(PARITY / case, PARITY / "images" / "port_333x500.png", "What color is the small square?")
    model = weights.load(PARITY / case, dtype=torch.float32)
    rows = verify(model, PARITY / case, expected)
    assert failing(rows) == []
    in_its_words = not isinstance(model.config.template, Missing)
    assert len(rows) == 12 + in_its_words + 2 * len(expected.tensors["p0.layer_out"])


@live
@pytest.mark.parametrize("case", ["llava15_full", "next_vicuna"])
@pytest.mark.parametrize("image", PICTURES, ids=lambda path: path.stem)
def test_pictures(case, image):
    """Each picture: pixels, features, and the answer."""
    expected = hf.live(PARITY / case, image, "Why?")
    rows = verify(weights.load(PARITY / case), PARITY / case, expected)
    assert failing(rows) == []
    assert {"pixel_values", "image_features_packed", "greedy ids"} <= {row.stage for row in rows}


@live
def test_turned_picture(tmp_path):
    """The EXIF tag says that the camera was held on its side."""
    with Image.open(PARITY / "images" / "gray_250x170.png") as opened:
        exif = Image.Exif()
        exif[0x0112] = 6
        opened.convert("RGB").save(tmp_path / "turned.jpg", exif=exif)
    expected = hf.live(PARITY / "llava15_full", tmp_path / "turned.jpg", "Why?")
    assert failing(verify(weights.load(PARITY / "llava15_full"), PARITY / "llava15_full", expected)) == []


@live
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """Rounding of 3 or 2 digits: the tolerances of half precision hold, and stop comparing ids at a tie."""
    expected = hf.live(PARITY / "llava15_gqa_bf16", PICTURES[0], "Why?", dtype=dtype)
    rows = verify(weights.load(PARITY / "llava15_gqa_bf16", dtype=dtype), PARITY / "llava15_gqa_bf16", expected)
    assert [row for row in rows if not row.passed] == []


def copied(case, folder, **generation):
    """A copy of a case's checkpoint with more settings in its generation_config.json."""
    shutil.copytree(PARITY / case, folder, dirs_exist_ok=True)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | generation))
    return folder


@live
@pytest.mark.parametrize("generation", [
    dict(repetition_penalty=1.3),
    dict(do_sample=True, temperature=2.0, top_k=50, top_p=0.9),
    dict(no_repeat_ngram_size=1),
    dict(num_beams=3),
    dict(min_new_tokens=20),
    dict(max_length=3, max_new_tokens=2),
    dict(forced_eos_token_id=2),
    dict(suppress_tokens=list(range(0, 500, 2))),
    dict(bad_words_ids=[[n] for n in range(3, 400)]),
    dict(use_cache=False),
], ids=lambda generation: next(iter(generation)))
def test_settings_for_generation_are_no_part_of_the_model(tmp_path, generation):
    """The reference once sampled or was penalised as its folder says, and a right model failed."""
    folder = copied("llava15_full", tmp_path, **generation)
    rows = verify(weights.load(folder), folder, hf.live(folder, PICTURES[0], "Why?"))
    assert [row for row in rows if not row.passed] == []


@live
def test_end_tokens_of_the_folder_end_the_reference(tmp_path):
    """The third id that comes is named as an end: both stop there."""
    free = hf.live(PARITY / "llava15_full", PICTURES[0], "Why?").prompts[0]["generated"][0]
    folder = copied("llava15_full", tmp_path, eos_token_id=[2, free[2]])
    expected = hf.live(folder, PICTURES[0], "Why?")
    assert expected.prompts[0]["generated"] == [free[:free.index(free[2]) + 1]]
    assert [row for row in verify(weights.load(folder), folder, expected) if not row.passed] == []


TEMPLATE = ("{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>"
            "{% for c in m.content %}{{ c.text if c.type == 'text' else '<image>' }}"
            "{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}")


@live
@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json"]
)
def test_reference_asks_in_the_folders_own_words(tmp_path, name):
    """A template in each of the four places where folders keep it. Its <s> is not written twice."""
    folder = copied("llava15_full", tmp_path)
    path = folder / name
    if name.endswith(".jinja"):
        path.write_text(TEMPLATE)
    else:
        settings = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(settings | dict(chat_template=TEMPLATE)))
    prompt = hf.live(folder, PICTURES[0], "Why?").prompts[0]
    assert prompt["text"] == "<s><|user|><image>Why?<|assistant|>"
    assert prompt["ids_unexpanded"].count(1) == 1
    rows = verify(weights.load(folder), folder, hf.live(folder, PICTURES[0], "Why?"))
    assert [row for row in rows if not row.passed] == []
    placed = hf.live(folder, PICTURES[0], "What is <image>?").prompts[0]["text"]
    assert placed == "<s><|user|>What is <image>?<|assistant|>"


@live
def test_template_of_strings(tmp_path):
    """One that adds contents up cannot write a list of parts: it is given one string, by both sides."""
    folder = copied("llava15_full", tmp_path)
    of_strings = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %} assistant:"
    (folder / "chat_template.jinja").write_text(of_strings)
    expected = hf.live(folder, PICTURES[0], "Why?")
    assert expected.prompts[0]["text"] == "user: <image>\nWhy? assistant:"
    assert [row for row in verify(weights.load(folder), folder, expected) if not row.passed] == []


@live
@pytest.mark.parametrize("template", ["{{ messages[0].role }}: ?", "{{ raise_exception('never') }}", "{% endif %}"])
def test_template_that_cannot_ask(tmp_path, template):
    """One without a mark or a question, one that refuses, one that is none: our refusal."""
    folder = copied("llava15_full", tmp_path)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match="chat_template.jinja.*--template"):
        hf.live(folder, PICTURES[0], "Why?")


@live
def test_prompt_ids_are_compared():
    """Another question than the one the reference was asked: only this line fails. A model without a template has no
    such line."""
    for case, result in (("llava15_mha", ["prompt ids"]), ("llava15_full", [])):
        expected = hf.live(PARITY / case, PICTURES[0], "Why?")
        expected.prompts[0]["question"] = "How?"
        rows = verify(weights.load(PARITY / case), PARITY / case, expected)
        assert [row.stage for row in rows if not row.passed] == result


# --- what rounding does -----------------------------------------------------------------------------------------------

def outlier(folder):
    """A copy of llava15_full one of whose channels enters the second layer's attention 150 times as large."""
    copied("llava15_full", folder)
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if name.endswith("layers.1.input_layernorm.weight"))
    state[name][5] *= 150
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@live
def test_outlier_channel(tmp_path):
    """Logits of the attention in the thousands cost float32 three digits: a right model passes, one wrong weight does
    not.

    The fixed tolerance of 5e-5 failed the first; one that lets everything pass would miss the second, off by 1 %.
    """
    folder = outlier(tmp_path)
    model, expected = weights.load(folder), hf.live(folder, PARITY / "images" / "gray_250x170.png", "Why?")
    rows = verify(model, folder, expected)
    assert [row for row in rows if not row.passed] == []
    assert max(row.own_error / row.scale for row in rows if row.own_error) > 5e-5
    weight = model.language_model.layers[1].self_attn.o_proj.weight
    weight.data = weight.data.clone()
    weight.data[3, 5] *= 1.01
    assert [row.stage for row in verify(model, folder, expected) if not row.passed][0] == "layer_out 1"


@live
@pytest.mark.parametrize("case", ["llava15_full", "next_vicuna", "internvl_qwen2", "smolvlm"])
def test_float64_one_module_at_a_time(case):
    """It gives what a model that is all float64 gives, and leaves the weights as they were, after an error too."""
    model, tokenizer, processor = hf.reference(PARITY / case, torch.float32, "cpu")
    images, sizes = hf.inputs(processor, hf.picture(PARITY / "images" / "land_500x333.png"),
                              partial(hf.encoded, tokenizer))
    ids = torch.tensor([hf.expand([1, model.config.image_token_id, 5, 9], model.config, iter(sizes))])
    run = ids, torch.ones_like(ids), images
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with hf.in_float64(model):
        ours = hf.stages(model, *run)
        with pytest.raises(Exception, match="[Ii]mage"):
            model(input_ids=ids[:, :2], **images)
    for name, value in model.state_dict().items():
        assert value.equal(before[name]) and value.dtype == before[name].dtype
    whole = hf.stages(copy.deepcopy(model).double(), *run)
    for stage in ours.keys() - NO_ROUNDING:
        assert ours[stage].dtype == torch.float64
        assert distance(ours[stage], whole[stage]) < 1e-9, stage


# --- which transformers -----------------------------------------------------------------------------------------------

def installed(monkeypatch, version):
    """A stand-in for transformers of that version, without anything inside."""
    stand_in = types.ModuleType("transformers")
    stand_in.__version__ = version
    monkeypatch.setitem(sys.modules, "transformers", stand_in)


LOWEST, HIGHEST = hf.TESTED
NEXT_ONE = "{}.{}.0".format(HIGHEST.split(".")[0], int(HIGHEST.split(".")[1]) + 1)
FOLDER = str(PARITY / "llava15_full")


@pytest.mark.parametrize("words", [
    ["verify", FOLDER, "--live", str(PICTURES[0]), "Why?"],
    ["bench", "--model", FOLDER.replace("_full", "_mha"), "--method", "fastv", "--keep", "4", "--repeat", "1",
     "--steps", "1", "--threads", "1", "--against", "hf"],
], ids=["verify", "bench"])
@pytest.mark.parametrize("version, message", [
    (None, "cannot be imported"),
    ("4.57.1", f"runs transformers {LOWEST} to {HIGHEST}, not 4.57.1"),
    (NEXT_ONE, f"transformers {NEXT_ONE} is newer than {HIGHEST}"),
])
def test_another_transformers_is_one_line(capsys, monkeypatch, words, version, message):
    """Missing, too old, or newer and broken."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    if version:
        installed(monkeypatch, version)
    status, out, err = done(capsys, *words)
    assert status == 2 and message in err and "pip install" in err
    assert len(err.splitlines()) == 1 and not out


@pytest.mark.parametrize("version", [LOWEST, HIGHEST, HIGHEST + ".post1", ".".join([*HIGHEST.split(".")[:2], "9"])])
def test_tested_version_is_not_blamed(monkeypatch, version):
    """What fails under one of those is a bug of minivlm, and is raised as it is."""
    installed(monkeypatch, version)
    with pytest.raises(AttributeError, match="moved"), hf.blaming_untested("this"):
        raise AttributeError("moved")


@pytest.mark.parametrize("version, reason", [
    (None, "cannot be imported"), ("5.0.0", "not 5.0.0"), (NEXT_ONE, "is newer than"), ("6.0.0rc1", "is newer than")
])
def test_gate_skips_with_the_reason(monkeypatch, version, reason):
    monkeypatch.delenv("MINIVLM_ANY_TRANSFORMERS", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    if version:
        installed(monkeypatch, version)
    with pytest.raises(pytest.skip.Exception, match=reason):
        transformers_or_skip()


def test_gate_can_be_forced(monkeypatch):
    monkeypatch.setenv("MINIVLM_ANY_TRANSFORMERS", "1")
    installed(monkeypatch, NEXT_ONE)
    assert transformers_or_skip().__version__ == NEXT_ONE


def test_every_comparison_has_the_gate():
    """No test decides for itself whether transformers is there: the fixture of conftest.py does."""
    own = [path.name for path in sorted((ROOT / "tests").rglob("*.py"))
           if re.search(r"(importorskip|find_spec)\(.transformers", path.read_text(encoding="utf-8"))]
    assert own == []


@live
@pytest.mark.parametrize("case", HUGGING_FACE)
def test_several_end_tokens(case):
    """Ids that come third and seventh, both named as ends: the third stops us and them; the seventh, alone, later."""
    model = weights.load(PARITY / case, dtype=torch.float32)
    reference, tokenizer, _ = hf.reference(PARITY / case, torch.float32, "cpu")
    ids = model.tokenizer.encode("USER: Stop. ASSISTANT:")
    assert ids == tokenizer("USER: Stop. ASSISTANT:").input_ids
    prompt = torch.tensor([ids])
    (free,), _ = hf.greedy(reference, prompt, torch.ones_like(prompt), eos_token_id=[])
    assert len(free) == 20
    for ends in ([free[6], free[2]], [free[6], 2], [511, 510]):
        (theirs,), _ = hf.greedy(reference, prompt, torch.ones_like(prompt), eos_token_id=ends)
        talk = Conversation(model)
        talk.read(ids)
        assert list(talk.generate(20, eos=tuple(ends))) == theirs
        assert len(theirs) == min([free.index(end) + 1 for end in ends if end in free], default=20)


@live
@pytest.mark.parametrize("theta, head_dim", [(10000., 8), (500000., 12), (1e6, 128)])
def test_rotary_embedding(theta, head_dim):
    """The same angles to the bit, up to position 4095: float32 leaves errors of 1e-4 there, so the formula counts."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
    x = torch.randn(1, 2, 512, head_dim, generator=torch.Generator().manual_seed(0))
    position = torch.arange(512) * 8 + 7
    parameters = dict(rope_type="default", rope_theta=theta)
    config = LlamaConfig(hidden_size=head_dim, num_attention_heads=1, rope_parameters=parameters)
    cos, sin = LlamaRotaryEmbedding(config)(x, position[None])
    theirs, _ = apply_rotary_pos_emb(x, x, cos, sin)
    assert rotate(x, rope(position, head_dim, theta, x.dtype)).equal(theirs)


@live
@pytest.mark.parametrize("case", CASES)
def test_recorded_again(tmp_path, monkeypatch, case):
    """The recorder gives what is in the repository: weights and floats up to rounding, the same ids."""
    import record_hf
    monkeypatch.setattr(sys, "argv", ["record_hf.py", case, "--out", str(tmp_path)])
    record_hf.main()
    for path in (PARITY / case).glob("*.safetensors"):
        new, old = load_file(tmp_path / case / path.name), load_file(path)
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4, equal_nan=True)
    old, new = (read_expected(folder / case / "expected.json") for folder in (PARITY, tmp_path))
    prompts = [[(p["text"], p["images"], p["generated"]) for p in e.prompts] for e in (old, new)]
    assert prompts[0] == prompts[1] and old.eos_list_case == new.eos_list_case


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install"):
        hf.live(PARITY / "llava15_full", PICTURES[0], "Why?")


def test_picture_that_cannot_be_read(tmp_path):
    """Said before the checkpoint is read, which takes minutes for a real one."""
    with pytest.raises(UserError, match="none.png"):
        hf.live(tmp_path, tmp_path / "none.png", "Why?")


@live
@pytest.mark.parametrize("break_it, words", [
    (lambda folder: (folder / "config.json").unlink(), "config.json is not there"),
    (lambda folder: (folder / "config.json").write_text('{"mm_vision_tower": "clip"}'), "an original LLaVA checkpoint"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "transformers cannot read it"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "transformers cannot read it")],
    ids=["no config", "original", "broken weights", "no tokenizer"])
def test_folder_that_transformers_cannot_read(tmp_path, break_it, words):
    """One line each."""
    for path in (PARITY / "llava15_full").glob("*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    break_it(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        hf.live(tmp_path, PICTURES[0], "Why?")
    assert "\n" not in str(caught.value)
