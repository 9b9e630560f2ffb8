"""The pictures, pixel by pixel: what is lit, dark, outlined, coloured, and what the words below say."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from minivlm.families.llava_next_image import LlavaNextProcessor
from minivlm.io.image import ImageProcessor, open_image
from minivlm.lab.draw import draw
from minivlm.lab.draw.sheet import drawable, is_in_font, sheet, stack, words, wrap
from minivlm.trace import Trace
from pruning.base import Reduction
from pruning.hired import HiRED
from paths import IMAGES
from tiny import GRIDS, MARK, Chosen, ids, llava, next_llava, picture, prefill, tiled

pytestmark = pytest.mark.internal
WHITE, PINK, GREY, BLACK = (255, 255, 255), (255, 0, 200), (150, 150, 150), (20, 20, 20)


def traced(*steps, images=1, grid=4, extra=0):
    """A trace of images of grid x grid patches (and before them `extra` tokens on no grid);
    steps: (site, layer, source, r)."""
    patch = torch.arange(grid * grid)
    off_grid = torch.tensor([[0, -1, -1]]).repeat(extra, 1)
    cell = torch.cat([off_grid, torch.stack([0 * patch, patch // grid, patch % grid], 1)])
    n = len(cell)
    trace = Trace(torch.cat([cell] * images), [range(n * i, n * (i + 1)) for i in range(images)])
    for site, layer, source, r in steps:
        trace.reduce(site, layer, SimpleNamespace(source=torch.tensor(source)), r)
    return trace


def kept(*index, **more):
    return Reduction(torch.tensor(index), **more)


def checks(width, height, size=30):
    """A photograph whose squares of `size` pixels have a colour each: (40 + 10 column, 60 + 10 row, 200)."""
    page = Image.new("RGB", (width, height))
    for left in range(0, width, size):
        for top in range(0, height, size):
            page.paste((40 + left // size * 10, 60 + top // size * 10, 200), (left, top, left + size, top + size))
    return page


def color(column, row):
    return 40 + 10 * column, 60 + 10 * row, 200


def dark(color):
    return tuple(round(.3 * light) for light in color)


@pytest.fixture
def captions(monkeypatch):
    """The words below each panel."""
    texts, captioned = [], draw.captioned

    def recording(picture, title, text):
        texts.append((title, text))
        return captioned(picture, title, text)
    monkeypatch.setattr(draw, "captioned", recording)
    return texts


# --- what was kept ----------------------------------------------------------------------------------------------------

def test_kept_patches_are_the_photograph_and_the_rest_is_dark(captions):
    """120 x 120 pixels, 4 x 4 patches: a panel of 480, patches of 120. Kept are 1 (row 0, column 1) and 14 (row 3,
    column 2). Every pixel of the two is the photograph's, every other is .3 of it, but for the white outline."""
    trace = traced(("decoder", 2, range(16), kept(1, 14)))
    panel, = draw.panels(checks(120, 120), (0, 0, 120, 120), trace, title="FastV")
    for row in range(4):
        for column in range(4):
            whole, lit = (120 * column, 120 * row, 120 * column + 120, 120 * row + 120), 4 * row + column in (1, 14)
            part = panel.crop(whole if lit else (whole[0] + 1, whole[1] + 1, whole[2] - 1, whole[3] - 1))
            shade = color(column, row) if lit else dark(color(column, row))
            assert part.getcolors() == [(part.width * part.height, shade)]
    assert panel.getpixel((119, 50)) == panel.getpixel((240, 50)) == panel.getpixel((150, 120)) == WHITE
    assert captions == [("FastV", "before layer 2: 2 of 16 tokens")]


def test_what_kept_a_token_is_boxed_in_its_colour(captions):
    """Three rules kept 1, 14 and 4: a line two pixels wide inside each patch of 120, and how many of each below."""
    r = kept(1, 4, 14, reason=torch.tensor([0, 2, 1]), reasons=("redundant", "spatial", "both"))
    panel, = draw.panels(checks(120, 120), (0, 0, 120, 120), traced(("decoder", 2, range(16), r)))
    for (column, row), shade in {(1, 0): (255, 150, 0), (2, 3): (0, 170, 255), (0, 1): (60, 220, 60)}.items():
        at = [panel.getpixel((120 * column + 60, 120 * row + y)) for y in (0, 1, 118, 119, 60)]
        assert at[:4] == [shade] * 4 and at[4] == color(column, row)
    assert captions[-1][1].endswith("1 redundant (orange); 1 spatial (blue); 1 both (green)")


