"""Three ways to count a budget: which layers have the cut behind them, which matrices, which tokens.

Papers print a share of the FLOPs, and do not always say what they count. The shape is LLaVA-1.5 7B's. Nothing is drawn
here, and nothing is measured: the formula is Eq. 7 of ASAP, in lab/cost/flops.py.
"""

from minivlm.course.labs.drawing import Bar, intervals
from minivlm.course.labs.form import Lab
from minivlm.lab.cost.flops import Formula, average
from minivlm.lab.cost.shapes import SEVEN
from pruning.budget import staged

N = 576                                # visual tokens
TEXT = 64                              # and text
LAYERS = SEVEN.text.num_hidden_layers
SCHEDULES = {                          # (layer, tokens from there on), ..
    "FastV, half": ((2, 288),),
    "FastV, quarter": ((2, 144),),
    "SparseVLM, 192": ((2, 300), (6, 200), (15, 110)),         # its lists for "192 tokens"
}
WAYS = {                               # {name: (formula, layers by which each cut comes later)}
    "the usual": (Formula(), 0),
    "2 matrices in the MLP, not 3": (Formula(ffn=2), 0),
    "with the text": (Formula(text=TEXT), 0),
    "the layer of the cut whole": (Formula(), 1),
}

LAB = Lab(
    question="`Half of the tokens from layer 2 on`: which way of counting changes the share of the FLOPs most?",
    choices=(
        "to count 2 matrices in the MLP, not 3",
        "to count the text, too",
        "to count the layer of the cut whole",
    ),
    count=0,
    units="",
    seconds=2,
    read_on=(
        "`python run.py tables`: which of these ways each figure of three papers was made by",
        "minivlm/lab/cost/flops.py, `Formula`; `python run.py cost --ffn 2 --all-tokens --cut after`",
    ),
)


def measure(count=0, seed=0):
    """{"rows": of each schedule the average and the FLOPs, and their share, under each way}; count, seed: not used."""
    rows = []
    for name, stages in SCHEDULES.items():
        ways = {}
        for way, (formula, later) in WAYS.items():
            cuts = [(layer + later, keep) for layer, keep in stages]
            entering = staged(cuts, N, LAYERS)
            flops = of(formula, entering)
            unpruned = of(formula, [N] * LAYERS)
            ways[way] = dict(average=average(entering), flops=flops, share=flops / unpruned)
        rows.append(dict(schedule=name, ways=ways))
    return dict(rows=rows)


def of(formula, entering):
    """The FLOPs of the 7B's decoder under this formula."""
    return formula.flops(entering, SEVEN.text.hidden_size, SEVEN.text.intermediate_size)


def table(numbers):
    """A block for each schedule, a line for each way."""
    yield f"LLaVA-1.5 7B, {N} visual tokens, {TEXT} of text; FLOPs of the decoder, additions not counted"
    for row in numbers["rows"]:
        yield ""
        yield f"{row['schedule']:38}average      FLOPs   of the unpruned"
        for way, own in row["ways"].items():
            yield f"  {way:36}{own['average']:7.1f}  {own['flops'] / 1e12:6.3f} T   {own['share']:15.1%}"


def changes(row):
    """{way: by how much it changes the share of the FLOPs, of the unpruned}"""
    usual, *others = row["ways"].items()
    return {way: own["share"] - usual[1]["share"] for way, own in others}


def largest(row):
    """The way that changes the share most."""
    moved = changes(row)
    return max(moved, key=lambda way: abs(moved[way]))


def right(numbers):
    """The way that changes the share most under every schedule; None if that is not one."""
    ways = {largest(row) for row in numbers["rows"]}
    return list(WAYS).index(ways.pop()) - 1 if len(ways) == 1 else None


def sentences(numbers):
    """How far apart the ways are, for the first schedule; and what an average hides."""
    first, *_ = numbers["rows"]
    usual, matrices, _, _ = first["ways"].values()
    moved = [f"{100 * change:+.1f} points ({way})" for way, change in changes(first).items()]
    yield f"{first['schedule']}: {usual['share']:.1%} of the FLOPs; counted in another way, {', '.join(moved)}."
    fewer = matrices["flops"] / usual["flops"] - 1
    yield f"With 2 matrices the FLOPs themselves change by {fewer:+.0%}."
    for row in numbers["rows"]:
        usual, *_, whole = row["ways"].values()
        yield (f"{row['schedule']}: {usual['average']:.0f} tokens in a layer on average, or {whole['average']:.0f} if "
               "the layer of the cut counts whole.")


def picture(numbers):
    """The share of the FLOPs, as bars."""
    bars = []
    for row in numbers["rows"]:
        for way, own in row["ways"].items():
            share = 100 * own["share"]
            bars.append(Bar(f"{row['schedule']}: {way}", share, (0, share), way))
    note = f"LLaVA-1.5 7B, {N} visual tokens, {TEXT} of text; of the unpruned FLOPs, counted in the same way"
    return intervals("Share of the FLOPs: three schedules, four ways to count", bars, note)
