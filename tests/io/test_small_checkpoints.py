"""Checkpoints of under 1 B at full size, as sparse files: every stored name is a parameter of its shape, and their
numbers of values are those of the released files."""

import pytest

import layouts
import weights
from minivlm.lab.cost.shapes import SHAPES

SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26,
          "num_attention_heads": 16, "image_size": 384, "patch_size": 14, "vision_use_head": False}
QWEN2 = {"model_type": "qwen2", "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24,
         "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 152000, "rope_theta": 1e6,
         "max_position_embeddings": 32768, "tie_word_embeddings": True}
INTERLEAVE = {"model_type": "llava", "image_token_index": 151646, "vision_feature_layer": -1, "torch_dtype": "bfloat16",
              "vision_feature_select_strategy": "full", "text_config": QWEN2, "vision_config": SIGLIP}
ONEVISION = {"model_type": "llava_onevision", "image_token_index": 151646, "tie_word_embeddings": False,
             "text_config": QWEN2 | {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
                                     "num_key_value_heads": 2}}
SMOLVLM = {"model_type": "idefics3", "image_token_id": 49190, "scale_factor": 4, "torch_dtype": "bfloat16",
           "vision_config": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                             "num_attention_heads": 12, "image_size": 512, "patch_size": 16},
           "text_config": {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
                           "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
                           "vocab_size": 49280, "max_position_embeddings": 8192, "rope_theta": 100000}}


def siglip_shapes(c, prefix):
    """{name: shape} of the tower: CLIP's without its class token and first norm, with a bias in the convolution."""
    shapes = layouts.vision_shapes(c, prefix, "encoder.")
    for name in ("embeddings.class_embedding", "pre_layrnorm.weight", "pre_layrnorm.bias"):
        del shapes[prefix + name]
    rows = (c.image_size // c.patch_size) ** 2
    position = {f"{prefix}embeddings.position_embedding.weight": (rows, c.hidden_size)}
    bias = {f"{prefix}embeddings.patch_embedding.bias": (c.hidden_size,)}
    return shapes | position | bias


def qwen2_shapes(c, prefix):
    """{name: shape} of the decoder, with its biases."""
    layer = layouts.llama_layer(c)
    biases = {}
    for l in range(c.num_hidden_layers):
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            biases[f"{prefix}layers.{l}.{name}.bias"] = layer[name][:1]
    return layouts.text_shapes(c, prefix) | biases


def llava_shapes(c, **more):
    """{name: shape} in the hub's layout, with a tied head that is not stored."""
    width = c.text.hidden_size
    first, second = layouts.HUB
    projector = {f"{first}weight": (width, c.vision.hidden_size), f"{first}bias": (width,),
                 f"{second}weight": (width, width), f"{second}bias": (width,)}
    tower = siglip_shapes(c.vision, "vision_tower.vision_model.")
    return tower | projector | qwen2_shapes(c.text, "language_model.model.") | more


def smolvlm_shapes(c):
    """{name: shape} in the hub's layout."""
    width = c.text.hidden_size
    proj = {"model.connector.modality_projection.proj.weight": (width, 16 * c.vision.hidden_size)}
    head = {"lm_head.weight": (c.text.vocab_size, width)}
    tower = siglip_shapes(c.vision, "model.vision_model.")
    return tower | layouts.text_shapes(c.text, "model.text_model.") | proj | head


RELEASED = {
    "interleave-0.5b": (INTERLEAVE, llava_shapes(SHAPES["interleave-0.5b"].config), 864_031_264),
    "onevision-0.5b": (ONEVISION, llava_shapes(SHAPES["onevision-0.5b"].config, image_newline=(896,)), 893_675_552),
    "smolvlm-256m": (SMOLVLM, smolvlm_shapes(SHAPES["smolvlm-256m"].config), 256_484_928),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_names_shapes_and_values(tmp_path, name):
    """The file as published, and the shape that cost and bench have for it."""
    config, tensors, values = RELEASED[name]
    assert layouts.write_sparse(tmp_path, tensors, config) == 2 * values
    model = weights.skeleton(tmp_path)
    found = weights.find(model, tmp_path)
    assert len(found) == len(tensors)
    parameters = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert parameters == {name: tensor.shape for name, tensor in found.items()}
    shape = SHAPES[name].config
    assert sum(p.numel() for p in weights.on_meta(shape).parameters()) == values
    assert (shape.vision, shape.grid_side) == (model.config.vision, model.config.grid_side)


def test_a_name_too_many(tmp_path):
    config, tensors, _ = RELEASED["interleave-0.5b"]
    layouts.write_sparse(tmp_path, tensors | {"vision_tower.vision_model.pre_layrnorm.weight": (1152,)}, config)
    with pytest.raises(weights.layouts.UserError, match="pre_layrnorm.weight is no part of this model"):
        weights.find(weights.skeleton(tmp_path), tmp_path)
