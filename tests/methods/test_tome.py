"""ToMe by hand, and equal to the released code's recorded behaviour, inside a vision tower too.

A token's hidden state is a number, its key a vector in the plane. Rows are counted with the class token, 0.
"""

import pytest
import torch

from build import close, plane, tiles
from golden import golden, of_case
from minivlm.clip import ClipVision
from minivlm.parts.config import VisionConfig
from minivlm.parts.merging import key_bias, merged_inside
from minivlm.parts.sequence import places_on_tiles
from minivlm.trace import Trace
from pruning.base import UserError
from pruning.laws import LAWS, convex, disjoint
from pruning.matching import bipartite_soft_matching, merged
from pruning.tome import ToMe
from tiny import llava, next_llava, picture, tiled

MATCHING, MATCHING_FACTS = golden("tome_matching")
SMALL, SMALL_FACTS = golden("tome_small")
CLIP, CLIP_FACTS = golden("tome_clip")
VIT, VIT_FACTS = golden("tome_vit")

KEYS = ((1, 0), (.8, .6), (0, 1), (.28, .96))          # of tokens 1 to 4
VALUES = (5., 1, 2, 3, 6)                              # of the class token and tokens 1 to 4


def image(keys=KEYS, values=VALUES):
    """Tokens of one tile: the keys of its patches; the class token's is of zeros."""
    keys = torch.tensor(keys, dtype=torch.float)
    key = torch.cat([torch.zeros(1, keys.shape[1]), keys])[None]
    return tiles(torch.tensor(values)[None, :, None], key=key)


def after(keep, tokens):
    """(keep, hidden states of the tokens left) of a merge after the tower."""
    r = ToMe(keep, where="after").reduce(tokens)
    left = tokens.reduced(r)
    return r.keep.tolist(), left.hidden[left.visual, 0].tolist()


# --- by hand ----------------------------------------------------------------------------------------------------------

def test_the_most_similar_pair():
    """A is the class token, 2 and 4; B is 1 and 3. Token 2 has cosines .8 with 1 and .6 with 3, token 4 .28 and .96. So
    4 joins 3: (3 + 6) / 2 = 4.5. The rows are now the class token, 2, 1, and 3 with 4. Tokens 1 and 2 are neighbours,
    and 2 and 4 (cosine .8) are more alike than some pairs, but both in A."""
    assert bipartite_soft_matching(torch.tensor(KEYS), 1).tolist() == [1, 0, 2, 2]
    assert after(3, image()) == ([0, 1, 2], [1, 2, 4.5])


def test_the_next_block_divides_the_rows_as_they_stand():
    """Then A is the class token and 1, in row 2, and B is token 2, in row 1, and the merged one, in row 3. Of rows 1 to
    3 the keys are (1, 0), (.6, .8), (0, 1): row 2 has .6 and .8, and joins row 3, of size 2: (1 + 2 * 4.5) / 3."""
    weights = merged(torch.tensor([[1, 0], [.6, .8], [0, 1]]), torch.tensor([1., 1, 2]), 2)
    close(weights, [[1, 0, 0], [0, 1 / 3, 2 / 3]])
    close(weights @ torch.tensor([2., 1, 4.5]), [2, 10 / 3])


def test_a_mean_counts_every_patch_once():
    """Four equal keys and the values 1 2 3 9, to one token: 2 and 4 join 1, their mean is 4; then 3 and this one of size
    3 are merged: (3 + 3 * 4) / 4 = 15 / 4. The mean of 3 and 4 would be 3.5."""
    equal = ((1, 0),) * 4
    assert after(1, image(equal, (0., 1, 2, 3, 9))) == ([0], [15 / 4])


def test_the_key_of_a_mean_counts_every_patch():
    """Six tokens to two: first 2 joins 1 and 6 joins 5, and 4 (58 degrees, three patches) joins 3 (28 degrees, one).
    Their mean is at 51 degrees, so it joins 5, at 90, and not 1, at 0. At 43 degrees, between both, it would join 1."""
    weights = merged(plane(0, 0, 28, 58, 90, 90), torch.tensor([1., 1, 1, 3, 1, 1]), 2)
    close(weights, [[1 / 2, 1 / 2, 0, 0, 0, 0], [0, 0, 1 / 6, 3 / 6, 1 / 6, 1 / 6]])


