"""SmolVLM: tiles with text between them, pixel shuffle by 4. What transformers computes with it is in tests/parity."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import layouts
import run
import tiny_smolvlm
import weights
from build import close
from live import live
from minivlm import prune
from minivlm.families.registry import read_config
from minivlm.families.smolvlm.image import SmolVLMProcessor, around_tiles
from minivlm.generate import Conversation
from minivlm.io.text.tokenizer import next_turn, prompt
from minivlm.lab.check import hf
from minivlm.lab.check.stages import verify
from minivlm.lab.cost import count, shapes
from minivlm.trace import Trace
from paths import IMAGES, PARITY
from pruning import EVERY
from pruning.base import UserError
from stages import failing
from tiny_smolvlm import ID, asked

TINY = PARITY / "smolvlm"
LAND, WIDE = str(IMAGES / "land_500x333.png"), str(IMAGES / "wide_2000x100.png")
SIDES = (1, 2, 7, 63, 100, 333, 479, 480, 511, 512, 513, 640, 1023, 1024, 1500, 2047, 4000)


@pytest.fixture(scope="module")
def model():
    return weights.load(TINY, torch.float32)


def copied(folder, **changes):
    """The folder with a copy of the tiny checkpoint; changes: to its config.json."""
    shutil.copytree(TINY, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# --- what the released files say ------------------------------------------------------------------------------------

TOWER = {"model_type": "idefics3", "hidden_size": 768, "num_attention_heads": 12, "image_size": 512, "patch_size": 16}
TEXT = {"model_type": "llama", "head_dim": 64, "max_position_embeddings": 8192, "vocab_size": 49280, "rms_norm_eps": 1e-5,
        "rope_theta": 100000}
RELEASED = {                                       # values, as the files' sizes say
    "HuggingFaceTB/SmolVLM-256M-Instruct": (256_484_928, dict(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3)),
    "HuggingFaceTB/SmolVLM-500M-Instruct": (507_482_304, dict(     # its layers are not written
        hidden_size=960, intermediate_size=2560, num_attention_heads=15, num_key_value_heads=5)),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_sizes(tmp_path, name):
    """As many values as the file has; 13 tiles of 64 visual tokens for a picture of 640 x 480."""
    values, text = RELEASED[name]
    raw = {"model_type": "idefics3", "image_token_id": 49190, "scale_factor": 4, "torch_dtype": "bfloat16",
           "tie_word_embeddings": False, "text_config": TEXT | text, "vision_config": TOWER}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    network = weights.on_meta(read_config(tmp_path))
    assert sum(p.numel() for p in network.parameters()) == values
    columns, rows = SmolVLMProcessor(512).grid(640, 480)
    assert network.visual_tokens(range(columns * rows + 1)) == 832


@live
def test_tiles_of_289_sizes():
    """Rows and columns at the released settings, as transformers counts them."""
    from transformers import Idefics3ImageProcessorPil
    theirs, ours = Idefics3ImageProcessorPil(), SmolVLMProcessor(512, longest=2048)
    released = dict(size=dict(longest_edge=2048), max_image_size=dict(longest_edge=512), do_image_splitting=True)
    for height in SIDES:
        for width in SIDES:
            _, rows, columns = theirs.get_number_of_image_patches(height, width, released)
            assert ours.grid(width, height) == (columns, rows), (width, height)


@live
def test_pixels_to_the_bit(model):
    """Of pictures of every shape, tiny and released size: the same bytes through three resizes."""
    from transformers import Idefics3ImageProcessorPil
    released = Idefics3ImageProcessorPil(**tiny_smolvlm.IMAGES | dict(
        size=dict(longest_edge=2048), max_image_size=dict(longest_edge=512)))
    whole = SmolVLMProcessor(512, mean=(.5,) * 3, std=(.5,) * 3, resample=1, tokenizer=model.tokenizer)
    noise = torch.randint(0, 256, (211, 211, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    for width, height in [(1, 1), (7, 5), (211, 1), (3, 200), (64, 64), (65, 64), (100, 31), (211, 210), (97, 160)]:
        picture = Image.fromarray(noise[:height, :width])
        for longest in (16, 50, 64):                       # one tile; no multiple of tiles; four, as released
            theirs = Idefics3ImageProcessorPil(**tiny_smolvlm.IMAGES | dict(size=dict(longest_edge=longest)))
            ours = replace(model.processor, longest=longest)
            expected = theirs(picture, return_tensors="pt")["pixel_values"][0]
            assert ours.pixels(picture).pixels.equal(expected), (width, height, longest)
    picture = Image.open(LAND)
    assert whole.pixels(picture).pixels.equal(released(picture, return_tensors="pt")["pixel_values"][0])


@live
def test_smolvlm2_is_the_same_network(tmp_path):
    """Its model_type and its image processor have other names; transformers' own classes of these agree."""
    folder = copied(tmp_path, model_type="smolvlm", architectures=["SmolVLMForConditionalGeneration"])
    for name, words in (("config.json", ("idefics3", "smolvlm_vision")),
                        ("preprocessor_config.json", ("Idefics3Image", "SmolVLMImage"))):
        path = folder / name
        path.write_text(path.read_text().replace(*words))
    expected = hf.live(folder, WIDE, "Why?")
    assert failing(verify(weights.load(folder, torch.float32), folder, expected)) == []


