"""The picture made smaller before the tower: by hand, as transformers does it, on tiles and InternVL, and its cost."""

import pytest
import torch
import torch.nn.functional as F

from build import close
from live import live
from minivlm.lab.cost.count import count
from minivlm.parts.smaller import resized_pixels, resized_positions
from minivlm.trace import Trace
from pruning.base import Tokens, UserError, whole_grid
from pruning.compose import Both
from pruning.controls import DownSampleImage
from pruning.divprune import DivPrune
from pruning.fastv import FastV
from pruning.vispruner import VisPruner
from tiny import MARK, SHAPE, ids, internvl, llava, next_llava, picture, prefill, tiled


@pytest.mark.parametrize("keep, n, left", [(.25, 576, 144), (1 / 9, 576, 64), (128, 576, 121), (.25, 16, 4), (.25, 9, 1), (1.0, 9, 9)])
def test_budget(keep, n, left):
    """A quarter of the tokens is half of each side; 128 of 24 x 24 are 11 x 11, since 12 x 12 would be more."""
    assert DownSampleImage(keep).budget(n) == left


def test_what_each_token_shows():
    """4 x 4 patches as 2 x 2: token 0 shows patches 0, 1, 4, 5, a quarter each, and lies at the centre of its square,
    at row and column 1: patch 5. Of two tiles the second's begin at 16. Nothing else than places is read."""
    grid = torch.cat([whole_grid(4, 4), whole_grid(4, 4, tile=1)])
    r = DownSampleImage(.25).reduce(Tokens.start(torch.zeros(32, 1), list(range(32)), grid))
    assert r.keep.tolist() == [5, 7, 13, 15, 21, 23, 29, 31]
    expected = torch.zeros(8, 32)
    for row, first in enumerate([0, 2, 8, 10, 16, 18, 24, 26]):
        expected[row, [first, first + 1, first + 4, first + 5]] = .25
    close(r.merge, expected)


def test_position_embeddings():
    """Of the values 0 .. 15 of 4 x 4 patches, 4 row + column, each of 2 x 2 lies between two rows and two columns, and is
    read from four of each with the weights -.09375 .59375 .59375 -.09375; beyond the rim the border repeats. The class
    token's is not touched; of the same number nothing is."""
    position = torch.arange(-1, 16.).view(17, 1)
    resized = resized_positions(position, 5)
    weights = torch.tensor([-.09375, .59375, .59375, -.09375])
    # new row 0 lies at .5 of rows 0 and 1, and reads rows -1 (the border: 0), 0, 1, 2
    along = [float(weights @ torch.tensor(at)) for at in ([0., 0., 1., 2.], [1., 2., 3., 3.])]
    assert resized[0] == -1
    close(resized[1:, 0], [4 * a + b for a in along for b in along])
    assert resized_positions(position, 17) is position


def test_pixels():
    """A half of each side; a flat picture stays flat, and of the same size it is the same."""
    flat = torch.full((2, 3, 8, 8), .7)
    close(resized_pixels(flat, 4), torch.full((2, 3, 4, 4), .7))
    assert resized_pixels(flat, 8) is flat
    # antialiased: stripes, every fourth column, become their mean; four columns read bicubically would give .59
    stripes = (torch.arange(16) % 4 == 1).float().expand(1, 3, 16, 16)
    grey = resized_pixels(stripes, 4)
    close(grey[..., 1:-1], torch.full((1, 3, 4, 2), .25), .05)


def test_in_the_model():
    """A quarter of 4 x 4 patches of two pictures: the tower reads 8 x 8 pixels, and the decoder four tokens each, at
    positions without gaps; each is traced to the four patches that it shows."""
    model = llava(layers=2)
    pictures = [picture(model), picture(model, 1)]
    trace = Trace()
    tokens = model.embed(ids(2, MARK, 1, MARK, 3), pictures, DownSampleImage(.25), trace)
    assert tokens.visual.tolist() == [2, 3, 4, 5, 7, 8, 9, 10]
    assert tokens.position.tolist() == list(range(14)) and tokens.next_position == 14
    assert [step.site for step in trace.steps] == ["image", "image"]
    assert trace.kept.tolist() == tokens.source.tolist() == [5, 7, 13, 15, 21, 23, 29, 31]
    assert (trace.sources()[5] > 0).nonzero().squeeze(1).tolist() == [18, 19, 22, 23]
    # the same by definition
    small = F.interpolate(pictures[1], (8, 8), mode="bicubic", antialias=True)
    states = model.vision_tower(small, 23)
    close(tokens.hidden[tokens.visual][4:], model.multi_modal_projector(states[-1][0, 1:]))