def test_keys_are_averaged_over_heads():
    """In its two heads token 2 has (1, 0) and (0, 1), token 1 (0, 1) and (1, 0), token 3 (1, 0) and (0, 0). In the mean 2
    is 1, and 45 degrees from 3; side by side it is at right angles to 1."""
    first_head = [[0, 0], [0, 1], [1, 0], [1, 0]]
    second_head = [[0, 0], [1, 0], [0, 1], [0, 0.]]
    tokens = tiles(torch.tensor([[[0.], [1], [2], [4]]]), key=torch.tensor([[first_head, second_head]]))
    assert after(2, tokens) == ([0, 2], [1.5, 4])


def test_size_is_added_to_the_logits():
    """log 1 for a patch and the class token, log 2 for two patches."""
    tokens = image()
    bias = key_bias(tokens, torch.tensor([1., 1, 2, 4]), 1)
    close(bias, torch.tensor([1., 1, 1, 2, 4]).log().view(1, 1, 1, 5))


def test_schedule():
    """384 tokens fewer in 23 blocks, 16 or 17 in each; 192 are left. After the tower no block merges."""
    counts = ToMe(192).tower_schedule(576, 23)
    steps = [a - b for a, b in zip([576, *counts], counts)]
    assert counts[-1] == 192 and len(counts) == 23
    assert set(steps) == {16, 17}
    assert ToMe(576).tower_schedule(576, 23) == [576] * 23
    assert ToMe(192, "after").tower_schedule(576, 23) is None


# --- recorded ---------------------------------------------------------------------------------------------------------

def one_matching(metric, size, x, r, has_class):
    """(owner (n,), merged values, sizes) of rows that begin with a class token, or not."""
    first = 1 if has_class else 0
    owner = bipartite_soft_matching(metric[first:], r, has_class) + first
    owner = torch.cat([torch.zeros(first, dtype=torch.long), owner])
    left = int(owner.max()) + 1
    sizes = torch.zeros(left).index_add(0, owner, size)
    values = torch.zeros(left, x.shape[1]).index_add(0, owner, size[:, None] * x) / sizes[:, None]
    return owner, values, sizes


@pytest.mark.parametrize("c", MATCHING_FACTS["cases"], ids=lambda c: f"{c['case']}-r{c['r']}")
def test_recorded_matching(c):
    """Owner of every token, merged values and sizes of the released functions, with and without a class token."""
    given = of_case(MATCHING, f"case{c['case']}")
    expected = of_case(given, f"r{c['r']}")
    for picture_ in range(c["B"]):
        metric, size, x = (given[key][picture_] for key in ("metric", "size", "x"))
        owner, values, sizes = one_matching(metric, size[:, 0], x, c["r"], c["class_token"])
        assert owner.tolist() == expected["owner"][picture_].tolist()
        close(values, expected["merged_size"][picture_])
        close(sizes, expected["size_out"][picture_][:, 0], rtol=1e-6)
        ones = torch.ones_like(size[:, 0])
        _, values, sizes = one_matching(metric, ones, x, c["r"], c["class_token"])
        close(values, expected["merged_ones"][picture_])
        close(sizes, expected["size_from_ones"][picture_][:, 0])


@pytest.mark.parametrize("c", SMALL_FACTS["cases"], ids=lambda c: f"{c['case']}-n{c['n']}")
def test_recorded_small(c):
    """Few tokens, more than half to be merged, none to be merged, one destination; of equal rows (case 8) only the
    number of rows and the sum of sizes."""
    given = of_case(SMALL, f"m{c['case']}")
    if c["r"] == 0:
        assert merged(given["metric"], given["size"], c["n"]).equal(torch.eye(c["n"]))
        assert given["owner"].tolist() == list(range(c["n"]))
        return
    owner, values, sizes = one_matching(given["metric"], given["size"], given["x"], c["r"], c["class_token"])
    assert len(sizes) == c["left"]
    if c["equal_rows"]:
        close(sizes.sum(), given["size_out"].sum())        # which tokens are merged is open
        return
    assert owner.tolist() == given["owner"].tolist()
    close(values, given["merged"])
    close(values[owner], given["unmerged"])


class Recorded(ClipVision):
    """A tower that is given what enters block 0."""

    def forward(self, pixels, depth):
        return [pixels]


