"""ViP-LLaVA: five layers of the tower, normed, before the projector."""

import json

import pytest
import torch

from minivlm.families.registry import read_config
from minivlm.families.vipllava import LAYERS
from paths import PARITY
from pruning.base import UserError
from weights import load, on_meta

TINY = {"model_type": "vipllava", "text_config": {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16,
                                                 "num_hidden_layers": 1, "vocab_size": 40},
        "vision_config": {"hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 12,
                          "image_size": 4, "patch_size": 2}}


def read(folder, **more):
    (folder / "config.json").write_text(json.dumps(TINY | more))
    return read_config(folder)


@pytest.mark.parametrize("written", [{}, {"vision_feature_layer": -2}, {"vision_feature_layers": list(LAYERS)}])
def test_five_layers(tmp_path, written):
    """The released file's single layer is not what its projector reads: 5 x 4 features a patch."""
    config = read(tmp_path, **written)
    assert config.feature_layers == [11, 8, 5, 2, 6]
    assert on_meta(config).multi_modal_projector.linear_1.weight.shape == (8, 20)


def test_other_layers_and_their_norm(tmp_path):
    config = read(tmp_path, vision_feature_layer=[-2, 1], projector_layernorm_eps=1e-3)
    norm = on_meta(config).multi_modal_projector.projector_layernorm
    assert config.feature_layers == [11, 1] and norm.weight.shape == (8,) and norm.eps == 1e-3
    with pytest.raises(UserError, match="vision_feature_layer .* names no hidden state of 13"):
        read(tmp_path, vision_feature_layer=[-2, 13])


def test_features_are_normed():
    """Twice the features are the same to the projector, up to the norm's eps."""
    projector = load(PARITY / "vipllava").multi_modal_projector
    x = 10 * torch.randn(1, projector.linear_1.in_features, generator=torch.Generator().manual_seed(0))
    assert projector(x).allclose(projector(2 * x), atol=1e-5)
