"""Why late tokens win: keys without content, rotated by position. The mechanism is lab/attention/demo.py.

FastV keeps what the last token attends to. Here queries and keys are random, so there is nothing to find. They share a
direction, as those of trained models do, and rotary embedding turns each by its position.
"""

from minivlm.course.labs.form import Lab, percent
from minivlm.lab.attention import demo
from minivlm.lab.attention.figures import interval
from minivlm.lab.attention.maps import LEGEND, row_of_maps
from minivlm.lab.attention.watch import IDS
from minivlm.lab.draw.sheet import sheet

KEEP = 0.25                            # share of the tokens that a head keeps
SHARED, CONTROL = demo.KEYS            # keys with a common direction, and without
WORDS = {
    "usual": "with the usual positions",
    "reversed": "with the image's positions reversed",
    "equal": "with one position for the whole image",
    "unrotated": "without rotation",
}

LAB = Lab(
    question="Queries and keys are random: there is nothing to see. Which patches does FastV keep?",
    choices=(
        "as many in the upper half of the image as in the lower one: nothing is favoured",
        "most in the upper half, which is read first",
        "most in the lower half, which is next to the question",
    ),
    count=256,
    units="heads",
    seconds=5,
    read_on=(
        "FEATHER, arXiv:2412.13180, and ASAP, arXiv:2603.14549, section 3",
        "minivlm/lab/attention/demo.py; `python run.py attention` asks whether the shipped model has the bias, too",
    ),
)


def measure(count, seed):
    """{"heads", "rows": of each kind of keys and positions the share of the kept tokens in the lower half}"""
    rows = []
    for keys, similarity in demo.KEYS.items():
        attention = demo.attention(similarity, seed, count)                        # (heads, ids, n)
        for ids, of_ids in zip(IDS, attention.unbind(dim=1)):
            shares = in_lower_half(of_ids)                                         # (heads,)
            ends = interval(shares, range(count), 0.0, 1.0)
            mean_map = of_ids.mean(dim=0)                                          # (n,)
            rows.append(dict(keys=keys, ids=ids, share=float(shares.mean()), interval=ends, map=mean_map.tolist()))
    return dict(heads=count, rows=rows)


def in_lower_half(attention):
    """Of the tokens that each head keeps, the share in the lower half of the image. (heads, n) -> (heads,)"""
    n = attention.shape[1]
    kept = attention.topk(round(KEEP * n)).indices         # (heads, k)
    return (kept >= n // 2).double().mean(dim=1)


def table(numbers):
    """A line for each kind of keys and positions."""
    yield f"{numbers['heads']} random heads; in the lower half of the image, of the {KEEP:.0%} with the most attention:"
    yield ""
    for row in numbers["rows"]:
        yield f"{row['keys']:17} {WORDS[row['ids']]:38} {percent(row)}"


def side(row):
    """Where the kept tokens lie: "lower" or "upper" half, or "neither" if the interval holds one half."""
    low, high = row["interval"]
    if low > 0.5:
        return "lower"
    return "upper" if high < 0.5 else "neither"


def right(numbers):
    """Which half has most of what is kept, with the usual positions."""
    return ("neither", "upper", "lower").index(side(numbers["rows"][0]))


def sentences(numbers):
    """The bias, and which of the other rows still have it."""
    first, *others = numbers["rows"]
    share = percent(first)
    bias = side(first)
    if bias == "neither":
        return [f"No bias can be told: {share} of what is kept lies in the lower half."]
    said = [f"The {bias} half has most of what is kept: {share} lies in the lower half, and no key has any content."]
    for row in others:
        if row["keys"] == SHARED:
            said.append(f"{WORDS[row['ids']].capitalize()} it {after(row, first)}: {percent(row)}.")
        elif row["ids"] == "usual":
            said.append(f"Without a common direction of the keys it {after(row, first)}: {percent(row)}.")
    return said


def after(row, first):
    """What becomes of the first row's bias in another row."""
    if side(row) == "neither":
        return "is gone"
    if side(row) != side(first):
        return "turns over"
    least = min(abs(end - 0.5) for end in first["interval"])
    most = max(abs(end - 0.5) for end in row["interval"])
    return "weakens" if most < least else "stays"


def picture(numbers):
    """The mean attention on the image, a row for each kind of keys."""
    rows = []
    for keys in (SHARED, CONTROL):
        own = [row for row in numbers["rows"] if row["keys"] == keys]
        rows.append(row_of_maps(keys, [row["map"] for row in own], demo.SIDE, [row["ids"] for row in own]))
    return sheet(rows, "Keys without content: what the last token attends to", legend=LEGEND)