def check_tower(tower, x, run, rs, side):
    """merged_inside against a recorded run, block by block: features, owners, sizes. rs: r of each block."""
    count = side ** 2
    counts = []
    for r in rs:
        count -= min(r, count // 2)
        counts.append(count)
    method = ToMe(prop_attn="noprop" not in run)
    recorded = of_case(CLIP if side == 6 else VIT, run)
    grid = places_on_tiles(2, side)
    for blocks in range(1, len(rs) + 1):
        tokens, r = merged_inside(tower, x, grid, method, counts[:blocks])
        features = tokens.hidden[tokens.visual[r.keep]].unflatten(0, (2, -1))
        first_patch = r.keep.view(2, -1) - torch.tensor([[0], [side ** 2]])        # (2, left)  of each tile
        owner = recorded.get(f"block{blocks - 1}.owner", recorded.get("owner") if blocks == len(rs) else None)
        if owner is None:
            continue
        owner = owner.long()
        row = owner.gather(1, first_patch + 1)                                     # (2, left)  in the recording
        for tile in range(2):
            groups = owner[tile, 1:] == row[tile][:, None]                         # (left, P)
            of_tile = r.merge.view(2, -1, 2, side ** 2)[tile, :, tile]
            assert groups.equal(of_tile > 0)
            close(of_tile, groups / groups.sum(dim=1, keepdim=True))
            hidden = recorded.get(f"block{blocks - 1}.hidden", recorded["out"] if blocks == len(rs) else None)
            if hidden is not None:
                close(features[tile], hidden[tile][row[tile]], rtol=1e-5)
            if blocks == len(rs):
                size = recorded["size"].reshape(2, -1)[tile][row[tile]]
                close(groups.sum(dim=1), size)


@pytest.mark.parametrize("run", CLIP_FACTS["runs"])
def test_recorded_clip(run):
    """Five blocks of CLIP: evenly spread, constant and falling r, none, more than half, no proportional attention."""
    c = CLIP_FACTS["config"]
    tower = Recorded(VisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4,
                                  image_size=12, patch_size=2, layer_norm_eps=c["layer_norm_eps"], hidden_act=c["hidden_act"]))
    prefix = "vision_model.encoder."
    weights = {name.removeprefix(prefix): x for name, x in CLIP.items() if name.startswith(prefix)}
    assert not tower.load_state_dict(weights, strict=False).unexpected_keys
    with torch.no_grad():
        check_tower(tower, CLIP["input.x"], run, CLIP_FACTS["runs"][run]["r"], 6)


@pytest.mark.parametrize("run", ["r6", "sched_8_m1", "r6_noprop"])
def test_recorded_vit(run):
    """A ViT with other weights, GELU and a smaller epsilon."""
    tower = Recorded(VisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4,
                                  image_size=14, patch_size=2, layer_norm_eps=1e-6, hidden_act="gelu"))
    weights = {}
    for l in range(5):
        block = of_case(VIT, f"w.blocks.{l}")
        for kind in ("weight", "bias"):
            q, k, v = block[f"attn.qkv.{kind}"].chunk(3)
            names = dict(zip(("q_proj", "k_proj", "v_proj", "out_proj"), (q, k, v, block[f"attn.proj.{kind}"])))
            weights |= {f"layers.{l}.self_attn.{name}.{kind}": x for name, x in names.items()}
            weights |= {f"layers.{l}.layer_norm{i}.{kind}": block[f"norm{i}.{kind}"] for i in (1, 2)}
            weights |= {f"layers.{l}.mlp.fc{i}.{kind}": block[f"mlp.fc{i}.{kind}"] for i in (1, 2)}
    assert not tower.load_state_dict(weights, strict=False).unexpected_keys
    rs = VIT_FACTS["hyper"]["parse_r"][run.removesuffix("_noprop")]
    with torch.no_grad():
        check_tower(tower, VIT["input.x"], run, rs, 7)


# --- in the model -----------------------------------------------------------------------------------------------------

def test_all_tokens_are_the_plain_tower():
    """To the bit."""
    model = llava()
    pixels = picture(model, tiles=2)
    plain, grid, source = model.features(pixels)
    features, same_grid, same_source = model.features(pixels, ToMe(1.0))
    assert features.equal(plain)
    assert same_grid.equal(grid) and same_source.equal(source)


@pytest.mark.parametrize("where", ["inside", "after"])
@pytest.mark.parametrize("keep", [1, 3, 8, 15])
def test_laws_in_the_model(where, keep):
    """Each tile keeps `keep` tokens; every patch is in exactly one, as one share of their number; in order."""
    model = llava()
    trace = Trace()
    pixels = picture(model, tiles=2)
    trace.image(model.visual_grid(2))
    features, grid, source = model.features(pixels, ToMe(keep, where), replace_n(trace))
    step, = trace.steps
    merge = step.reduction.merge
    assert len(features) == len(merge) == 2 * keep
    assert ((merge > 0).sum(dim=0) == 1).all()
    size = (merge > 0).sum(dim=1)
    close(merge, (merge > 0) / size[:, None])
    assert size.sum() == 32
    assert (source.diff() > 0).all() and source.equal(merge.gt(0).int().argmax(dim=1))
    assert grid[:, 0].tolist() == [0] * keep + [1] * keep


