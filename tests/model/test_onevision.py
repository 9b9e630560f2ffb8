"""LLaVA-OneVision: large maps made smaller, their places and newlines; several pictures without tiles."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from build import close
from minivlm import ask, prune
from minivlm.families.llava_next_image import Tiles, best_grid
from minivlm.families.onevision.network import resized
from minivlm.families.registry import processor_class, read_config
from minivlm.io.text.tokenizer import prompt
from minivlm.lab.check import hf
from minivlm.lab.draw.view import View
from paths import IMAGES, PARITY
from pruning import EVERY
from pruning.base import UserError
from weights import load, on_meta

TINY = PARITY / "onevision"
LAND = str(IMAGES / "land_500x333.png")
TALL = str(IMAGES / "tall_40x900.png")
TEXT = {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 152000, "rope_theta": 1e6,
        "max_position_embeddings": 32768, "tie_word_embeddings": True}
# What a file says that leaves out whatever equals a default of its class.
HALF = {"model_type": "llava_onevision", "text_config": TEXT, "tie_word_embeddings": False, "torch_dtype": "float16"}
SEVEN = HALF | {"text_config": TEXT | {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152128, "tie_word_embeddings": False}}
# Tokens of one picture, by height and width. 98 x 81 patches are the most with newlines: 98 * 81 < 1.21 * 9 * 729.
COUNTS = {(384, 384): 1485, (480, 640): 2929, (640, 480): 2943, (768, 1024): 4725, (899, 1024): 6551,
          (1080, 1920): 7269, (3000, 4000): 7309, (100, 2000): 2196, (1, 1): 1485, (1259, 1050): 8765, (1, 84): 757}


def config_of(folder, raw):
    (folder / "config.json").write_text(json.dumps(raw))
    return read_config(folder)


@pytest.fixture(scope="module")
def model():
    loaded = load(TINY)
    loaded.config.template = "llava-hf"
    return loaded


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The network of the released 0.5b, without its weights."""
    return on_meta(config_of(tmp_path_factory.mktemp("half"), HALF))


