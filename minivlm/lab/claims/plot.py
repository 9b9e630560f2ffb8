"""The claims on one page: a line per measured difference, its interval, and zero."""

from PIL import Image, ImageDraw, ImageOps

from minivlm.lab.claims.claim import DIFFERS, FAILS, HOLDS, OPEN
from minivlm.lab.draw.sheet import BLACK, GREY, LARGE, MARGIN, SMALL, font, stack, words

WIDTH = 1240                           # pixels of the page
TEXT = 620                             # of these for the claim
ROW = 22                               # from one interval to the next
# {verdict: (colour, sign)}
MARK = {HOLDS: ((0, 114, 178), "filled"), FAILS: ((213, 94, 0), "cross"), OPEN: ((130, 130, 130), "hollow"),
        DIFFERS: ((0, 158, 115), "filled")}


def page(findings):
    """The picture of {paper: [(Claim, Finding)]}. Only differences in points are drawn; the others are in the text."""
    parts = [words("Claims of papers: differences in points, with 95 % intervals. Filled: holds or differs; hollow: "
                   "cannot be told; cross: does not hold.", WIDTH, SMALL, GREY)]
    for paper, rows in findings.items():
        drawn = [(claim, finding) for claim, finding in rows if of_points(finding)]
        if drawn:
            limit = reach([measured for _, finding in drawn for measured in of_points(finding)])
            parts.append(words(f"{paper}  (the axis ends at {limit:.0f} points)", WIDTH, LARGE))
            parts += [block(claim, finding, limit) for claim, finding in drawn]
    return ImageOps.expand(stack(parts, 12), MARGIN, "white")


def of_points(finding):
    """The measured differences that are in points."""
    return [measured for measured in finding.measured if measured.unit == "points"]


def reach(measured):
    """The end of the axis: that of the longest interval, with half a point to spare."""
    return max(abs(end) for each in measured for end in each.interval) + 0.5


def block(claim, finding, limit):
    """One claim: its words on the left, its intervals on the right."""
    measured = of_points(finding)
    text = words(f"{claim.where}. {claim.says} {finding.verdict.capitalize()}.", TEXT - 20)
    height = max(text.height, ROW * len(measured)) + 4
    picture = Image.new("RGB", (WIDTH, height), "white")
    picture.paste(text, (0, 0))
    pen = ImageDraw.Draw(picture)
    middle = axis(0, limit)
    pen.line([(middle, 0), (middle, height)], GREY)
    for i, each in enumerate(measured):
        interval(pen, each, MARK[finding.verdict], limit, ROW * i + ROW // 2)
    return picture


def axis(value, limit):
    """The pixel of a difference: -limit at the left end of the right half, limit at the right end."""
    width = WIDTH - TEXT - 20
    return TEXT + width * (value + limit) / (2 * limit)


def interval(pen, measured, mark, limit, y):
    """Draw a line from end to end of the interval, and the verdict's sign at the difference."""
    color, sign = mark
    low, high = (axis(end, limit) for end in measured.interval)
    x = axis(measured.difference, limit)
    pen.line([(low, y), (high, y)], color, 2)
    if sign == "cross":
        pen.line([(x - 5, y - 5), (x + 5, y + 5)], color, 3)
        pen.line([(x - 5, y + 5), (x + 5, y - 5)], color, 3)
    else:
        fill = color if sign == "filled" else "white"
        pen.ellipse([x - 5, y - 5, x + 5, y + 5], fill, color, 2)
    pen.text((min(high + 8, WIDTH - 60), y), f"{measured.difference:+.1f}", BLACK, font(SMALL), anchor="lm")
