"""SigLIP in CLIP's place: no class token, all patches, pictures squeezed into the square."""

import json

import pytest
import torch

from build import close
from minivlm import prune
from minivlm.families.registry import read_config
from minivlm.parts.smaller import resized_positions
from minivlm.parts.views import received_on_tiles
from paths import IMAGES, PARITY
from pruning import EVERY
from pruning.base import UserError
from weights import load, on_meta

TINY = PARITY / "llava_siglip"
LAND = str(IMAGES / "land_500x333.png")
QUESTION = "What?"
# What llava-hf/llava-interleave-qwen-0.5b-hf says of its network.
TOWER = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26,
         "num_attention_heads": 16, "image_size": 384, "patch_size": 14, "vision_use_head": False}
TEXT = {"model_type": "qwen2", "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 152000, "rope_theta": 1e6,
        "sliding_window": 32768, "use_sliding_window": False, "max_position_embeddings": 32768,
        "tie_word_embeddings": True}
INTERLEAVE = {"model_type": "llava", "image_token_index": 151646, "projector_hidden_act": "gelu",
              "torch_dtype": "bfloat16", "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
              "text_config": TEXT, "vision_config": TOWER}


@pytest.fixture(scope="module")
def model():
    loaded = load(TINY)
    loaded.config.template = "llava-hf"
    return loaded


def test_the_interleave_checkpoint(tmp_path):
    """864,031,264 values, as its file's size says; the head is the embedding. 27 x 27 visual tokens."""
    (tmp_path / "config.json").write_text(json.dumps(INTERLEAVE))
    config = read_config(tmp_path)
    network = on_meta(config)
    assert sum(p.numel() for p in network.parameters()) == 864_031_264
    assert network.visual_tokens(torch.empty(1, 3, 384, 384)) == 729


def test_all_patches_are_visual_tokens(model):
    """28 of a tile's 30 pixels a side are read: 4 x 4 patches, and no row before them."""
    pixels = model.processor.pixels(LAND)
    assert pixels.shape == (1, 3, 30, 30)
    tokens = model.encode(pixels)
    assert tokens.visual.tolist() == list(range(16)) and tokens.grid[0].tolist() == [0, 0, 0]
    unread = pixels.clone()
    unread[:, :, 28:] = 9.0
    unread[:, :, :, 28:] = 9.0
    assert model.encode(unread).hidden.equal(tokens.hidden)


def test_a_picture_is_squeezed(model):
    """The pixels show all of it, whatever its shape, and values lie between -1 and 1."""
    assert model.processor.box(500, 333) == (0, 0, 500, 333)
    pixels = model.processor.pixels(LAND)
    assert -1 <= pixels.min() < 0 < pixels.max() <= 1


def test_attention_received_without_a_class_token():
    """One tile of two patches: the first looks at both alike, the second at the first only."""
    query = torch.tensor([[[0.], [1.]]])
    key = torch.tensor([[[40.], [0.]]])
    close(received_on_tiles(query, key, first=0), torch.tensor([[.75, .25]]))


def test_positions_of_a_smaller_square_without_a_class_token():
    """Of equal positions, the smaller square's are the same."""
    assert resized_positions(torch.ones(16, 3), 4).equal(torch.ones(4, 3))


def test_methods(model):
    """What needs a class token says so and names its reading; what does not, runs."""
    with pytest.raises(UserError, match="class token, and SigLIP's tower has none: use vispruner_received"):
        prune(model, LAND, QUESTION, EVERY["vispruner"](keep=4))
    with pytest.raises(UserError, match="this vision tower has none"):
        model.encode(model.processor.pixels(LAND)).before.cls_attention()
    for name in ("vispruner_received", "visionzip_received", "hired_received", "holov_received", "divprune", "fastv",
                 "asap", "downsample_image"):
        options = {"layer": 1} if "layer" in EVERY[name].__dataclass_fields__ else {}
        assert 0 < len(prune(model, LAND, QUESTION, EVERY[name](keep=4, **options)).kept) <= 4, name