def test_the_words_are_below_the_panel():
    """A title and a line more make it higher, on white, with dark letters in them."""
    def panel(title):
        trace = traced(("decoder", 2, range(16), kept(1)))
        return draw.panels(checks(120, 120), (0, 0, 120, 120), trace, title=title)[0]
    bare, titled = panel(""), panel("FastV")
    assert bare.width == titled.width == 480 and 480 < bare.height < titled.height < 560
    for page in (bare, titled):
        below = page.crop((0, 482, 480, page.height)).convert("L")
        assert below.getextrema()[0] < 120 and below.getextrema()[1] == 255


def test_what_the_crop_cut_off_is_pale_not_dark():
    """180 x 120, the middle 120 shown: a panel of 480 x 320, each side's 30 pixels 80 wide. They are lighter than the
    photograph; patches begin at 80."""
    panel, = draw.panels(checks(180, 120), (30, 0, 150, 120), traced(("decoder", 2, range(16), kept(0))))
    assert panel.width == 480
    assert panel.getpixel((120, 40)) == color(1, 0)
    assert panel.getpixel((200, 40)) == dark(color(2, 0))
    for x in (20, 60, 410, 460):
        assert sum(panel.getpixel((x, 250))) > 1.3 * sum(color(0, 3))
    assert panel.crop((0, 321, 480, panel.height)).convert("L").getextrema()[1] == 255


def test_padding_is_grey_and_counts_as_part_of_the_image():
    """120 x 60 laid on a square: 120 rows of grey above and below, kept or dark like all else."""
    panel, = draw.panels(checks(120, 60), (0, -30, 120, 90), traced(("decoder", 2, range(16), kept(0, 5))))
    assert panel.width == 480 and panel.height > 480
    assert panel.getpixel((60, 60)) == GREY and panel.getpixel((300, 60)) == dark(GREY)
    assert panel.getpixel((180, 180)) == color(1, 0) and panel.getpixel((60, 180)) == dark(color(0, 0))


def test_nothing_reduced_is_one_lit_panel(captions):
    panel, = draw.panels(checks(120, 120), (0, 0, 120, 120), traced())
    assert [panel.getpixel((120 * i + 60, 60)) for i in range(4)] == [color(i, 0) for i in range(4)]
    assert captions == [("", "nothing dropped: 16 of 16 tokens")]


def test_a_panel_for_each_reduction(captions):
    """Of 4 that were left the second keeps two, masked; evidence is counted and outlined, kept or not."""
    trace = traced(("decoder", 2, range(16), kept(0, 1, 2, 3)), ("decoder", 8, range(4), kept(1, 3, drop=False)))
    first, second = draw.panels(checks(120, 120), (0, 0, 120, 120), trace, evidence=[2, 3])
    assert [first.getpixel((120 * i + 60, 60)) == color(i, 0) for i in range(4)] == [True] * 4
    assert [second.getpixel((120 * i + 60, 60)) == color(i, 0) for i in range(4)] == [False, True, False, True]
    assert second.getpixel((240, 60)) == second.getpixel((300, 120)) == PINK and second.getpixel((120, 60)) != PINK
    assert [text for _, text in captions] == [
        "before layer 2: 4 of 16 tokens; evidence 2 of 2",
        "before layer 8: 2 of 16 tokens; 4 until then; the rest masked; evidence 1 of 2",
    ]


def test_evidence_that_is_merged_is_counted_apart(captions):
    """Of 1 and 2 neither is kept; 1 is half of the token at 0. In a later cut that token goes, and 1 with it."""
    merge = torch.zeros(2, 16)
    merge[0, [0, 1]] = .5
    merge[1, 5] = 1
    trace = traced(("decoder", 2, range(16), kept(0, 5, merge=merge)), ("decoder", 8, [0, 5], kept(1)))
    draw.panels(checks(120, 120), (0, 0, 120, 120), trace, evidence=[1, 2])
    assert [text.partition("evidence ")[2] for _, text in captions] == ["0 of 2, 1 more merged into others", "0 of 2"]


