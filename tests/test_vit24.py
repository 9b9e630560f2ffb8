"""Which block a method looks at: the recorded results of four released codes on one 24-block CLIP, through the whole model.

Features are hidden_states[-2], the output of block 22; VisPruner, VisionZip and HiRED look at block 22, HiRED at block 0 too,
PruMerge at block 23, the last. Of the recorded model only the vision tower is there: the decoder here has no part in it.
"""

import pytest
import torch

from golden import golden
from minivlm.config import LlavaConfig, TextConfig, VisionConfig
from minivlm.llava import Llava
from pruning.hired import HiRED
from pruning.prumerge import PruMerge, PruMergePlus
from pruning.vispruner import VisPruner
from pruning.visionzip import VisionZip
from tiny import Around

RECORDED, FACTS = golden("vit24_tiny_all")
PREFIX = "w.vision_model."


@pytest.fixture(scope="module")
def model():
    """A Llava with the recorded vision tower."""
    c = FACTS["hyper"]
    vision = VisionConfig(hidden_size=c["hidden"], intermediate_size=c["mlp"], num_hidden_layers=c["layers"], hidden_act=c["act"],
                          num_attention_heads=c["heads"], image_size=c["image"], patch_size=c["patch"], layer_norm_eps=c["ln_eps"])
    model = Llava(LlavaConfig(vision, TextConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                                 num_attention_heads=1)))
    weights = {name[len(PREFIX):].replace("encoder.", ""): x for name, x in RECORDED.items() if name.startswith(PREFIX)}
    model.vision_tower.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def reduced(model, method):
    """(Tokens that the method saw, its Reduction, features after it)"""
    saw = []
    spy = Around(method, lambda tokens: saw.append((tokens, method.reduce(tokens))) or saw[0][1])
    spy.cls = getattr(method, "cls", False)
    features, _, _ = model.features(RECORDED["pixel_values"], spy)
    return *saw[0], features


def test_features(model):
    features, cell, origin = model.features(RECORDED["pixel_values"])
    torch.testing.assert_close(features, RECORDED["hidden_states_m2"][0, 1:], atol=1e-5, rtol=1e-5)
    assert cell[25].tolist() == [0, 1, 1] and origin.tolist() == list(range(576))


def test_attention_of_blocks_0_and_22(model):
    tokens = reduced(model, HiRED(64))[0]
    torch.testing.assert_close(tokens.attn, RECORDED["cls_row.layer22"].transpose(0, 1), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(tokens.first_attn, RECORDED["cls_row.layer0"].transpose(0, 1), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("keep", [64, 128])
def test_vispruner(model, keep):
    _, r, features = reduced(model, VisPruner(keep))
    assert r.keep.tolist() == RECORDED[f"vispruner.T{keep}.kept"].tolist()
    torch.testing.assert_close(features, RECORDED["hidden_states_m2"][0, 1:][r.keep], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("keep", [64, 115])
def test_hired(model, keep):
    """115 is 576 * .2, rounded down."""
    assert reduced(model, HiRED(keep))[1].keep.tolist() == RECORDED[f"hired15.r{keep}.kept"].tolist()


@pytest.mark.parametrize("method, name", [(PruMerge(), "prumerge"), (PruMergePlus(), "prumerge_plus")])
def test_prumerge(model, method, name):
    """Attention of the last block, as one head, and tokens."""
    _, r, features = reduced(model, method)
    torch.testing.assert_close(r.score, RECORDED["prumerge.cls_attn_layer23_single_head"][0], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(features, RECORDED[f"{name}.out"][0], atol=1e-5, rtol=1e-5)


def test_prumerge_looks_at_another_block(model):
    """attention="penultimate", the paper's words, keeps other patches than the released code."""
    last, before = (reduced(model, PruMerge(64, attention=a))[1] for a in ("last", "penultimate"))
    assert set(last.keep.tolist()) != set(before.keep.tolist())
    expected = RECORDED["cls_row.layer22"][0, :, 1:].mean(dim=0)
    torch.testing.assert_close(before.score, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dominant, contextual", [(54, 10), (108, 20)])
def test_visionzip(model, dominant, contextual):
    """The class token is the first of the tokens; the metric is the mean over heads of block 22's keys."""
    tokens, r, features = reduced(model, VisionZip(dominant + contextual, contextual))
    metric = tokens.past_key.unflatten(1, (4, -1)).mean(dim=1)
    torch.testing.assert_close(metric, RECORDED["visionzip.metric_layer22"][0], atol=1e-5, rtol=1e-5)
    name = f"visionzip.d{dominant}c{contextual}"
    assert r.keep[:dominant].tolist() == sorted(RECORDED[f"{name}.all_indices"][0].tolist())
    torch.testing.assert_close(features, RECORDED[f"{name}.tokens"][0], atol=1e-5, rtol=1e-5)


def test_the_class_token_through_the_model(model):
    """VisionZip's class token has an origin and a cell on no grid; with cls=False the model's visual tokens are patches alone."""
    with_cls, patches = (reduced(model, VisionZip(64, cls=cls))[0] for cls in (True, False))
    assert with_cls.n == 577 and with_cls.cell[0].tolist() == [0, -1, -1] and with_cls.cell[1].tolist() == [0, 0, 0]
    assert patches.n == 576 and patches.cell[0].tolist() == [0, 0, 0]
