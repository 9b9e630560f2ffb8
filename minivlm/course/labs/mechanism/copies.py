"""Greedy diversity with duplicates: when only copies of kept tokens are left, who is next?

DivPrune adds the token that is farthest from all that are kept. The released code does not take a picked token out of
the race; here one is taken out.
"""

import torch

from minivlm.course.labs.drawing import Dot, lines
from minivlm.course.labs.form import Lab, percent
from minivlm.lab.score.accuracy import mean, wilson
from pruning.divprune import max_min
from pruning.ranked import cosines

N = 12                                 # tokens
KEEP = 9
WIDTH = 16
DISTINCT = (12, 10, 8, 6, 4, 2)        # different ones among them
SHOWN = 4                              # of which the sentences speak

LAB = Lab(
    question=f"A search keeps the {KEEP} tokens that lie farthest apart. Only {SHOWN} of {N} differ, the others are "
             "copies. What does it keep?",
    choices=(
        "as many different tokens as it should: copies come last, but they come",
        "fewer: some token is kept several times",
    ),
    count=200,
    units="trials",
    seconds=2,
    read_on=(
        "DivPrune, arXiv:2503.02175; pruning/divprune.py, the line `no token is picked twice`",
        "the laws select and budget of pruning/laws.py, which find this in seconds if tokens are drawn with copies",
    ),
)


def released(distance, k):
    """The greedy search, in which a picked token stays in the race: indices in the order of picking (k,)."""
    gain = distance.clone().fill_diagonal_(2).min(dim=0).values                    # (n,)
    nearest = torch.full_like(gain, torch.inf)                                     # (n,)  distance to the nearest pick
    order = []
    for _ in range(k):
        pick = gain.argmax()
        order.append(pick)
        nearest = torch.minimum(nearest, distance[pick])
        gain = nearest                                     # that of the pick itself is 0: no more than that of a copy
    return torch.stack(order)


def picked_once(distance, k):
    """DivPrune's search as this repository has it. (n, n) -> (k,)"""
    order, _ = max_min(distance, k)
    return order


SEARCHES = {"as released": released, "here": picked_once}


def measure(count, seed):
    """{"trials", "rows": of each number of different tokens and each search, how often a token is kept twice}"""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for distinct in DISTINCT:
        distances = [1 - cosines(drawn(distinct, generator)) for _ in range(count)]            # (N, N) each
        for name, search in SEARCHES.items():
            indices = [len(search(distance, KEEP).unique()) for distance in distances]
            share = mean([number < KEEP for number in indices])
            ends = wilson(share, count)
            rows.append(dict(distinct=distinct, search=name, share=share, interval=ends, indices=mean(indices)))
    return dict(trials=count, rows=rows)


def drawn(distinct, generator):
    """(N, WIDTH) tokens in any order, of which so many differ, and the others are copies of these."""
    tokens = torch.randn(distinct, WIDTH, generator=generator)
    copies = torch.randint(distinct, (N - distinct,), generator=generator)
    every = torch.cat([torch.arange(distinct), copies])
    return tokens[every[torch.randperm(N, generator=generator)]]


def table(numbers):
    """A line for each number of different tokens."""
    yield f"{KEEP} of {N} tokens are to be kept; {numbers['trials']} trials; 95 % intervals"
    yield ""
    yield f"{'different':12}a token is kept twice                       different indices kept"
    yield f"{'tokens':12}{'as released':22}{'here':22}{'as released':14}here"
    for distinct in DISTINCT:
        first, second = rows_of(numbers, distinct)
        yield f"{distinct:<12}{percent(first):22}{percent(second):22}{first['indices']:<14.1f}{second['indices']:.1f}"


def rows_of(numbers, distinct):
    """The rows of both searches."""
    return [row for row in numbers["rows"] if row["distinct"] == distinct]


def right(numbers):
    """Whether the released search keeps one token several times."""
    first, _ = rows_of(numbers, SHOWN)
    return 1 if first["share"] > 0 else 0


def sentences(numbers):
    """How often, what it costs, when it does not happen, and whether the other search does it."""
    first, second = rows_of(numbers, SHOWN)
    most, _ = rows_of(numbers, N)
    if first["share"] == 0:
        yield f"With {SHOWN} different tokens among {N} no search keeps a token twice, in {numbers['trials']} trials."
        return
    yield f"With {SHOWN} different tokens among {N}, {percent(first)} of the searches keep a token several times."
    yield (f"Of the {KEEP} places {first['indices']:.1f} hold an index of their own: once only copies are left, all "
           "distances are 0, and of equals the first wins, though it is kept already.")
    yield f"If all {N} tokens differ, it happens in {percent(most)}."
    yield f"If a picked token leaves the race, it happens in {percent(second)}."


def picture(numbers):
    """The different indices that are kept, against the different tokens there are."""
    series = {name: [] for name in SEARCHES}
    for row in numbers["rows"]:
        series[row["search"]].append(Dot(row["distinct"], row["indices"]))
    title = f"Different indices that are kept, where {KEEP} of {N} tokens should be"
    return lines(title, series, sorted(DISTINCT), "indices", "different tokens")