def test_two_images(captions):
    """Each is drawn with its own tokens: 16-31 are the second's. A reduction at the vision site is of one image."""
    trace = traced(("decoder", 2, range(32), kept(0, 17, 18)), images=2)
    first, second = (draw.panels(checks(120, 120), (0, 0, 120, 120), trace, image=i)[0] for i in range(2))
    assert [first.getpixel((120 * i + 60, 60)) == color(i, 0) for i in range(3)] == [True, False, False]
    assert [second.getpixel((120 * i + 60, 60)) == color(i, 0) for i in range(3)] == [False, True, True]
    trace = traced(("vision", 23, range(16), kept(0)), ("vision", 23, range(16, 32), kept(1, 2)), images=2)
    again = draw.panels(checks(120, 120), (0, 0, 120, 120), trace, image=1)
    assert len(again) == 1 and again[0].crop((0, 0, 480, 480)).tobytes() == second.crop((0, 0, 480, 480)).tobytes()
    assert [text for _, text in captions] == [
        "image 1, before layer 2: 1 of 16 tokens", "image 2, before layer 2: 2 of 16 tokens",
        "image 2, vision tower, before layer 23: 2 of 16 tokens"]


def test_tokens_on_no_patch_are_counted(captions):
    """A class token among the visual tokens is counted, and lights nothing."""
    panel, = draw.panels(checks(120, 120), (0, 0, 120, 120), traced(("vision", 23, range(17), kept(0, 2)), extra=1))
    assert [panel.getpixel((120 * i + 60, 60)) == color(i, 0) for i in range(3)] == [False, True, False]
    assert panel.getpixel((420, 420)) == dark(color(3, 3))
    assert captions == [("", "vision tower, before layer 23: 2 of 17 tokens; 1 of them on no patch")]


@pytest.mark.parametrize("mode", ["crop", "pad"])
@pytest.mark.parametrize("size", [(2000, 100), (100, 2000), (7, 5), (1, 1), (333, 500), (3000, 4000)])
def test_any_shape_has_a_panel_of_modest_size(size, mode):
    """24 x 24 patches, at the least one pixel each; a very long picture is not shown to its ends."""
    box = ImageProcessor(336, mode).box(*size)
    trace = traced(("decoder", 2, range(576), kept(0)), grid=24)
    panel, = draw.panels(Image.new("RGB", size, (90, 120, 200)), box, trace)
    assert 24 <= panel.width <= 500 and 24 <= panel.height <= 700


# --- scores, merges ---------------------------------------------------------------------------------------------------

def test_score_maps(captions):
    """Colours follow the rank, so that scores of .001 and .01 differ. Only tokens still in the sequence have one."""
    scores = torch.tensor([.0, .001, .01, .9])
    trace = traced(("decoder", 2, range(16), kept(0, 1, 2, 3)), ("decoder", 8, range(4), kept(2, 3, score=scores)))
    none, panel = draw.score_maps(checks(120, 120), (0, 0, 120, 120), trace)
    light = [sum(panel.getpixel((120 * i + 60, 60))) for i in range(4)]
    assert none is None and light == sorted(light) and len(set(light)) == 4
    assert panel.getpixel((60, 180)) == dark(color(0, 1))
    assert panel.getpixel((239, 60)) == WHITE != panel.getpixel((119, 60))
    assert captions == [("", "before layer 8: rank of 4 tokens by score; outlined: the 2 kept")]


def test_equal_scores_have_one_color():
    panel, = draw.score_maps(Image.new("RGB", (120, 120)), (0, 0, 120, 120),
                             traced(("decoder", 2, range(16), kept(0, score=torch.ones(16)))))
    assert len({panel.getpixel((120 * i + 60, 120 * j + 60)) for i in range(4) for j in range(4)}) == 1


