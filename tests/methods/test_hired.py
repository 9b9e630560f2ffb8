"""HiRED by hand, and equal to the released code's recorded behaviour, with the order in which LLaVA-NeXT sends
tokens on."""

import math

import pytest
import torch

from build import close, tiles
from golden import golden
from pruning.base import UserError
from pruning.hired import HiRED
from pruning.readings import HiREDGrid, HiREDSum
from pruning.tile_grid import TileGrid
from released import HiREDSwapped

ONE, ONE_FACTS = golden("hired_llava15")
NEXT, NEXT_FACTS = golden("hired_next")


def image(final, initial, dtype=torch.float32):
    """Tokens of tiles: of each the attention of its patches in the last block; of the base tile that in the first
    block."""
    final = torch.tensor(final)                                                    # (tiles, P)
    first = torch.zeros_like(final)
    first[0] = torch.tensor(initial)
    class_token = torch.zeros(len(final), 1)
    final = torch.cat([class_token, final], dim=1)                                 # (tiles, 1+P)
    first = torch.cat([class_token, first], dim=1)
    side = math.isqrt(final.shape[1] - 1)
    grid = (side, side) if side ** 2 == final.shape[1] - 1 else None
    return tiles(torch.zeros(*final.shape, 1, dtype=dtype), final, initial=first, grid=grid)


