"""The claims on one page: a line per measured difference, its interval, and zero."""

from PIL import Image, ImageDraw, ImageOps

from minivlm.lab.claims.claim import DIFFERS, FAILS, HOLDS, OPEN
from minivlm.lab.draw.sheet import BLACK, GREY, LARGE, MARGIN, SMALL, font, stack, words

WIDTH = 1240                           # pixels of the page
TEXT = 620                             # of these for the claim
ROW = 22                               # from one interval to the next
GAP = 12                               # between two claims
SPARE = 20                             # between the words and the axis
RADIUS = 5                             # of the sign of a verdict
NUMBER = 70                            # at the right end, for a difference in figures
COLORS = {
    HOLDS: (0, 114, 178),
    FAILS: (213, 94, 0),
    OPEN: (130, 130, 130),
    DIFFERS: (0, 158, 115),
}
LEGEND = (
    "Claims of papers: differences in points, with 95 % intervals. "
    "Filled: holds or differs; hollow: cannot be told; cross: does not hold."
)


def page(findings):
    """The picture of {paper: [(Claim, Finding)]}. Only differences in points are drawn; the others are in the text."""
    parts = [words(LEGEND, WIDTH, SMALL, GREY)]
    for paper, rows in findings.items():
        drawn = [(claim, finding) for claim, finding in rows if of_points(finding)]
        if drawn:
            parts += section(paper, drawn)
    return ImageOps.expand(stack(parts, GAP), MARGIN, "white")


def section(paper, drawn):
    """The pictures of one paper: its name, then a block for each claim, all on one axis."""
    limit = max(reach(finding) for _, finding in drawn)
    heading = words(f"{paper}  (the axis ends at {limit:.0f} points)", WIDTH, LARGE)
    blocks = [block(claim, finding, limit) for claim, finding in drawn]
    return [heading, *blocks]


def of_points(finding):
    """The measured differences that are in points."""
    return [measured for measured in finding.measured if measured.unit == "points"]


def reach(finding):
    """The end of the longest interval, with half a point to spare."""
    ends = []
    for measured in of_points(finding):
        ends += measured.interval
    return max(map(abs, ends)) + 0.5


def block(claim, finding, limit):
    """One claim: its words on the left, its intervals on the right."""
    measured = of_points(finding)
    text = words(f"{claim.where}. {claim.says} {finding.verdict.capitalize()}.", TEXT - SPARE)
    height = max(text.height, ROW * len(measured)) + 4
    picture = Image.new("RGB", (WIDTH, height), "white")
    picture.paste(text, (0, 0))
    pen = ImageDraw.Draw(picture)
    zero = axis(0, limit)
    pen.line([zero, 0, zero, height], GREY)
    for i, each in enumerate(measured):
        middle = ROW * i + ROW // 2
        draw_interval(pen, each, finding.verdict, limit, middle)
    return picture


def axis(value, limit):
    """The pixel of a difference, between -limit on the left and limit on the right of the text."""
    width = WIDTH - TEXT - NUMBER
    share = (value + limit) / (2 * limit)
    return TEXT + width * share


def draw_interval(pen, measured, verdict, limit, y):
    """A line from end to end of the interval, the verdict's sign at the difference, and the difference in figures."""
    color = COLORS[verdict]
    low, high = measured.interval
    left = axis(low, limit)
    right = axis(high, limit)
    pen.line([left, y, right, y], color, 2)
    x = axis(measured.difference, limit)
    draw_sign(pen, verdict, x, y)
    pen.text((right + 8, y), f"{measured.difference:+.1f}", BLACK, font(SMALL), anchor="lm")


def draw_sign(pen, verdict, x, y):
    """A cross if the claim does not hold, else a dot, which is hollow if it cannot be told."""
    color = COLORS[verdict]
    left = x - RADIUS
    right = x + RADIUS
    top = y - RADIUS
    bottom = y + RADIUS
    if verdict == FAILS:
        pen.line([left, top, right, bottom], color, 3)
        pen.line([left, bottom, right, top], color, 3)
    else:
        fill = "white" if verdict == OPEN else color
        pen.ellipse([left, top, right, bottom], fill, color, 2)