def replace_n(trace):
    """The trace before its first image: `features` counts sources after those of the images before."""
    trace.grid = trace.grid[:0]
    trace.images.clear()
    return trace


def test_each_tile_by_itself():
    """Two tiles give what each gives by itself."""
    model = llava()
    pixels = picture(model, tiles=2)
    both, _, _ = model.features(pixels, ToMe(5))
    single = [model.features(tile[None], ToMe(5))[0] for tile in pixels]
    close(both, torch.cat(single))


def test_the_model_merges_once():
    """What the tower has merged is sent on as it is."""
    model = llava()
    pixels = picture(model, tiles=2)
    method = ToMe(5)
    counts = method.tower_schedule(16, 23)
    tokens, r = merged_inside(model.vision_tower, pixels, model.visual_grid(2), method, counts)
    features, _, _ = model.features(pixels, method)
    assert features.equal(tokens.hidden[tokens.visual[r.keep]])


def test_inside_is_not_after():
    """The merged tokens have gone through the later blocks: their features are no means of the unpruned ones."""
    model = llava()
    pixels = picture(model)
    plain, _, _ = model.features(pixels)
    trace = Trace()
    features, _, _ = model.features(pixels, ToMe(5), trace)
    assert (features - trace.steps[0].reduction.merge @ plain).abs().max() > .01
    trace = Trace()
    features, _, _ = model.features(pixels, ToMe(5, "after"), trace)
    close(features, trace.steps[0].reduction.merge @ plain)


def test_tiles_of_a_picture():
    """LLaVA-NeXT: the tokens of each tile, the base tile's first, then those of the grid in its order."""
    model = next_llava()
    image_ = tiled(model, 32, 32)
    trace = Trace()
    part = model.image_part(image_, ToMe(4), trace)
    assert len(part.hidden) == 5 * 4
    assert part.grid[:, 0].tolist() == [0] * 4 + [1] * 16
    row_by_row = part.grid[4:, 1] * 8 + part.grid[4:, 2]
    assert (row_by_row.diff() > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Cosines and means are computed in float32: 4's key (1, 1/48) is nearer to (1, 1/32) than to (1, 0)."""
    key = torch.tensor([[[0, 0], [1, 0], [0, 1], [1, 1 / 32], [1, 1 / 48]]], dtype=dtype)
    tokens = tiles(torch.tensor([[[0.], [1], [2], [3], [5]]], dtype=dtype), key=key)
    assert after(3, tokens) == ([0, 1, 2], [1, 2, 4])


def test_several_layers_of_features():
    """A model that reads two layers of the tower has none of one length, and says what to do."""
    model = llava.__wrapped__(blocks=3, vision_feature_layer=[-2, -1])
    with pytest.raises(UserError, match="reads several of its layers"):
        model.features(picture(model), ToMe(4))
    assert len(model.features(picture(model), ToMe(4, "after"))[0]) == 4


# --- edges ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n", range(1, 9))
def test_every_count(n):
    """Any number left of any n, more than half fewer too: convex, disjoint, in order."""
    keys = plane(*[40. * i for i in range(n)]).tolist()
    tokens = image(keys, tuple(map(float, range(n + 1))))
    for k in range(1, n + 1):
        method = ToMe(k, "after")
        assert all(LAWS[law].holds(method, tokens) for law in ("convex", "disjoint", "ordered", "budget"))


def test_a_zero_key():
    """Is like no other, at cosine 0; the released code has no epsilon, and gets NaN. 2, of zeros, stays."""
    assert after(3, image(((1, 0), (0, 0), (0, 1), (0, 1)))) == ([0, 1, 2], [1, 2, 4.5])


def test_a_needle_is_merged():
    """Token 4 of the first example is in the mean of 3 and 4, whatever looks at it: needle and select are not declared."""
    assert 3 not in ToMe(3, "after").reduce(image()).keep
    assert ToMe().laws == {"convex", "disjoint", "ordered", "budget"}
    assert convex(ToMe(3), image()) and disjoint(ToMe(3), image())


def test_not_a_number():
    with pytest.raises(UserError, match="keys contain NaN.*float32"):
        after(2, image(((1, 0), (float("nan"), 0), (0, 1), (0, 1))))


@pytest.mark.parametrize("options, message", [
    (dict(keep=0), "keep 0 is out of range"), (dict(keep=1.5), "keep 1.5 is out of range"),
    (dict(where="before"), "where"), (dict(prop_attn=1), "prop_attn")])
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        ToMe(**options)
