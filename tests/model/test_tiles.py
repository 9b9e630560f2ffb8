"""LLaVA-NeXT's pictures: which grid, what lies where on the tiles, how many tokens, in which order; newlines; two
images."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import weights
from build import close
from minivlm.families.llava_next_image import Tiles, LlavaNextProcessor, best_grid
from minivlm.families.registry import read_config
from minivlm.lab.check import hf
from minivlm.trace import Trace
from pruning.base import UserError, whole_grid
from pruning.hired import HiRED
from pruning.tile_grid import TileGrid
from pruning.visionzip import VisionZip
from pruning.vispruner import VisPruner
from paths import PARITY
from tiny import MARK, Chosen, ids, llava, next_llava, tiled

COUNTS = json.loads((PARITY / "next_counts.json").read_text())
REAL = tuple(map(tuple, COUNTS["image_grid_pinpoints"]))
# Height, width; tokens as transformers counts them, and as the original does.
ROUNDED = [(47, 1128, 868, 722), (55, 176, 1360, 1262), (88, 99, 1272, 1224), (235, 1128, 1744, 1598),
           (376, 799, 1848, 1800), (987, 376, 2176, 2126)]


def tokens_of(height, width, grids=REAL, digits=7):
    """Visual tokens of a picture at LLaVA-NeXT's true size."""
    high, wide = best_grid(height, width, grids)
    return len(TileGrid(24, (high // 336, wide // 336), (height, width), digits).unpruned()[0])


# --- which grid, and how many tokens ----------------------------------------------------------------------------------

def test_grid_by_hand():
    """640 x 480 pixels (width first). 336 high, 672 wide: scale .7, 448 x 336 = 150528 pixels shown; 672 high, 336
    wide: scale .525, 336 x 252; 672 x 672: scale 1.05, all its 307200, not more. The last shows most."""
    assert best_grid(480, 640, REAL) == (672, 672)
    assert best_grid(100, 2000, REAL) == (336, 1008)  # 1008 x 50 pixels; on 672 x 672 they would be 672 x 33
    assert best_grid(2000, 100, REAL) == (1008, 336)


def test_small_picture_takes_the_first_grid():
    """100 x 100 pixels are shown whole by all; the first three leave least room, and of them the first in the list
    is taken: landscape in Hugging Face's order, portrait in the original's."""
    assert best_grid(100, 100, REAL) == (336, 672)
    assert best_grid(100, 100, [grid[::-1] for grid in REAL]) == (672, 336)


def test_every_recorded_count():
    """transformers' number of tokens for pictures of 41 x 41 sizes, from 1 to 10000 pixels a side."""
    ours = [[tokens_of(height, width) for width in COUNTS["sides"]] for height in COUNTS["sides"]]
    assert ours == COUNTS["tokens"]
    counts = sum(ours, [])
    assert {576, 576 + 72} < set(counts)
    assert max(counts) == 2928


def test_count_for_the_reference():
    """How many marks `verify --live` writes for a picture: the same numbers."""
    vision = SimpleNamespace(model_type="clip_vision_model", image_size=336, patch_size=14)
    config = SimpleNamespace(model_type="llava_next", vision_config=vision, image_token_id=7,
                             vision_feature_select_strategy="default",
                             image_grid_pinpoints=COUNTS["image_grid_pinpoints"])
    marks = [
        [len(hf.expand([7], config, iter([(height, width)]))) for width in COUNTS["sides"]]
        for height in COUNTS["sides"]
    ]
    assert marks == COUNTS["tokens"]


def test_counts_by_hand():
    """48 x 48 patches. 480 x 640 (height first): 480 * 48 / 640 = 36 rows, 6 of 48 dropped above and below: 576 + 36
    * 49."""
    assert tokens_of(480, 640) == 576 + 36 * 49
    assert TileGrid(24, (2, 2), (480, 640)).padding == (6, 0)
    assert TileGrid(24, (2, 2), (640, 480)).padding == (0, 6)
    assert tokens_of(672, 672) == 576 + 48 * 49 == 2928
    assert TileGrid(24, (1, 3), (100, 2000)).padding == (10, 0)      # 3.6 rows: 3, and (24 - 3) // 2 = 10 leaves 4
    assert tokens_of(100, 2000) == 576 + 4 * 73


def test_pictures_too_long_for_a_row_or_a_column():
    """20 x 2000 (height first): .72 rows, none is left, nor a newline. 2000 x 20: .72 columns; 72 rows of a newline
    alone."""
    assert tokens_of(20, 2000) == 576
    assert tokens_of(2000, 20) == 576 + 72
    patch, place = TileGrid(24, (3, 1), (2000, 20)).unpruned()
    assert patch[576:].tolist() == [-1] * 72
    assert place[576:].tolist() == [[1, -1, -1]] * 72


@pytest.mark.parametrize("height, width, rounded, cut", ROUNDED)
def test_rounding_before_it_is_cut(height, width, rounded, cut):
    """Sizes at which a side in patches is whole, and a float64 just below: transformers rounds to 7 digits, the
    original does not."""
    assert tokens_of(height, width) == rounded
    assert tokens_of(height, width, digits=None) == cut


def test_against_transformers(transformers):
    """Pixels (so grid and fit) and number of marks of random sizes, small, common and extreme, as its processor has
    them.

    Tiles of 24 x 24 pixels, a patch each: the counts are those of true size, and pictures may be small.
    """
    grids = [[side // 14 for side in grid] for grid in REAL]
    pictures = transformers.LlavaNextImageProcessorPil(size=dict(shortest_edge=24), crop_size=dict(height=24, width=24),
                                                       image_grid_pinpoints=grids)
    tokenizer = transformers.AutoTokenizer.from_pretrained(PARITY / "next_vicuna")
    reference = transformers.LlavaNextProcessor(pictures, tokenizer, patch_size=1, num_additional_image_tokens=1,
                                                vision_feature_select_strategy="default")
    mark = tokenizer.convert_tokens_to_ids("<image>")
    ours = LlavaNextProcessor(24, grids=tuple(map(tuple, grids)))
    generator = np.random.default_rng(0)
    for height, width in np.exp(generator.uniform(0, 6, (200, 2))).astype(int).tolist():
        image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        theirs = reference(images=image, text="<image>", return_tensors="pt")
        tiles = ours.pixels(image)
        close(tiles.pixels, theirs.pixel_values[0], 1e-6)
        assert int((theirs.input_ids == mark).sum()) == len(TileGrid(24, tiles.grid, (height, width)).unpruned()[0])


# --- what lies where --------------------------------------------------------------------------------------------------

def test_order_by_hand():
    """Tiles of 2 x 2 patches, one row of two tiles: patches 0 .. 3 of the base, 4 .. 7 and 8 .. 11. The map is 4 5 8
    9 over 6 7 10 11. A picture twice as wide as high fills it; one of 1 x 1 leaves a column away on both sides."""
    patch, place = TileGrid(2, (1, 2), (100, 200)).unpruned()
    assert patch.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1]
    base = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    first_row = [[1, 0, 0], [1, 0, 1], [1, 0, 2], [1, 0, 3], [1, -1, -1]]
    second_row = [[1, 1, 0], [1, 1, 1], [1, 1, 2], [1, 1, 3], [1, -1, -1]]
    assert place.tolist() == base + first_row + second_row
    patch, place = TileGrid(2, (1, 2), (100, 100)).unpruned()
    assert patch[4:].tolist() == [5, 8, -1, 7, 10, -1]
    assert place[4:7].tolist() == [[1, 0, 0], [1, 0, 1], [1, -1, -1]]


def test_places_on_the_map():
    """Two rows of two tiles of 2 x 2: tile 3 is the lower left one. What is on no grid stays so, and comes last."""
    place = torch.tensor([[0, 1, 0], [0, 0, 1], [3, 1, 1], [2, -1, -1], [1, 0, 0], [2, 0, 1], [1, 1, 0], [0, -1, -1]])
    tile_grid = TileGrid(2, (2, 2), (100, 100))
    assert tile_grid.on_whole_grid(place).tolist() == [[0, 1, 0], [0, 0, 1], [1, 3, 1], [1, -1, -1], [1, 0, 0],
                                                       [1, 0, 3], [1, 1, 0], [0, -1, -1]]
    assert tile_grid.order(place).tolist() == [0, 1, 7, 4, 5, 6, 2, 3]


def test_padding_is_not_shown():
    """Two tiles of 2 x 2 in a row, a square picture: the outer columns of the map show nothing, tile 1's column 0
    and tile 2's column 1. The base tile shows all of the picture, whatever its places; a class token is in no
    padding."""
    place = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 1], [2, 0, 0], [2, 1, 1], [1, -1, -1]])
    assert TileGrid(2, (1, 2), (100, 100)).is_shown(place).tolist() == [True, False, True, True, False, True]
    assert TileGrid(2, (1, 2), (100, 200)).is_shown(place).all()
    assert TileGrid(2, (2, 1), (100, 100)).is_shown(place[[0, 1, 2]]).tolist() == [True, False, True]


@pytest.mark.parametrize("method, orders", [
    (VisPruner(), [0, 1, 2, 3, 4, 5, 8, 9, 6, 7, 10, 11]), (HiRED(), [0, 1, 2, 3, 5, 8, 7, 10])])
def test_what_methods_of_the_vision_site_send_on(method, orders):
    """All patches of three tiles of 2 x 2 in a row, of a picture of 1 x 1: only HiRED leaves out the padding; nobody
    has newlines."""
    grid = torch.cat([whole_grid(2, 2, tile) for tile in range(3)])
    assert method.output_order(grid, TileGrid(2, (1, 2), (100, 100))).tolist() == orders


def test_visionzip_sends_on():
    """Of each of three tiles the class token, two patches, a contextual token: the base tile's as they are; then
    patches in the order of the map, class tokens, contextual tokens."""
    tile = [[-1, -1], [0, 1], [1, 0], [0, 0]]
    grid = torch.tensor([[t, *place] for t in range(3) for place in tile])
    assert VisionZip(4, 1).output_order(grid, TileGrid(2, (1, 2), (100, 200))).tolist() == [
        0, 1, 2, 3, 5, 9, 6, 10, 4, 8, 7, 11
    ]


# --- pixels -----------------------------------------------------------------------------------------------------------

def columns(width, height):
    """A picture whose pixels have their column as red, their row as green."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x + 200], axis=-1).astype(np.uint8))


def plain(grids, size):
    return LlavaNextProcessor(size, mean=(0,) * 3, std=(1,) * 3, grids=grids)


def test_tiles_by_hand():
    """A picture of 8 x 3 pixels on tiles of 4, of which there are two in a row: it fits as it is, its rows 0 to 2,
    and the odd row of room is below. The base tile shows all of it, squeezed to 4 x 4."""
    tiles = plain(((4, 8),), 4).pixels(columns(8, 3))
    assert tiles.pixels.shape == (3, 3, 4, 4)
    assert tiles.grid == (1, 2)
    assert tiles.size == (3, 8)
    assert len(tiles) == 3
    left, right = (tiles.pixels[1:] * 255).round().int()                           # (3, 4, 4) twice
    assert left[0, :3].tolist() == [[0, 1, 2, 3]] * 3
    assert right[0, :3].tolist() == [[4, 5, 6, 7]] * 3
    assert left[1, :3, 0].tolist() == [0, 1, 2]
    assert left[:, 3].abs().sum() == right[:, 3].abs().sum() == 0
    base = columns(8, 3).resize((4, 4), Image.Resampling.BICUBIC)
    assert (tiles.pixels[0] * 255).round().int().permute(1, 2, 0).tolist() == np.asarray(base).astype(int).tolist()


def test_black_before_it_is_normalised():
    """Room is black as in the picture, not zero after normalisation."""
    tiles = LlavaNextProcessor(4, grids=((4, 8),)).pixels(columns(8, 3))
    black = torch.tensor([-.48145466 / .26862954, -.4578275 / .26130258, -.40821073 / .27577711])
    close(tiles.pixels[1, :, 3], black[:, None].expand(3, 4))


def test_boxes():
    """A picture of 8 x 3 on a grid of 8 x 4 pixels shows one row too many, below; one of 80 x 30, the same ten times
    as large."""
    assert plain(((4, 8),), 4).box(8, 3) == ((0, 0, 8, 3), (0, 0, 8, 4))
    assert plain(((4, 8),), 4).box(80, 30) == ((0, 0, 80, 30), (0, 0, 80, 40))
    assert plain(((4, 8),), 4).box(4, 4) == ((0, 0, 4, 4), (-2, 0, 6, 4))


@pytest.mark.parametrize(
    "size", [(500, 333), (333, 500), (7, 5), (1, 1), (2000, 100), (40, 900), (3, 4000), (56, 56), (85, 29)]
)
def test_pixels_against_transformers(size, transformers):
    """The same bytes, whatever the shape; and the size that the model gets."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    grids = [[n // 12 for n in grid] for grid in REAL]
    theirs = transformers.LlavaNextImageProcessorPil(size=dict(shortest_edge=28), crop_size=dict(height=28, width=28),
                                                     image_grid_pinpoints=grids)(image, return_tensors="pt")
    ours = LlavaNextProcessor(28, grids=tuple(map(tuple, grids))).pixels(image)
    close(ours.pixels, theirs.pixel_values[0], 1e-6)
    assert list(ours.size) == theirs.image_sizes[0].tolist()


def test_processor_of_a_folder():
    """The tile's side, the values and the grids of the checkpoint; the original's grids have width first."""
    hub = weights.load(PARITY / "next_mistral").processor
    original = weights.load(PARITY / "next_original").processor
    assert hub == LlavaNextProcessor(28, grids=((28, 56), (56, 28), (56, 56), (84, 28), (28, 84)), resize=28)
    assert set(original.grids) == set(hub.grids)
    assert read_config(PARITY / "next_original").image_grid_pinpoints[0] == [28, 56]


# --- in the model -----------------------------------------------------------------------------------------------------

def test_newlines_in_the_prompt():
    """A picture of 32 x 24 (width first) on 2 x 2 tiles of 4 x 4 patches: of 8 x 8 patches one row above and one
    below is padding. 16 patches, then six rows of 8 and the newline, which is the model's vector, not a projected
    one."""
    model = next_llava()
    image = tiled(model, 24, 32)
    trace = Trace()
    tokens = model.embed(ids(3, MARK, 2), [image], trace=trace)
    assert image.grid == (2, 2)
    assert tokens.n == model.visual_tokens(image) == trace.N == 16 + 6 * 9
    is_newline = tokens.grid[:, 1] < 0
    assert is_newline.nonzero().squeeze(1).tolist() == [16 + 9 * i + 8 for i in range(6)]
    hidden = tokens.hidden[tokens.visual]
    assert hidden[is_newline].equal(model.image_newline.expand(6, -1))
    assert tokens.grid[~is_newline][16:].tolist() == [[1, row, column] for row in range(6) for column in range(8)]
    features, _, _ = model.features(image.pixels)
    base, parts = model.multi_modal_projector(features).view(5, 16, -1).tensor_split([1])
    whole = parts.view(2, 2, 4, 4, -1).transpose(1, 2).reshape(8, 8, -1)[1:7]
    close(hidden[~is_newline], torch.cat([base[0], whole.flatten(0, 1)]))
    assert trace.grid.equal(tokens.grid)
    assert trace.padding == [(1, 0)]
    assert tokens.source.tolist() == list(range(70))


def test_an_original_counts_as_its_own_code():
    """A true tile of 24 x 24 patches, whatever the width: 47 x 1128 pixels have 4 rows on the map as transformers
    counts, 2 uncut."""
    image = Tiles(torch.empty(4, 3, 96, 96), (1, 3), (47, 1128))
    for original, tokens in ((False, 868), (True, 722)):
        model = llava(layers=2, blocks=2, grid=24, original=original, image_grid_pinpoints=((96, 288),))
        assert model.visual_tokens(image) == tokens


def test_two_images():
    """Each has two grids: 0 and 1, 2 and 3; sources go on."""
    model = next_llava()
    trace = Trace()
    images = [tiled(model, 24, 32), tiled(model, 60, 10, seed=1)]
    tokens = model.embed(ids(1, MARK, 2, MARK, 1), images, trace=trace)
    assert tokens.grid[:, 0].bincount().tolist() == [16, 54, 16, 12 * 3]
    assert trace.images == [range(70), range(70, 122)]
    assert tokens.source.tolist() == list(range(122))
    assert tokens.visual.tolist() == [*range(1, 71), *range(73, 125)]


def test_reduced_at_the_vision_site():
    """Two of each tile, of 2 x 2: the tower's 80 patches are the sources, padding and all; those kept are in the
    order of the map, without newlines; features are projected afterwards."""
    model = next_llava()
    image = tiled(model, 24, 32)
    trace = Trace()
    method = Chosen([0, 15, 16, 31, 32, 47, 48, 63, 64, 79], site="vision")
    tokens = model.embed(ids(2, MARK, 1), [image], method, trace)
    assert trace.N == 80
    assert trace.padding == [(0, 0)]
    assert tokens.source.tolist() == trace.steps[0].kept.tolist() == [0, 15, 16, 32, 31, 47, 48, 64, 63, 79]
    assert tokens.grid[2:].tolist() == [[1, 0, 0], [1, 0, 4], [1, 3, 3], [1, 3, 7], [1, 4, 0], [1, 4, 4], [1, 7, 3],
                                        [1, 7, 7]]
    features, _, _ = model.features(image.pixels)
    close(tokens.hidden[tokens.visual], model.multi_modal_projector(features)[tokens.source])
    assert trace.grid[tokens.source].equal(tokens.grid)
    assert trace.sources().argmax(dim=1).tolist() == tokens.source.tolist()


def test_hired_in_the_model():
    """No padding is sent on: patches of the unpruned prompt, without its newlines, in its order. Rows of the
    unpruned map are counted without the row of padding above it, so each of HiRED's is one more."""
    model = next_llava()
    image = tiled(model, 24, 32)
    whole = model.embed(ids(2, MARK, 1), [image])
    kept = model.embed(ids(2, MARK, 1), [image], HiRED(1.0, alpha=.2))
    is_patch = whole.grid[:, 1] >= 0
    row_above = (kept.grid[:, :1] == 1) * torch.tensor([[0, 1, 0]])
    place_of_kept = (kept.grid - row_above).tolist()
    both = [place in place_of_kept for place in whole.grid[is_patch].tolist()]
    patches = whole.hidden[whole.visual][is_patch]
    assert 0 < sum(both) == kept.n
    close(kept.hidden[kept.visual], patches[torch.tensor(both)])


def test_positions_of_tiles_are_not_kept():
    """A patch of the padding has no position in the unpruned prompt."""
    model = next_llava()
    with pytest.raises(UserError, match="VisPruner may keep patches of the padding, .* use positions=renumber"):
        model.embed(ids(2, MARK, 1), [tiled(model, 24, 32)], VisPruner(4, positions="keep"))
