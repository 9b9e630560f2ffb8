"""The same folder through the installed transformers and through us: pixels, every stage, greedy text, end tokens.

Skipped where transformers 5 is not installed; what verify --live says then is tested all the same.
"""

import importlib.metadata
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import weights
from minivlm.attention import rope, rotate
from minivlm.chat import Conversation
from minivlm.lab import hf
from minivlm.lab.recorded import read_expected
from minivlm.lab.verify import TOLERANCE, verify
from pruning.base import UserError

PARITY = Path(__file__).parent / "parity"
CASES = sorted(path.parent.name for path in PARITY.glob("*/expected.json"))
HUGGING_FACE = [case for case in CASES if not case.endswith(("_original", "_internlm2"))]
PICTURES = sorted(PARITY.glob("images/*.png"))


def version():
    try:
        return int(importlib.metadata.version("transformers").split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0


live = pytest.mark.skipif(version() < 5, reason="transformers 5 is not installed: pip install 'transformers>=5'")


def failing(rows):
    """The stages further apart than 1e-5 of the largest value of a row, as in test_parity."""
    return [row for row in rows if not row.difference <= row.tolerance * (
        1 if row.stage == "pixel_values" else 1e-5 / TOLERANCE[torch.float32])]


@live
@pytest.mark.parametrize("case", HUGGING_FACE)
def test_every_stage(case):
    """A question that was not recorded, from the picture file to the last greedy id."""
    expected = hf.live(PARITY / case, PARITY / "images" / "port_333x500.png", "What color is the small square?")
    rows = verify(weights.load(PARITY / case, dtype=torch.float32), PARITY / case, expected)
    assert failing(rows) == []
    assert len(rows) == 12 + 2 * len(expected.tensors["p0.layer_out"])


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
    assert rotate(x, *rope(position, head_dim, theta, x.dtype)).equal(theirs)


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
    told = [[(p["text"], p["images"], p["generated"]) for p in e.prompts] for e in (old, new)]
    assert told[0] == told[1] and old.eos_list_case == new.eos_list_case


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