def kept(method, tokens):
    """Of each tile the patches kept."""
    keep = method.reduce(tokens).keep
    count = int(tokens.grid[-1, 0]) + 1
    size = tokens.n // count
    return [[int(i) % size for i in keep if i // size == tile] for tile in range(count)]


def counts(method, tokens):
    """Of each tile the number of patches kept."""
    return [len(patches) for patches in kept(method, tokens)]


# --- by hand: a base tile and two others, four patches each -----------------------------------------------------------

FINAL = [[.1, .2, .3, .4], [.4, .1, .3, .2], [.9, .8, .7, .6]]
INITIAL = [.4, .3, .2, .1]


def test_budget_follows_the_content():
    """Six of twelve, half for the base tile: 3, its best 1 2 3. Content patches: of the first block's .4 .3 .2 .1
    the top half, 0 and 1, both in the upper band, so tile 1 gets the other 3, its best 0 2 3, and tile 2 none,
    though its attention is the highest of all: the best six of twelve would be 8 9 10 11 and two more."""
    for keep in (6, .5):
        assert kept(HiRED(keep), image(FINAL, INITIAL)) == [[1, 2, 3], [0, 2, 3], []]


def test_the_sum_of_attention():
    """The paper's content: .7 and .3 of 3 tokens, 2.1 and .9, rounded down to 2 and 0: five tokens of six are left."""
    assert kept(HiREDSum(keep=6), image(FINAL, INITIAL)) == [[1, 2, 3], [0, 2], []]
    assert len(HiREDSum(keep=6).reduce(image(FINAL, INITIAL)).keep) == 5 < HiRED(keep=6).budget(12) == 6


def test_regions_and_bands():
    """Four tiles, 16 patches each; the content is the left half of the picture, in every row, an eighth each. Bands,
    one row of four each, have two content patches each: 2 tokens for every tile. Of quadrants the left ones, tiles 0
    and 2, have all: 4 0 4 0. Of four columns the first two have all, of four rows each a quarter."""
    tokens = image([[1 / 16] * 16] * 5, [.125, .125, 0., 0.] * 4)
    assert counts(HiRED(keep=16), tokens) == counts(HiREDSum(keep=16), tokens) == [8, 2, 2, 2, 2]
    assert counts(HiREDGrid(keep=16, grid=(2, 2)), tokens) == [8, 4, 0, 4, 0]
    assert counts(HiREDGrid(keep=16, grid=(1, 4)), tokens) == [8, 4, 4, 0, 0]
    assert counts(HiREDGrid(keep=16, grid=(4, 1)), tokens) == [8, 2, 2, 2, 2]
    with pytest.raises(UserError, match="grid 2,3 does not fit the 4 tiles"):
        kept(HiREDGrid(keep=16, grid=(2, 3)), tokens)


def test_alpha_is_the_share_of_content_too():
    """alpha = .25 of 8: the base tile gets 2, the others 6. Content is the top three of four, 0 1 2: two in the
    upper band, one in the lower: 4 and 2."""
    assert counts(HiRED(keep=8, alpha=.25), image(FINAL, INITIAL)) == [2, 4, 2]


def test_what_the_base_tile_cannot_use():
    """Ten of twelve, nine tenths for the base tile: 4 is all it has, 6 flow to the others. No patch is content,
    int(4 * .1) = 0: the tiles are alike, 3 each."""
    assert counts(HiRED(keep=10, alpha=.9), image(FINAL, INITIAL)) == [4, 3, 3]
    assert counts(HiRED(keep=10, alpha=1.), image(FINAL, INITIAL)) == [4, 3, 3]


def test_a_tile_has_no_more_than_its_patches():
    """Ten of twelve at alpha = .4: 4 and 6. Both content patches, int(4 * .6), are in the upper band: tile 1 would
    get 6 and has 4. All twelve at alpha = .25: 3, and of the other 9 the 8 that there are; two and one of three
    content patches make 5 and 2."""
    tokens = image(FINAL, INITIAL)
    assert counts(HiRED(keep=10, alpha=.4), tokens) == [4, 4, 0]
    assert counts(HiRED(keep=12, alpha=.25), tokens) == [3, 4, 2]
    assert HiRED(10, .4).budgets(12, 3, torch.tensor(INITIAL), tokens.grid[:4]) == [4, 4, 0]


def test_one_tile():
    """LLaVA-1.5: the best of the last block; alpha and the first block do not count. int(4 * .7) = 2."""
    for alpha in (0, .5, 1.):
        assert kept(HiRED(keep=.7, alpha=alpha), image(FINAL[:1], INITIAL)) == [[2, 3]]
    assert HiRED().reduce(image(FINAL[:1], INITIAL)).score.equal(torch.tensor(FINAL[0]))


def test_mean_over_heads():
    """.6 .3 .1 and 0 .4 .2: the mean ranks patch 1, .35, above patch 0, .3."""
    attention = torch.tensor([[[0, .6, .3, .1], [0, 0, .4, .2]]])                  # (1, H, 4)
    r = HiRED(keep=1).reduce(tiles(torch.zeros(1, 4, 1), attention, initial=attention))
    assert r.keep.tolist() == [1]
    close(r.score, [.3, .35, .15])


def test_keep_counts_tokens_of_an_image():
    """Commands read it from `per`: of 128 tokens of a prompt with two images each image gets 64, all its tiles
    together."""
    assert HiRED.per == HiREDSum.per == HiREDGrid.per == "image"


def test_order_on_the_grid_of_tiles():
    """Two tiles side by side, 2 x 2 patches each: base 0-3, then the rows of the grid of tiles, 4 5 | 8 9 and 6 7 |
    10 11. A square picture fills the middle two columns of four: 5 8 and 7 10. One half as wide fills one column, and
    (4 - 1) // 2 = 1 is cut."""
    grid = image(FINAL, INITIAL).grid                                              # (12, 3)

    def sent_on(size, grid=grid):
        return HiRED().output_order(grid, TileGrid(2, (1, 2), size)).tolist()

    assert sent_on((200, 400)) == [0, 1, 2, 3, 4, 5, 8, 9, 6, 7, 10, 11]
    assert sent_on((200, 200)) == [0, 1, 2, 3, 5, 8, 7, 10]
    assert sent_on((200, 100)) == [0, 1, 2, 3, 5, 8, 7, 10]
    assert sent_on((200, 200), grid[[3, 4, 9]]) == [0]                             # of 3 4 9, only the base tile's


def test_rows_and_columns_confused():
    """The released code lays the two tiles one above the other, and the picture, twice as wide as high, then seems
    to fill the middle: 4 rows of 2, of which 2 * 2 / 4 = 1 is the picture's, (4 - 1) // 2 = 1 above and below is
    cut: 6 7 and 8 9 are left. HiRED itself has the rows and columns right: the picture fills the map."""
    grid = image(FINAL, INITIAL).grid
    tile_grid = TileGrid(2, (1, 2), (2, 4))
    assert HiREDSwapped().output_order(grid, tile_grid).tolist() == [0, 1, 2, 3, 6, 7, 8, 9]
    assert HiRED().output_order(grid, tile_grid).tolist() == [0, 1, 2, 3, 4, 5, 8, 9, 6, 7, 10, 11]


# --- recorded ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("rate", [c["rate"] for c in ONE_FACTS["cases"]])
def test_recorded(rate):
    """LLaVA-1.5: kept patches of the released code."""
    tokens = tiles(torch.zeros(1, 577, 1), ONE["bottom_row"], initial=ONE["bottom_row"])
    assert HiRED(keep=rate).reduce(tokens).keep.tolist() == ONE[f"r{round(rate * 10_000)}.kept"].tolist()


@pytest.mark.parametrize("c", NEXT_FACTS["cases"], ids=lambda c: f"{c['case']}-{c['rate']}-{c['alpha']}")
def test_recorded_tiles(c):
    """LLaVA-NeXT: kept patches of each tile, and what the released code sends on, with its exchange of rows and
    columns. In a square grid of tiles there is no difference;
    in others the right way round loses less to the padding."""
    run = f"case{c['case']}.r{round(c['rate'] * 100)}a{round(c['alpha'] * 100)}"
    final = NEXT[f"case{c['case']}.bottom_row"]
    initial = NEXT[f"case{c['case']}.top_row"]
    tokens = tiles(torch.zeros(c["tiles"], 577, 1), final, initial=initial, grid=(24, 24))
    method = HiREDSwapped(c["rate"], c["alpha"])
    assert method.budget(tokens.n) == c["total_budget"]
    # what is kept
    keep = method.reduce(tokens).keep
    assert keep.tolist() == NEXT[f"{run}.kept_flat"].tolist()
    assert tokens.grid[keep, 0].bincount(minlength=c["tiles"]).tolist() == c["per_tile"]
    # what is sent on
    tile_grid = TileGrid(24, tuple(c["grid_hw"]), tuple(c["size_hw"]))
    released = keep[method.output_order(tokens.grid[keep], tile_grid)]
    right = keep[HiRED().output_order(tokens.grid[keep], tile_grid)]
    assert released.tolist() == NEXT[f"{run}.packed_source_flat"].tolist()
    rows, columns = c["grid_hw"]
    if rows == columns:
        assert right.equal(released)
    else:
        assert len(right) >= len(released)


# --- edges ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("m", [1, 4, 9])
def test_every_count(count, m):
    """Any budget: at least one token, at most the budget, none twice, in order; all where all are asked for."""
    generator = torch.Generator().manual_seed(m)
    tokens = image(torch.rand(count, m, generator=generator).tolist(), torch.rand(m, generator=generator).tolist())
    for keep in range(1, count * m + 1):
        for alpha in (0., .25, .5, 1.):
            for kind in (HiRED, HiREDSum):
                k = kind(keep, alpha).reduce(tokens).keep.tolist()
                assert k == sorted(set(k))
                assert 1 <= len(k) <= keep
                assert count > 1 or len(k) == keep
    assert HiRED(count * m, 1 / count).budgets(count * m, count, torch.ones(m), tokens.grid[:m])[0] == m


def test_ties():
    """Flat attention: the first patches, and the content are the first half of the base tile, the upper band."""
    assert kept(HiRED(keep=6), image([[.1] * 4] * 3, [.1] * 4)) == [[0, 1, 2], [0, 1, 2], []]
    assert kept(HiRED(keep=64), image([[1e-3] * 576], [1e-3] * 576)) == [list(range(64))]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Features do not count; attention is float32 always."""
    half = image(FINAL, INITIAL, dtype)
    assert HiRED(6).reduce(half).keep.equal(HiRED(6).reduce(image(FINAL, INITIAL)).keep)


@pytest.mark.parametrize("final, initial", [
    ([[math.nan, *FINAL[0][1:]], *FINAL[1:]], INITIAL),
    (FINAL, [math.nan, *INITIAL[1:]]),
], ids=["final", "initial"])
def test_not_a_number(final, initial):
    with pytest.raises(UserError, match="NaN.*float32"):
        kept(HiRED(keep=6), image(final, initial))


def test_a_needle_may_be_dropped():
    """With several tiles: a tile without content gets no token, whatever its class token looks at. So the law is not
    declared; nor is the budget, for what is rounded down. One tile keeps both promises."""
    final = [FINAL[0], FINAL[1], [0, 1., 0, 0]]
    assert kept(HiRED(keep=6), image(final, INITIAL))[2] == []
    assert not {"needle", "budget"} & HiRED().laws
    assert kept(HiRED(keep=1), image(final[2:], INITIAL)) == [[1]]


def test_scale_of_sums():
    """Sums of 1/16 and 2/16 are a third and two thirds of 3 tokens: 1 and 2. A tenth of them in float32 is rounded,
    and so are the budgets, to 0 and 1: the law is declared for counts alone."""
    tenth = [[a * .1 for a in f] for f in FINAL]
    assert counts(HiREDSum(keep=6), image(FINAL, [1 / 16, 0, 2 / 16, 0])) == [3, 1, 2]
    assert counts(HiREDSum(keep=6), image(tenth, [.1 / 16, 0, .2 / 16, 0])) == [3, 0, 1]
    assert kept(HiRED(keep=6), image(tenth, [a * .1 for a in INITIAL])) == kept(HiRED(keep=6), image(FINAL, INITIAL))
    assert "scale" in HiRED().laws
    assert "scale" not in HiREDSum().laws


def test_what_it_says():
    assert HiRED().laws == {"select", "ordered", "scale"}
    assert HiRED.preconditions == {"cls"}
    assert HiRED.site == "vision"
    assert HiRED().budget(576) == 115
    assert HiRED().budget(5 * 576) == 576
    assert HiRED(64).budget(5 * 576) == 64


@pytest.mark.parametrize("method, options, message", [
    (HiRED, dict(keep=0), "keep 0 is out of range"), (HiRED, dict(keep=1.5), "keep 1.5 is out of range"),
    (HiRED, dict(alpha=-.1), "alpha must be at least 0"), (HiRED, dict(alpha=1.1), "alpha must be at most 1"),
    (HiREDGrid, dict(grid=(2,)), "grid is a list of"), (HiREDGrid, dict(grid=(0, 4)), "grid must be at least 1")])
def test_bad_options(method, options, message):
    with pytest.raises(UserError, match=message):
        method(**options)
