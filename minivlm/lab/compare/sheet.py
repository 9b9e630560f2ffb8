"""Panels and words on one white page: everything aligned, words wrapped to the width there is, nothing cut.

The letters are Pillow's own font, which knows English: accents are left out, other scripts appear as empty boxes.
"""

import unicodedata
from bisect import bisect_right
from itertools import zip_longest

from PIL import Image, ImageDraw, ImageFont, ImageOps

MARGIN, GAP = 20, 6                                # pixels: between panels; between a panel and its words
SMALL, LARGE = 15, 20                              # sizes of letters
BLACK, GREY = (20, 20, 20), (95, 95, 95)


def sheet(rows, header="", captions=()):
    """One page of rows of panels, the columns aligned. captions[i][j] stands under panel j of row i.

    None, as a panel, leaves its place empty.
    """
    widths = [max((p.width for p in column if p), default=0) for column in zip_longest(*rows)]
    parts = [words(header, max(640, sum(widths) + MARGIN * (len(widths) - 1)), LARGE)] if header else []
    for panels, texts in zip_longest(rows, captions, fillvalue=()):
        told = [words(text or "", width) for text, width in zip(texts, widths)]
        parts.append(stack([_side_by_side(panels, widths), _side_by_side(told, widths)]))
    return ImageOps.expand(stack(parts, MARGIN), MARGIN, "white")


def captioned(picture, title, text):
    """The picture with a title and a grey line of text below, both wrapped to its width."""
    return stack([picture, words(title, picture.width), words(text, picture.width, color=GREY)])


def words(text, width, size=SMALL, color=BLACK):
    """A white picture of that width with the wrapped text, as high as it needs; without text of height 0."""
    lines, step = wrap(text, width, size), round(1.35 * size)
    page = Image.new("RGB", (width, step * len(lines)), "white")
    for i, line in enumerate(lines):
        ImageDraw.Draw(page).text((1, step * i), line, color, ImageFont.load_default(size=size))
    return page


def wrap(text, width, size=SMALL):
    """Lines of `text` no wider than `width` pixels: broken at a space, or inside a word that is too long for a line."""
    font, lines = ImageFont.load_default(size=size), []
    for rest in (" ".join(line.split()) for line in _plain(text).splitlines()):
        while rest:
            fits = bisect_right(range(1, len(rest) + 1), width - 2, key=lambda n: font.getlength(rest[:n]))
            space = rest.rfind(" ", 0, fits + 1) if fits < len(rest) else -1
            end = space if space > 0 else max(1, fits)
            lines.append(rest[:end])
            rest = rest[end:].lstrip()
    return lines


def stack(pictures, gap=GAP):
    """One below the other on white, flush left; those of height 0 take no room."""
    pictures, top = [p for p in pictures if p.height], 0
    height = sum(p.height + gap for p in pictures) - gap
    page = Image.new("RGB", (max((p.width for p in pictures), default=1), max(1, height)), "white")
    for picture in pictures:
        page.paste(picture, (0, top))
        top += picture.height + gap
    return page


def _side_by_side(pictures, widths):
    """In columns of these widths, on one upper edge."""
    height = max((p.height for p in pictures if p), default=0)
    page, left = Image.new("RGB", (max(1, sum(widths) + MARGIN * (len(widths) - 1)), height), "white"), 0
    for picture, width in zip(pictures, widths):
        if picture:
            page.paste(picture, (left, 0))
        left += width + MARGIN
    return page


def _plain(text):
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
