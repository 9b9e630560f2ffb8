"""Attention received in place of the class token's, by hand: VisPruner, VisionZip, HiRED and PruMerge without one."""

import pytest
import torch

from build import close
from pruning.base import LayerView, Tokens, UserError, whole_grid
from pruning.hired import HiRED
from pruning.prumerge import PruMerge
from pruning.readings import HiREDReceived, PruMergePlusReceived, PruMergeReceived, VisionZipReceived, VisPrunerReceived
from pruning.vispruner import VisPruner
from tiny import llava, picture

# What four patches pay one another. Columns sum to .8 2.0 .8 .4, so that they receive .2 .5 .2 .1.
PAID = [[.1, .6, .2, .1],
        [.2, .5, .2, .1],
        [.1, .7, .1, .1],
        [.4, .2, .3, .1]]


def image(attention=PAID, grid=(2, 2), **view):
    """Patches of one tile, or of several, without a class token; they pay `attention` to one another."""
    attention = torch.tensor(attention)
    n = attention.shape[-1]
    return Tokens.start(torch.eye(n), list(range(n)), grid, before=LayerView.of(attention=attention, **view))


def test_received():
    """The mean of each column, over heads too: with a second head that pays all to patch 3, (.1 .25 .1 .55)."""
    close(image().before.received(), [.2, .5, .2, .1])
    all_to_last = [[0., 0., 0., 1.]] * 4
    close(image([PAID, all_to_last]).before.received(), [.1, .25, .1, .55])


def test_tiles_are_apart():
    """Two tiles of two patches: .9 .1 and .3 .7, then .5 .5 twice: (.6 .4) and (.5 .5), means over two rows each. What
    the second pays to the first does not count."""
    attention = [[.9, .1, 0., 0.], [.3, .7, 0., 0.], [.8, .8, .5, .5], [0., 0., .5, .5]]
    grid = torch.cat([whole_grid(1, 2), whole_grid(1, 2, tile=1)])
    close(image(attention, grid=grid).before.received(), [.6, .4, .5, .5])


def test_vispruner():
    """The best of .2 .5 .2 .1 is patch 1; the last patch alone would say 0, and the diagonal 1 .1 .1: 1, too."""
    r = VisPrunerReceived(1, important=1.0).reduce(image())
    assert r.keep.tolist() == [1]
    close(r.score, [.2, .5, .2, .1])
    with pytest.raises(UserError, match="made without cls_attention"):
        image().before.cls_attention()


def test_visionzip():
    """Dominant is 1, by .2 .5 .2 .1. One contextual token of the rest 0 2 3: target 0, and 2 and 3 join it, half each."""
    key = torch.tensor([[[1., 0.], [0., 1.], [1., .1], [1., .2]]])                 # (1, 4, 2)
    r = VisionZipReceived(2, 1).reduce(image(key=key))
    assert r.keep.tolist() == [1, 0]
    close(r.merge, [[0., 1., 0., 0.], [1., 0., .5, .5]])
    assert VisionZipReceived().preconditions == frozenset()
    assert VisionZipReceived(cls=True).preconditions == {"cls"}


def test_prumerge():
    """One patch kept, 1 with .5; its nearest neighbour by keys is 2, which comes in with the .2 that it receives. The
    pooled token takes the place of the strongest of the rest, 0 (of equals the first): .2 .2 .1 of 0, 2 and 3."""
    key = torch.tensor([[[0., 1.], [1., 0.], [1., .1], [-1., 0.]]])
    for method in (PruMergeReceived(2, 1), PruMergePlusReceived(2, 1)):
        r = method.reduce(image(key=key))
        assert r.keep.tolist() == [1, 0]
        close(r.merge, [[0., 1., .2, 0.], [.2, 0., .2, .1]])


@pytest.mark.parametrize("base, kept", [("last", [0, 1, 5]), ("first", [1, 2, 3])])
def test_hired(base, kept):
    """Three tiles of two patches, 3 tokens. Of the last tile the first patch receives .8 in the first block and .2 in
    the last one. As the base it keeps 1 of 3, patch 5, and the other two go to the tile that its first patch shows,
    tile 0: 0 and 1. If the first tile is the base, of whose patches the first block prefers 0: tile 1 gets both."""
    def blocks(*first):
        matrix = torch.zeros(6, 6)
        for tile, share in enumerate(first):
            rows = slice(2 * tile, 2 * tile + 2)
            matrix[rows, rows] = torch.tensor([share, 1 - share])
        return matrix

    grid = torch.cat([whole_grid(1, 2, tile) for tile in range(3)])
    first_block = LayerView.of(attention=blocks(.6, .5, .8))
    tokens = image(blocks(.4, .5, .2).tolist(), grid, blocks={0: first_block})
    assert HiREDReceived(3, base=base).reduce(tokens).keep.tolist() == kept


def test_the_tower_by_definition():
    """Two tiles of a model with class tokens: softmax over the tile's 17 keys, on average over its 16 patches' rows."""
    model = llava(layers=2)
    pixels = picture(model, tiles=2)
    tokens = model.encode(pixels)
    x = model.vision_tower.layers[22].layer_norm1(model.vision_tower(pixels, 23)[22])                  # (2, 17, 32)
    attn = model.vision_tower.layers[22].self_attn
    query, key = attn.heads(attn.q_proj(x)), attn.heads(attn.k_proj(x))            # (2, 4, 17, 8)
    attention = (query @ key.mT / 8 ** .5).softmax(dim=-1)[:, :, 1:, 1:]           # (2, 4, 16, 16)
    close(tokens.before.received(), attention.mean(dim=(1, 2)).flatten())
    received, keys_of_patches = PruMergeReceived().attention_and_keys(tokens)
    close(received, attention.mean(dim=(1, 2)).flatten())
    close(keys_of_patches, key[:, :, 1:].transpose(1, 2).flatten(2).flatten(0, 1))


@pytest.mark.parametrize("reading, plain", [(VisPrunerReceived(4), VisPruner(4)), (HiREDReceived(4), HiRED(4)),
                                            (PruMergeReceived(4), PruMerge(4))])
def test_on_a_tower_with_class_tokens(reading, plain):
    """They run there, too, and choose by something else than the class token."""
    model = llava(layers=2)
    features, _, source = model.features(picture(model), reading)
    assert len(features) == 4
    assert not source.equal(model.features(picture(model), plain)[2])
