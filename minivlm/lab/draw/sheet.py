"""Panels and words on one white page: everything aligned, words wrapped to the width there is, nothing cut.

The letters are Pillow's own font, which knows English. `drawable` says what becomes of other characters.
"""

import unicodedata
from bisect import bisect_right
from functools import cache
from itertools import groupby, zip_longest

from PIL import Image, ImageDraw, ImageFont, ImageOps

MARGIN = 20                            # pixels between panels
GAP = 6                                # pixels between a panel and its words
SMALL = 15                             # sizes of letters
LARGE = 20
HEADER = 640                           # pixels: the least width of a header
BLACK = (20, 20, 20)
GREY = (95, 95, 95)
UNKNOWN = "\uffff"                     # no character, in any font
MARKS = ("Mn", "Mc", "Me", "Cf")       # categories of Unicode: accents, variants of emoji, joiners
SYMBOLS = ("So", "Sm", "Sc", "Sk")     # categories whose characters have telling names


def sheet(rows, header="", captions=(), legend=""):
    """One page of rows of panels, the columns aligned, below a header and a grey legend.

    captions[i][j] is below panel j of row i. None, as a panel, leaves its place empty.
    """
    widths = []
    for column in zip_longest(*rows):
        widths.append(max((panel.width for panel in column if panel), default=0))
    width = max(HEADER, page_width(widths))
    head = [words(header, width, LARGE), words(legend, width, color=GREY)]
    parts = [stack(head)] if header or legend else []
    for panels, texts in zip_longest(rows, captions, fillvalue=()):
        below = [words(text or "", width) for text, width in zip(texts, widths)]
        parts.append(stack([side_by_side(panels, widths), side_by_side(below, widths)]))
    page = stack(parts, MARGIN)
    return ImageOps.expand(page, MARGIN, "white")


def captioned(picture, title, text):
    """The picture with a title and a grey line of text below, both wrapped to its width."""
    width = picture.width
    return stack([picture, words(title, width), words(text, width, color=GREY)])


def words(text, width, size=SMALL, color=BLACK):
    """A white picture of that width with the wrapped text, as high as it needs; without text of height 0."""
    lines = wrap(text, width, size)
    step = round(1.35 * size)
    page = Image.new("RGB", (width, step * len(lines)), "white")
    pen = ImageDraw.Draw(page)
    for i, line in enumerate(lines):
        pen.text((1, step * i), line, color, font(size))
    return page


def wrap(text, width, size=SMALL):
    """Lines of `text` no wider than `width` pixels: broken at a space, or inside a word that is too long for a line."""
    def length(n):
        return font(size).getlength(rest[:n])

    lines = []
    for line in drawable(text).splitlines():
        rest = " ".join(line.split())
        while rest:
            fits = bisect_right(range(1, len(rest) + 1), width - 2, key=length)
            end = max(1, fits)
            if fits < len(rest):
                space = rest.rfind(" ", 0, fits + 1)
                end = space if space > 0 else end
            lines.append(rest[:end])
            rest = rest[end:].lstrip()
    return lines


def stack(pictures, gap=GAP):
    """Each below the one before on white, flush left; those of height 0 take no room."""
    pictures = [picture for picture in pictures if picture.height]
    width = max((picture.width for picture in pictures), default=1)
    height = sum(picture.height + gap for picture in pictures) - gap
    page = Image.new("RGB", (width, max(1, height)), "white")
    top = 0
    for picture in pictures:
        page.paste(picture, (0, top))
        top += picture.height + gap
    return page


def side_by_side(pictures, widths):
    """In columns of these widths, on one upper edge."""
    height = max((picture.height for picture in pictures if picture), default=0)
    page = Image.new("RGB", (max(1, page_width(widths)), height), "white")
    left = 0
    for picture, width in zip(pictures, widths):
        if picture:
            page.paste(picture, (left, 0))
        left += width + MARGIN
    return page


def page_width(widths):
    """Pixels of columns of these widths and what is between them."""
    return sum(widths) + MARGIN * (len(widths) - 1)


def drawable(text):
    """The text in characters of the font. Accents are left out, symbols are named, other characters are counted.

    drawable("café 中文 ☺") -> "cafe [2 characters not drawn] [white smiling face]"
    """
    plain = unicodedata.normalize("NFKD", text)
    plain = [c for c in plain if unicodedata.category(c) not in MARKS]
    parts = []
    for can_write, run in groupby(plain, key=lambda c: written(c) != ""):
        characters = list(run)
        if can_write:
            parts += [written(c) for c in characters]
        else:
            plural = "s" if len(characters) > 1 else ""
            parts.append(f"[{len(characters)} character{plural} not drawn]")
    return "".join(parts)


def written(character):
    """What is drawn for a character: itself, a hyphen for a dash, a symbol's name in brackets; "" for any other."""
    if character.isspace() or is_in_font(character):
        return character
    category = unicodedata.category(character)
    if category == "Pd":
        return "-"
    if category in SYMBOLS:
        name = unicodedata.name(character)
        return f"[{name.lower()}]"
    return ""


@cache
def is_in_font(character):
    """Whether the font has it; of all others it draws the same box."""
    box = font(SMALL).getmask(UNKNOWN)
    return bytes(font(SMALL).getmask(character)) != bytes(box)


@cache
def font(size):
    """Pillow's own font, Aileron, of that size."""
    return ImageFont.load_default(size=size)