def tokens_of(network, height, width):
    """Visual tokens of the only picture of a prompt."""
    high, wide = best_grid(height, width, network.config.image_grid_pinpoints)
    return network.visual_tokens(Tiles(None, (high // 384, wide // 384), (height, width)))


# --- the released checkpoints -----------------------------------------------------------------------------------------

def test_the_released_networks(tmp_path, released):
    """As many values as their files' sizes say; the tower that no vision_config means; 36 grids; a tied head."""
    assert sum(p.numel() for p in released.parameters()) == 893_675_552
    assert sum(p.numel() for p in on_meta(config_of(tmp_path, SEVEN)).parameters()) == 8_030_807_584
    assert released.config.text.tie_word_embeddings and len(released.config.image_grid_pinpoints) == 36
    assert processor_class(released.config).__name__ == "OneVisionProcessor"


def test_defaults_are_the_reference_classes(transformers, released):
    reference = transformers.LlavaOnevisionConfig()
    for name in ("image_token_index", "vision_feature_layer", "vision_feature_select_strategy", "vision_aspect_ratio",
                 "image_grid_pinpoints"):
        assert getattr(released.config, name) == getattr(reference, name), name
    for name, value in vars(released.config.vision).items():
        assert value == getattr(reference.vision_config, name), name


@pytest.mark.parametrize("ratio", ["pad", "anyres", "anyres_max_0", 9, "anyres_max_9.5"])
def test_refuses_another_aspect_ratio(tmp_path, ratio):
    with pytest.raises(UserError, match="config.json: vision_aspect_ratio .* only such as anyres_max_9"):
        config_of(tmp_path, HALF | {"vision_aspect_ratio": ratio})


def test_refuses_another_tower(tmp_path):
    with pytest.raises(UserError, match="only siglip_vision_model"):
        config_of(tmp_path, HALF | {"vision_config": {"model_type": "clip_vision_model"}})


def test_prompts():
    """What the checkpoint's own chat template writes; without the file it is the family's format."""
    own = "<|im_start|>user\n<image>\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt([("Why?", None)], template="chatml") == own
    two = own.replace("<image>\n", "<image>\n<image>\n")
    assert prompt([("Why?", None)], 2, "chatml") == two
    again = own + "So.<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt([("Why?", "So."), ("And?", None)], template="chatml") == again


# --- how many tokens --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size, count", COUNTS.items(), ids=str)
def test_counts(released, size, count):
    assert tokens_of(released, *size) == count


def test_counts_by_hand(released):
    """1080 x 1920 on 3 x 5 tiles: 81 x 135 patches, of which the picture has 1080 * 135 / 1920 = 75 rows. The ratio is
    sqrt(75 * 135 / (9 * 729)) = 1.242; 75 / 1.242 = 60.4 rows and 135 / 1.242 = 108.7 columns."""
    tiles = Tiles(None, (3, 5), (1080, 1920))
    assert released.map_shapes(tiles) == ((75, 135), (60, 108))
    assert 729 + 60 * 109 == COUNTS[1080, 1920]


def test_counts_of_many_sizes(transformers, released):
    """200 sizes from 1 to 5000 pixels a side, as transformers' processor counts them and `verify --live` does."""
    reference = transformers.LlavaOnevisionProcessor.__new__(transformers.LlavaOnevisionProcessor)
    reference.num_image_tokens = 729
    reference.vision_aspect_ratio = "anyres_max_9"
    grids = released.config.image_grid_pinpoints
    reference.image_processor = SimpleNamespace(image_grid_pinpoints=grids)
    vision = SimpleNamespace(model_type="siglip_vision_model", image_size=384, patch_size=14)
    config = SimpleNamespace(model_type="llava_onevision", vision_config=vision, image_token_id=7,
                             image_grid_pinpoints=grids, vision_aspect_ratio="anyres_max_9")
    scaled = 0
    for height, width in np.exp(np.random.default_rng(0).uniform(0, 8.5, (200, 2))).astype(int).tolist():
        theirs = reference._get_number_of_features(height, width, 384, 384)
        assert tokens_of(released, height, width) == theirs, (height, width)
        assert len(hf.expand([7], config, iter([(height, width)]))) == theirs
        scaled += theirs > 6000
    assert scaled > 10
    assert hf.expand([7, 7], config, iter([None, None])) == [7] * 1460
    assert released.visual_tokens(torch.empty(1, 3, 384, 384)) == 730


# --- the map made smaller ---------------------------------------------------------------------------------------------

def test_resized_by_hand():
    """Four values to two: the middle of each half, between its two values. Five to two: a step of 2.5 values, so the
    places .75 and 3.25, and what lies between is not averaged."""
    x = torch.tensor([0., 1., 2., 3.]).view(1, 4, 1)
    close(resized(x, (1, 2)).flatten(), torch.tensor([.5, 2.5]))
    x = torch.tensor([0., 4., 90., 8., 0.]).view(1, 5, 1)
    close(resized(x, (1, 2)).flatten(), torch.tensor([3., 6.]))


def test_places(model):
    """8 x 12 patches become 6 x 9, each row ends with a newline; the base tile of 4 x 4 comes first."""
    pruned = prune(model, LAND, "Why?", EVERY["fastv"](keep=70, layer=1))
    grid = pruned.trace.grid
    assert len(grid) == 16 + 6 * 10
    assert grid[16:26].tolist() == [*([1, 0, column] for column in range(9)), [1, -1, -1]]
    assert grid[-2].tolist() == [1, 5, 8]
    assert pruned.trace.padding == [(2 * 6 / 8, 0)]        # two rows of patches are one and a half of these
    view = View(pruned.images[0], pruned.boxes[0], pruned.trace)
    square = view.grids[1].square
    assert view.grids[1].shape == (6, 9) and view.off_grid(torch.arange(76)) == 6
    close(torch.tensor([square.width / square.height]), torch.tensor([500 / 333]), .02)


# --- several pictures -------------------------------------------------------------------------------------------------

def test_several_pictures_have_no_tiles(model):
    """16 patches and one newline each; the box reaches beyond the picture, which lies in the middle of a square."""
    pictures = [Image.open(LAND).convert("RGB"), Image.open(TALL).convert("RGB")]
    first, second = model.processor.pixels_of(pictures)
    assert first.shape == second.shape == (1, 3, 30, 30)
    assert first[0, :, 0].eq(first[0, 0, 0, 0]).all() and abs(first[0, 0, 0, 0] - (127 / 127.5 - 1)) < 1e-6
    assert model.processor.boxes_of(pictures) == [(0, -83, 500, 417), (-430, 0, 470, 900)]
    pruned = prune(model, pictures, "Which?", EVERY["fastv"](keep=8, layer=1))
    assert pruned.trace.unpruned == pruned.trace.N == 34
    assert pruned.trace.images == [range(17), range(17, 34)]
    assert pruned.trace.grid[[16, 17, 33]].tolist() == [[0, -1, -1], [1, 0, 0], [1, -1, -1]]
    assert pruned.picture().size[0] > 480
    (tiles,) = model.processor.pixels_of(pictures[:1])
    assert isinstance(tiles, Tiles)


def test_position_of_the_newline_that_a_tower_method_leaves_out(model):
    """Words after a picture have the positions of the unpruned prompt: 3 + 17 + 17 + 2."""
    pictures = [torch.randn(1, 3, 30, 30) for _ in range(2)]
    mark = model.config.image_token_index
    ids = [1, 5, 6, mark, mark, 7, 8]
    whole = model.embed(ids, pictures)
    pruned = model.embed(ids, pictures, EVERY["vispruner_received"](keep=4, positions="keep"))
    assert len(whole.hidden) == whole.next_position == pruned.next_position == 39
    assert len(pruned.hidden) == 13 and pruned.position[-2:].tolist() == whole.position[-2:].tolist() == [37, 38]


# --- methods ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("pictures", [LAND, [LAND, TALL]], ids=["tiles", "squares"])
def test_methods(model, pictures):
    """At each site; of a picture that is scaled and of several. A class token is missed by name."""
    with pytest.raises(UserError, match="class token, and SigLIP's tower has none"):
        prune(model, pictures, "Why?", EVERY["vispruner"](keep=4))
    for name in ("vispruner_received", "visionzip_received", "divprune", "fastv", "downsample", "downsample_image"):
        options = {"layer": 1} if "layer" in EVERY[name].__dataclass_fields__ else {}
        answer = ask(model, pictures, "Why?", EVERY[name](keep=8, **options), max_new_tokens=2)
        assert 0 < len(answer.kept) < answer.trace.N, name