def test_merge_maps(captions):
    """Token a, at patch 0, is made of patches 0, 1, 4 and a little of 2; b, at 10, of 2, 3, 10; c, at 15, of itself.
    A patch has the colour of the token in which it weighs most, c the pale grey of those without company;
    the rest is dark."""
    merge = torch.zeros(3, 16)
    merge[0, [0, 1, 4, 2]], merge[1, [2, 3, 10]], merge[2, 15] = torch.tensor([.3, .3, .3, .1]), 1 / 3, 1
    photo = Image.new("RGB", (120, 120), (128, 128, 128))
    trace = traced(("decoder", 2, range(16), kept(0, 10, 15, merge=merge)), ("decoder", 8, [0, 10, 15], kept(1)))
    panel, none = draw.merge_maps(photo, (0, 0, 120, 120), trace)
    at = [panel.getpixel((120 * (i % 4) + 60, 120 * (i // 4) + 60)) for i in range(16)]
    assert none is None and len({at[0], at[2], at[15], at[5]}) == 4
    assert at[0] == at[1] == at[4]
    assert at[2] == at[3] == at[10]
    assert {at[i] for i in (5, 6, 7, 8, 9, 11, 12, 13, 14)} == {dark((128,) * 3)}
    assert max(at[15]) - min(at[15]) == 0 and max(at[0]) - min(at[0]) > 60 < max(at[2]) - min(at[2])
    boxed = [panel.getpixel((120 * (i % 4) + 60, 120 * (i // 4))) == BLACK for i in range(16)]
    assert [i for i in range(16) if boxed[i]] == [0, 10, 15]
    assert captions[0][1].startswith("before layer 2: 3 tokens made of 7 patches")


def test_an_image_of_which_nothing_is_left(captions):
    """All of it is dark, in every kind of picture."""
    r = kept(0, merge=(torch.arange(32) < 16)[None] / 16, score=torch.arange(32.))
    trace = traced(("decoder", 2, range(32), r), images=2)
    photo = Image.new("RGB", (120, 120), (128, 128, 128))
    panel, _, merged = (row[0] for row in draw.rows(photo, (0, 0, 120, 120), trace, image=1))
    for page in (panel, merged):
        assert page.crop((0, 0, 480, 480)).getcolors() == [(480 * 480, dark((128,) * 3))]
    assert captions[0] == ("", "image 2, before layer 2: 0 of 16 tokens")


def test_merges_of_the_second_image_and_after_a_selection():
    """What is merged late is shown by the patches of the first picture."""
    merge = torch.tensor([[.5, .5, 0, 0], [0, 0, .5, .5]])
    trace = traced(("vision", 23, range(16), kept(0, 5)), ("vision", 23, range(16, 32), kept(3, 7)),
                   ("decoder", 2, [0, 5, 19, 23], kept(0, 2, merge=merge)), images=2)
    none, panel = draw.merge_maps(Image.new("RGB", (120, 120), (128, 128, 128)), (0, 0, 120, 120), trace, image=1)
    at = [panel.getpixel((120 * (i % 4) + 60, 120 * (i // 4) + 60)) for i in range(16)]
    assert none is None and [i for i in range(16) if at[i] != dark((128,) * 3)] == [3, 7] and at[3] == at[7]


# --- the page ---------------------------------------------------------------------------------------------------------

def test_rows_of_a_real_run():
    """Panels for every method, score maps for one that scores, merge maps for one that merges."""
    model, photo = llava(), checks(120, 120)

    def rows_of(r):
        _, _, trace = prefill(model, ids(2, MARK, 3), [picture(model)], Chosen({2: r}))
        return [len(row) for row in draw.rows(photo, (0, 0, 120, 120), trace)]
    assert rows_of([3, 7]) == [1] and rows_of(kept(3, 7, score=torch.arange(16.))) == [1, 1]
    assert rows_of(kept(3, 7, merge=torch.full((2, 16), 1 / 16))) == [1, 1]
    assert rows_of(kept(3, merge=torch.full((1, 16), 1 / 16), score=torch.arange(16.))) == [1, 1, 1]


def test_a_sheet_lines_its_columns_up():
    """Panels 100 and 60 wide above 50 and 80: columns of 100 and 80, margins of 20 around and between;
    None leaves white."""
    red, blue = (Image.new("RGB", (w, h), c) for w, h, c in ((100, 30, (255, 0, 0)), (60, 50, (0, 0, 255))))
    green, half = (Image.new("RGB", (w, 40), c) for w, c in ((50, (0, 255, 0)), (80, (0, 128, 0))))
    page = sheet([[red, blue], [green, half], [None, half]])
    assert page.size == (20 + 100 + 20 + 80 + 20, 20 + 50 + 20 + 40 + 20 + 40 + 20)
    assert page.getpixel((20, 20)) == (255, 0, 0) and page.getpixel((140, 20)) == (0, 0, 255)
    assert page.getpixel((20, 90)) == (0, 255, 0)
    assert page.getpixel((140, 90)) == page.getpixel((140, 150)) == (0, 128, 0)
    assert page.getpixel((60, 160)) == page.getpixel((19, 20)) == page.getpixel((130, 30)) == WHITE


def test_a_header_and_captions_take_room():
    panel = Image.new("RGB", (100, 30), (255, 0, 0))
    bare = sheet([[panel]])
    captioned = sheet([[panel]], captions=[["two words"]])
    headed = sheet([[panel]], "What is this?")
    assert bare.size == (140, 70) and captioned.width == 140 and captioned.height > 85
    assert headed.width == 640 + 40 and headed.height > 100


def test_words_are_wrapped_and_never_cut():
    """Lines no wider than asked, at spaces where there are any; all letters are there; lines of the text are kept."""
    text = "The quick brown fox jumps over the lazy dog. " + "abcdefghij" * 12 + "\nNext: caf\u00e9"
    lines = wrap(text, 200)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "").replace("\n", "").replace("\u00e9", "e")
    assert lines[-1] == "Next: cafe" and len(lines) > 6
    assert {word for line in wrap(text[:44], 100) for word in line.split()} == set(text[:44].split())
    for line in lines:
        edge = words(line, 202).crop((201, 0, 202, 20)).convert("L")
        assert edge.getextrema() == (255, 255) and len(wrap(line, 202)) == 1
    assert wrap("", 200) == wrap("  \n ", 200) == [] and words("", 200).size == (200, 0) and wrap("ab", 1) == ["a", "b"]


@pytest.mark.parametrize("text, drawn", [
    ("caf\u00e9 na\u00efve", "cafe naive"),
    ("\u4e2d\u6587", "[2 characters not drawn]"),
    ("\u56fe\u4e2d \u6709?", "[2 characters not drawn] [1 character not drawn]?"),
    ("yes \U0001f600", "yes [grinning face]"),
    ("\u2764\ufe0f", "[heavy black heart]"),
    ("left \u2192 right \u2013 5 \u20ac", "left [rightwards arrow] right - 5 [euro sign]"),
])
def test_characters_that_the_font_lacks(text, drawn):
    """Chinese is counted, an emoji, an arrow and a currency have their names: no character is an empty box."""
    assert drawable(text) == drawn
    assert words(text, 300).tobytes() == words(drawn, 300).tobytes()


def test_every_letter_drawn_is_in_the_font():
    """The picture of a letter is not the box that stands in for what the font lacks."""
    assert is_in_font("A") and is_in_font("?") and not is_in_font("\u4e2d") and not is_in_font("\u00e9")


def test_a_legend_is_a_grey_line_below_the_header():
    """It makes the page higher by a line; evidence is in it only if it is outlined."""
    panel = Image.new("RGB", (700, 30), (255, 0, 0))
    bare = sheet([[panel]], "What is this?")
    page = sheet([[panel]], "What is this?", legend=draw.legend())
    assert page.width == bare.width and 15 < page.height - bare.height < 40
    assert "evidence" in draw.legend([3]) and "evidence" not in draw.legend()
    assert all(word in draw.legend() for word in ("dark: dropped", "hatched: never seen"))


def test_stacked_pictures_of_no_height_take_no_room():
    red = Image.new("RGB", (10, 5), "red")
    assert stack([words("", 10), red, words("", 10), red]).size == (10, 16)


def test_a_page_from_a_file():
    """A photograph from disk, through the processor's own box, onto one page."""
    photo, processor = open_image(IMAGES / "land_500x333.png"), ImageProcessor(336)
    trace = traced(("decoder", 2, range(576), kept(*range(0, 576, 9), score=torch.arange(576.))), grid=24)
    page = sheet(draw.rows(photo, processor.box(*photo.size), trace), header="What is shown?")
    assert page.mode == "RGB" and 480 < page.width < 720 and 700 < page.height < 900


# --- tiles ------------------------------------------------------------------------------------------------------------

def tiles_traced(
    *kept_,
    cells=((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 0, 2), (1, 0, 3), (1, -1, -1)),
    padding=(0, 0),
):
    """A trace of a base tile of 2 x 2 patches and a map, here of one row of four and its newline."""
    trace = Trace(torch.tensor(cells), [range(len(cells))], [padding])
    trace.reduce("decoder", 2, SimpleNamespace(source=torch.arange(len(cells))), kept(*kept_))
    return trace


def test_base_tile_and_map_side_by_side(captions):
    """240 x 120 pixels, enlarged twice: on the left the base tile's four patches of 240 x 120, and 12 pixels on the
    right of them the map's, of 120 x 240. Kept are the base tile's second, the map's first and its newline."""
    panel, = draw.panels(checks(240, 120), ((0, 0, 240, 120), (0, 0, 240, 120)), tiles_traced(1, 4, 8))
    assert panel.width == 480 + 12 + 480
    for left, top, column, row, lit in [
        (0, 0, 0, 0, 0), (240, 0, 4, 0, 1), (0, 120, 0, 2, 0), (240, 120, 4, 2, 0), (492, 0, 0, 0, 1),
        (492, 180, 0, 3, 1), (612, 0, 2, 0, 0), (732, 180, 4, 3, 0), (852, 120, 6, 2, 0),
    ]:
        assert panel.getpixel((left + 20, top + 20)) == (color if lit else lambda *c: dark(color(*c)))(column, row)
    assert {panel.getpixel((x, 100)) for x in range(482, 490)} == {WHITE}
    assert captions == [("", "before layer 2: 3 of 9 tokens; 1 on the base tile, 1 on the map; 1 of them on no patch")]


def test_map_without_its_padding():
    """The tiles show 240 x 240 pixels of which the picture's 120 rows are the middle; of four rows of patches the map
    has two, whose box is the picture's: two patches a column of it, as if there were no padding."""
    cells = [(0, 0, 0), *((1, row, column) for row in range(2) for column in range(4))]
    boxes = (0, 0, 240, 120), (0, -60, 240, 180)
    panel, = draw.panels(checks(240, 120), boxes, tiles_traced(1, cells=cells, padding=(1, 0)))
    assert panel.getpixel((492 + 30, 30)) == color(0, 0) and panel.getpixel((492 + 150, 30)) == dark(color(2, 0))
    assert panel.getpixel((492 + 30, 150)) == dark(color(0, 2))
    rows = [(0, 0, 0), *((1, row, column) for row in range(4) for column in range(4))]
    # with the padding: grey above and below
    panel, = draw.panels(checks(240, 120), boxes, tiles_traced(5, cells=rows))
    assert panel.getpixel((492 + 30, 130)) == color(0, 0) and panel.getpixel((492 + 30, 30)) == dark(GREY)


def test_no_map(captions):
    """A picture too long for a row of the map: the base tile alone."""
    trace = Trace(torch.tensor([(0, 0, 0), (0, 0, 1)]), [range(2)], [(1, 0)])
    panel, = draw.panels(checks(240, 120), ((0, 0, 240, 120), (0, -60, 240, 180)), trace)
    assert panel.width == 480 and captions == [("", "nothing dropped: 2 of 2 tokens")]


@pytest.mark.parametrize("method", [None, HiRED(), Chosen({2: range(9)}), Chosen(range(9), site="embed")],
                         ids=["none", "hired", "decoder", "embed"])
@pytest.mark.parametrize("size", [(480, 330), (330, 480), (2000, 100), (100, 2000), (7, 5)])
def test_pictures_of_tiles_in_the_model(method, size, captions):
    """Whatever the shape and the site: all maps are drawn, the words count what the trace has."""
    model, photo = next_llava(layers=6), checks(*size)
    image = tiled(model, size[1], size[0])
    trace = prefill(model, ids(2, MARK, 3), [image], method)[2]
    box = LlavaNextProcessor(16, grids=GRIDS).box(*size)
    kept_, N = (trace.steps[0].kept if trace.steps else torch.arange(trace.N)), trace.N
    assert draw.rows(photo, box, trace) and captions[0][1].split(": ")[1].startswith(f"{len(kept_)} of {N} tokens")
    cell = trace.grid[kept_]
    base, on_map = (int(((cell[:, 0] == tile) & (cell[:, 1] >= 0)).sum()) for tile in range(2))
    has_map = ((trace.grid[:, 0] == 1) & (trace.grid[:, 1] >= 0)).any()
    assert (f"; {base} on the base tile, {on_map} on the map" in captions[0][1]) == bool(has_map)