@live
def test_as_transformers_does():
    """interpolate_pos_encoding of transformers' CLIP on the smaller picture."""
    from transformers import CLIPVisionConfig, CLIPVisionModel
    c = llava(layers=2).config.vision
    config = CLIPVisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=24, num_attention_heads=4,
                              image_size=c.image_size, patch_size=c.patch_size, hidden_act=c.hidden_act)
    theirs = CLIPVisionModel(config).eval()
    tower = llava(layers=2).vision_tower
    stored = theirs.state_dict()
    ours = tower.state_dict()
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in stored) else ""
    renamed = {prefix + (name if not name.startswith("layers.") else f"encoder.{name}"): x for name, x in ours.items()}
    theirs.load_state_dict(renamed, strict=False)
    missing = [name for name in stored if name not in renamed and "position_ids" not in name]
    assert not missing
    small = resized_pixels(picture(llava(layers=2)), 8)
    with torch.no_grad():
        states = theirs(small, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
    close(tower(small, 23)[-1], states[23], 1e-4)


def test_on_internvl():
    """Three tiles of 8 x 8 patches, 4 x 4 visual tokens: a quarter is 2 x 2 of them, from a tower of 4 x 4 patches."""
    model = internvl(layers=2, grid=8)
    trace = Trace()
    pixels = picture(model, tiles=3)
    tokens = model.embed(ids(1, MARK, 2), [pixels], DownSampleImage(.25), trace)
    assert tokens.n == 12 and trace.N == 48
    small = F.interpolate(pixels, (16, 16), mode="bicubic", antialias=True)
    close(tokens.hidden[tokens.visual], model.multi_modal_projector(model.encode(small, side=2).hidden), 1e-5)


def test_on_tiles():
    """LLaVA-NeXT: every tile smaller, no newlines, in the order of the picture, as at the vision site: of 5 tiles of 4
    x 4 patches the base tile's four, then four rows of four of the others, each with its own tile's state."""
    model = next_llava(layers=2)
    image = tiled(model, 32, 32)
    trace = Trace()
    tokens = model.embed(ids(1, MARK, 2), [image], DownSampleImage(.25), trace)
    assert tokens.grid[:, 0].tolist() == [0] * 4 + [1] * 16
    assert tokens.grid[4:, 1:].tolist() == [[row, column] for row in (1, 3, 5, 7) for column in (1, 3, 5, 7)]
    small = F.interpolate(image.pixels, (8, 8), mode="bicubic", antialias=True)
    state = model.multi_modal_projector(model.vision_tower(small, 23)[-1][:, 1:])  # (5, 4, 32)
    rows = tokens.hidden[tokens.visual]
    close(rows[:4], state[0])
    close(rows[4:8], torch.stack([state[1, 0], state[1, 1], state[2, 0], state[2, 1]]))
    assert trace.grid[trace.kept].equal(tokens.grid)


@pytest.mark.parametrize("model", [llava(layers=2), internvl(layers=2)], ids=["llava", "internvl"])
def test_keeping_all_is_the_unpruned_model(model):
    logits, _, _ = prefill(model, ids(2, MARK, 3), [picture(model)], DownSampleImage(1.0))
    assert logits.equal(prefill(model, ids(2, MARK, 3), [picture(model)])[0])


def test_with_others():
    """Methods of later sites act on what is left: 2 of 4, then 1 of 2; one of the vision site cannot."""
    model = llava(layers=6)
    both = Both((DownSampleImage(.25), DivPrune(2), FastV(keep=1)))
    _, _, trace = prefill(model, ids(2, MARK, 3), [picture(model)], both)
    assert trace.visual == [2, 2, 1, 1, 1, 1] == both.schedule(16, 6)
    with pytest.raises(UserError, match="DownSampleImage gives the tower another picture, and VisPruner"):
        Both((DownSampleImage(.25), VisPruner(.5)))


def test_a_model_that_sends_the_class_token():
    model = llava(layers=2, vision_feature_select_strategy="full")
    with pytest.raises(UserError, match="DownSampleImage shows the decoder patches only"):
        model.features(picture(model), DownSampleImage(.25))


def test_cost():
    """12 x 12 pixels, patches of 3: a quarter is 6 x 6 pixels, 5 rows of 17 in each of the tower's two blocks. Per
    block and row of width 6, 4 projections and an MLP of 10: 4 * 6 * 6 + 2 * 6 * 10 products, and 5 rows by 5 rows
    twice. The convolution: 4 patches of 27 numbers, 6 channels. Twice that, for the additions."""
    counted = count(SHAPE, DownSampleImage(.25), text=4)
    block = 5 * (4 * 6 * 6 + 2 * 6 * 10) + 2 * 5 * 5 * 6
    assert counted.tower == 2 * (2 * block + 4 * 27 * 6)
    assert counted.visual == (4,) * 4
    assert counted.projector == 2 * 4 * (6 * 8 + 8 * 8)