# --- text between tiles ---------------------------------------------------------------------------------------------

def test_text_around_tiles():
    """Two rows of two tiles and the whole picture: a break after each row, another before the whole."""
    f = "<fake_token_around_image>"
    assert around_tiles(2, 2) == [f"{f}<row_1_col_1>", f"{f}<row_1_col_2>", f"\n{f}<row_2_col_1>", f"{f}<row_2_col_2>",
                                  f"\n\n{f}<global-img>", f]
    assert around_tiles(1, 1) == [f"{f}<global-img>", f]


def test_two_breaks_are_one_token(model):
    """Four tiles in a row: two ids before each; three before the whole picture, the first of which is both breaks."""
    words = model.processor.pixels(WIDE).words
    around, whole = ID["<fake_token_around_image>"], ID["<global-img>"]
    assert [len(ids) for ids in words] == [2, 2, 2, 2, 3, 1]
    assert words[0] == [around, ID["<row_1_col_1>"]] and words[4][1:] == [around, whole] and words[5] == [around]
    assert model.tokenizer.decode(words[4]) == "\n\n"


def hidden_text(model, tokens):
    """The rows of a sequence that are not visual."""
    is_text = torch.ones(len(tokens.hidden), dtype=torch.bool)
    is_text[tokens.visual] = False
    return tokens.hidden[is_text]


@pytest.mark.parametrize("name", ["divprune", "vispruner_received", "visionzip_received", "downsample_image"])
def test_text_between_tiles_stays(model, name):
    """Whatever a method drops before the decoder, all of the text is there, in its order; positions have no gap."""
    picture = model.processor.pixels(WIDE)
    ids = model.tokenizer.encode(asked("<image>What?"))
    whole = model.embed(ids, [picture])
    pruned = model.embed(ids, [picture], EVERY[name](keep=.5), Trace())
    assert whole.n == 20 and 5 <= pruned.n <= 10
    assert hidden_text(model, pruned).equal(hidden_text(model, whole))
    assert pruned.position.tolist() == list(range(len(pruned.hidden))), name


def test_positions_of_the_unpruned_prompt(model):
    """A method of the vision site that keeps them: each token that is left, visual or not, has its old one."""
    picture = model.processor.pixels(WIDE)
    ids = model.tokenizer.encode(asked("<image>What?"))
    whole = model.embed(ids, [picture])
    pruned = model.embed(ids, [picture], EVERY["vispruner_received"](keep=2, positions="keep"), Trace())
    is_left = torch.ones(len(whole.hidden), dtype=torch.bool)
    is_left[whole.visual] = False
    is_left[whole.visual[pruned.source]] = True
    assert pruned.position.equal(is_left.nonzero().squeeze(1)) and pruned.next_position == len(whole.hidden)
    close(pruned.hidden, whole.hidden[pruned.position])


def test_keeping_all_is_the_unpruned_model(model):
    """Two pictures, whose tiles and tokens are counted on."""
    ids = model.tokenizer.encode(asked("Here is <image>and here is <image>Which?"))
    images = [model.processor.pixels(LAND), model.processor.pixels(WIDE)]
    talks = Conversation(model), Conversation(model, EVERY["vispruner_received"](keep=1.0))
    for talk in talks:
        talk.read(ids, images)
    close(talks[1].logits, talks[0].logits, 1e-5)
    assert talks[0].trace.N == talks[0].trace.unpruned == 4 * (13 + 5) and talks[0].trace.tiles == 18


