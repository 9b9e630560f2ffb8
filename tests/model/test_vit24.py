"""Which block a method looks at: the recorded results of four released codes on one 24-block CLIP, through the whole
model.

Features are hidden_states[-2], the output of block 22; VisPruner, VisionZip and HiRED look at block 22, HiRED at block
0 too, PruMerge at block 23, the last. Of the recorded model only the vision tower is there: the decoder here has no
part in it.
"""

import pytest

from build import close
from golden import golden
from minivlm.llava import Llava
from minivlm.parts.config import LlavaConfig, TextConfig, VisionConfig
from pruning.hired import HiRED
from pruning.prumerge import PruMerge, PruMergePlus
from pruning.readings import PruMergePaper
from pruning.visionzip import VisionZip
from pruning.vispruner import VisPruner
from tiny import Around

RECORDED, FACTS = golden("vit24_tiny_all")
PREFIX = "w.vision_model."


@pytest.fixture(scope="module")
def model():
    """A Llava with the recorded vision tower, in float64: in float32 a near tie of VisPruner falls by the machine."""
    c = FACTS["hyper"]
    vision = VisionConfig(hidden_size=c["hidden"], intermediate_size=c["mlp"], num_hidden_layers=c["layers"],
                          hidden_act=c["act"], num_attention_heads=c["heads"], image_size=c["image"],
                          patch_size=c["patch"], layer_norm_eps=c["ln_eps"])
    model = Llava(LlavaConfig(vision, TextConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                                 num_attention_heads=1)))
    weights = {name[len(PREFIX):].replace("encoder.", ""): x for name, x in RECORDED.items() if name.startswith(PREFIX)}
    model.vision_tower.load_state_dict(weights)
    return model.double().eval().requires_grad_(False)


def reduced(model, method):
    """(Tokens that enter the method, its Reduction, features after it)"""
    calls = []

    def reduce(tokens):
        calls.append((tokens, method.reduce(tokens)))
        return calls[0][1]

    features, _, _ = model.features(RECORDED["pixel_values"], Around(method, reduce))
    tokens, r = calls[0]
    return tokens, r, features


def same_features(ours, theirs):
    """The two agree to 1e-5 of their size: features are as large as 16."""
    close(ours.float(), theirs, rtol=1e-5)


def test_features(model):
    features, grid, source = model.features(RECORDED["pixel_values"])
    same_features(features, RECORDED["hidden_states_m2"][0, 1:])
    assert grid[25].tolist() == [0, 1, 1]
    assert source.tolist() == list(range(576))


def test_attention_of_blocks_0_and_22(model):
    tokens, _, _ = reduced(model, HiRED(64))
    close(tokens.before.cls_attention(), RECORDED["cls_row.layer22"][0, :, 1:], 1e-6)
    close(tokens.before.block(0).cls_attention(), RECORDED["cls_row.layer0"][0, :, 1:], 1e-6)


@pytest.mark.parametrize("keep", [64, 128])
def test_vispruner(model, keep):
    _, r, features = reduced(model, VisPruner(keep))
    assert r.keep.tolist() == RECORDED[f"vispruner.T{keep}.kept"].tolist()
    same_features(features, RECORDED["hidden_states_m2"][0, 1:][r.keep])


@pytest.mark.parametrize("keep", [64, 115])
def test_hired(model, keep):
    """115 is 576 * .2, rounded down."""
    _, r, _ = reduced(model, HiRED(keep))
    assert r.keep.tolist() == RECORDED[f"hired15.r{keep}.kept"].tolist()


@pytest.mark.parametrize("method, name", [(PruMerge(), "prumerge"), (PruMergePlus(), "prumerge_plus")])
def test_prumerge(model, method, name):
    """Attention of the last block, as one head, and tokens."""
    _, r, features = reduced(model, method)
    close(r.score, RECORDED["prumerge.cls_attn_layer23_single_head"][0], 1e-6)
    same_features(features, RECORDED[f"{name}.out"][0])


def test_prumerge_of_the_paper_looks_at_another_block(model):
    """The paper's words are about block 22: it keeps other patches than the released code."""
    _, released, _ = reduced(model, PruMerge(64))
    _, paper, _ = reduced(model, PruMergePaper(64))
    assert set(released.keep.tolist()) != set(paper.keep.tolist())
    close(paper.score, RECORDED["cls_row.layer22"][0, :, 1:].mean(dim=0), 1e-6)


@pytest.mark.parametrize("dominant, contextual", [(54, 10), (108, 20)])
def test_visionzip(model, dominant, contextual):
    """The class token is the first of the tokens; the metric is the mean over heads of block 22's keys."""
    tokens, r, features = reduced(model, VisionZip(dominant + contextual, contextual))
    close(tokens.before.key().mean(dim=0), RECORDED["visionzip.metric_layer22"][0])
    name = f"visionzip.d{dominant}c{contextual}"
    assert r.keep[:dominant].tolist() == sorted(RECORDED[f"{name}.all_indices"][0].tolist())
    same_features(features, RECORDED[f"{name}.tokens"][0])


def test_the_class_token_through_the_model(model):
    """VisionZip's class token is on no grid; with cls=False the model's visual tokens are patches alone."""
    with_cls, _, _ = reduced(model, VisionZip(64))
    assert with_cls.n == 577
    assert with_cls.grid[:2].tolist() == [[0, -1, -1], [0, 0, 0]]
    patches, _, _ = reduced(model, VisionZip(64, cls=False))
    assert patches.n == 576
    assert patches.grid[0].tolist() == [0, 0, 0]