def test_methods(model):
    """What needs a class token names its reading; every other one runs."""
    with pytest.raises(UserError, match="class token, and SigLIP's tower has none: use vispruner_received"):
        prune(model, WIDE, "What?", EVERY["vispruner"](keep=4))
    for name in ("hired_received", "holov_received", "fastv", "asap", "dart"):
        options = {"layer": 1} if "layer" in EVERY[name].__dataclass_fields__ else {}
        pruned = prune(model, WIDE, "What?", EVERY[name](keep=4, **options))
        assert 0 < len(pruned.kept) <= 4 and pruned.picture().size[0] > 0, name


# --- prompts --------------------------------------------------------------------------------------------------------

def test_prompts(model):
    """The folder's own template writes `User:<image>Q`, with a space only where text comes first; a chat goes on."""
    template = model.config.template
    assert prompt([("What?", None)], 1, template) == asked("<image>What?")
    assert prompt([("What?", "A sign."), ("Why?", None)], 0, template) == asked("What?", "A sign.", "Why?")
    assert next_turn("Why?", True, template=template) == "\nUser: Why?<end_of_utterance>\nAssistant:"
    assert model.eos == (ID["<end_of_utterance>"],)


def test_without_its_template_no_other_is_used(tmp_path):
    folder = copied(tmp_path)
    (folder / "chat_template.json").unlink()
    with pytest.raises(UserError, match="has no chat template, by which alone SmolVLM is asked"):
        prune(weights.load(folder), WIDE, "What?", EVERY["divprune"](keep=4))


# --- refusals -------------------------------------------------------------------------------------------------------

def test_the_norm_at_the_towers_end_must_be_there(tmp_path):
    """It is read here, other than in LLaVA."""
    tensors = load_file(TINY / "model.safetensors")
    del tensors["model.vision_model.post_layernorm.weight"], tensors["model.vision_model.post_layernorm.bias"]
    layouts.write(tmp_path, tensors, json.loads((TINY / "config.json").read_text()))
    with pytest.raises(UserError, match="model.vision_model.post_layernorm.weight and 1 more are missing"):
        weights.load(tmp_path)


@pytest.mark.parametrize("changes, words", [
    (dict(scale_factor=3), "scale_factor 3 does not divide the 8 patches of a tile's side"),
    (dict(vision_config=dict(image_size=31, patch_size=1), scale_factor=1), "31 rows of patches, whose positions"),
    (dict(text_config=dict(model_type="mistral")), "model_type 'mistral' is not supported, only llama"),
    (dict(model_type="qwen2_vl"), "'qwen2_vl' is not supported, only llava or .*SmolVLM-256M-Instruct"),
])
def test_what_config_json_may_not_say(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        read_config(copied(tmp_path, **changes))


@pytest.mark.parametrize("changes, words", [
    (dict(do_image_splitting=False), "do_image_splitting False is not supported"),
    (dict(max_image_size=dict(longest_edge=32)), "makes tiles of side 32, but config.json's image_size is 16"),
    (dict(size=dict(longest_edge=5000)), "longest_edge must be a positive number, and is 5000"),
])
def test_what_preprocessor_config_json_may_not_say(tmp_path, changes, words):
    path = copied(tmp_path) / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=words):
        weights.load(tmp_path)


# --- what else is done with a model ---------------------------------------------------------------------------------

def test_cost_is_counted():
    """A tile's 4 tokens of 16 x 32 channels through one linear map: two operations a multiplication with its
    addition."""
    cost = count.count(shapes.shape_of(model=str(TINY)), text=3)
    assert cost.visual == (4, 4) and cost.projector == 2 * 4 * 512 * 32


def test_plain_pixels_are_tiles_without_text(model):
    """As `bench` gives them."""
    pixels = model.processor.pixels(WIDE).pixels
    tokens = model.embed([1, ID["<image>"], 2], [pixels])
    assert tokens.n == 20 and len(tokens.hidden) == 22


def test_atp_is_not_trained_on_tiles(capsys, tmp_path):
    """As with InternVL."""
    words = ["train", "atp", "--model", str(TINY), "--data", "toy", "--target-tokens", "3", "--layers", "1",
             "--freeze-lm", "--out", str(tmp_path)]
    assert run.main(words) == 2
    assert "this model cuts pictures into tiles" in capsys.readouterr().err


def test_from_the_command_line(capsys, tmp_path):
    """ask with a picture of what was kept, verify."""
    words = ["ask", LAND, "What?", "--model", str(TINY), "--max-new-tokens", "3", "--method", "fastv", "--keep", "9",
             "--set", "layer=1", "--out", str(tmp_path / "kept.png")]
    assert run.main(words) == 0
    assert "9 of them visual" in capsys.readouterr().out and (tmp_path / "kept.png").stat().st_size
    assert run.main(["verify", str(TINY)]) == 0
