"""Which tokens a method keeps, in four numbers that need no answer: are they alike, near each other, the same again?

    cosine      between a kept token and the most similar other one, on average: 1 if each has a twin
    distance    on the grid, in patches, from a kept token to the nearest other one of its tile, on average
    rank        effective rank of the (k, D) matrix of kept tokens, not centred: exp(H), H the entropy of the singular
                values divided by their sum (Roy and Vetterli, "The effective rank: a measure of effective
                dimensionality", EUSIPCO 2007)
    overlap     Jaccard index of the tokens kept for two questions about one picture: 1 if the text is not read

The first three are of the tokens that are left after the last cut, merged ones as merged. cosine and rank read their
hidden states as they enter the next decoder layer, which is layer 0 if the cut is before the decoder, or if there is
none. States of different layers are not alike, so compare a method with random tokens of its own place. For overlap a
merged token is the one whose place it takes.
"""

from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F

from minivlm.trace import Trace
from pruning.base import Tokens

NAMES = ("cosine", "distance", "rank")
LEGEND = (
    "of the tokens after the last cut, as they enter the next layer: cosine to the most similar other token; distance",
    "in patches to the nearest; effective rank (Roy and Vetterli 2007); and overlap, the Jaccard index of",
    "what two questions about one picture keep",
)


@dataclass(repr=False)
class Watched(Trace):
    """A Trace that also holds the sequence as it enters the decoder layer after the last cut."""

    last: Tokens | None = None
    was_cut: bool = True               # since `last` entered; at first, so that layer 0 counts

    def reduce(self, site, layer, tokens, r):
        """Note a reduction."""
        super().reduce(site, layer, tokens, r)
        self.was_cut = True

    def enter(self, tokens):
        """Note the tokens that enter a decoder layer."""
        super().enter(tokens)
        if self.was_cut:
            self.last = tokens
            self.was_cut = False


def statistics(trace):
    """{"cosine", "distance", "rank"} of the tokens after the last cut; None for a number of too few tokens."""
    hidden = trace.last.hidden[trace.last.visual]                                  # (k, D)
    grid = trace.last.grid                                                         # (k, 3)
    values = (nearest_cosine(hidden), nearest_distance(grid), effective_rank(hidden))
    return dict(zip(NAMES, map(rounded, values)))


def rounded(value):
    """The value without its last digits, which depend on the number of threads; None stays None."""
    return None if value is None else round(value, 6)


def nearest_cosine(hidden):
    """The cosine of each of k tokens (k, D) to the most similar other one, on average; None for fewer than two."""
    if len(hidden) < 2:
        return None
    direction = F.normalize(hidden.double(), dim=1)
    cosine = direction @ direction.T                                               # (k, k)
    cosine.fill_diagonal_(-torch.inf)
    return cosine.max(dim=1).values.mean().item()


def nearest_distance(grid):
    """The distance of each of k places (k, 3) to the nearest other one of its tile, on average; None if none has one.

    (0, 0), (0, 1) and (0, 5) of one tile: 1, 1 and 4, so 2 on average.
    """
    on_grid = grid[grid[:, 1] >= 0].double()                                       # (m, 3)
    tile, row, column = on_grid.T
    distance = torch.hypot(row[:, None] - row, column[:, None] - column)           # (m, m)
    is_other_tile = tile[:, None] != tile
    distance.masked_fill_(is_other_tile, torch.inf).fill_diagonal_(torch.inf)
    if not distance.isfinite().any():
        return None
    nearest = distance.min(dim=1).values                                           # (m,)
    return nearest[nearest.isfinite()].mean().item()


def effective_rank(hidden):
    """exp of the entropy of the normalised singular values of (k, D); None without tokens.

    Orthogonal rows of the same length: k. Rows that are all alike: 1. The squares of the singular values are the
    eigenvalues of hidden @ hidden.T, which is only (k, k); those that are 0 but for rounding are dropped.
    """
    hidden = hidden.double()
    squares = torch.linalg.eigvalsh(hidden @ hidden.T)                             # (k,)
    if not squares.any():
        return None
    rounding = max(hidden.shape) * torch.finfo(squares.dtype).eps * squares.max()
    singular = squares[squares > rounding].sqrt()
    share = singular / singular.sum()
    return torch.special.entr(share).sum().exp().item()


def bits(kept):
    """The kept tokens as a number in hexadecimal, whose bit i is token i: bits([0, 2, 5]) -> "25"."""
    return f"{sum(1 << i for i in kept):x}"


def overlap(images, kept):
    """Jaccard index, mean over all pairs of questions about one picture; None if no picture has two.

    images: the picture of each question; kept: of each question, the tokens that each draw keeps, as `bits`.
    """
    of_image = {}
    for image, draws in zip(images, kept):
        of_image.setdefault(image, []).append(draws)
    indices = []
    for questions in of_image.values():
        for some, others in combinations(questions, 2):
            indices += [jaccard(int(a, 16), int(b, 16)) for a, b in zip(some, others)]
    return sum(indices) / len(indices) if indices else None


def jaccard(a, b):
    """Of the tokens in either of two sets of bits, the share in both; 1 for two empty sets."""
    either = (a | b).bit_count()
    return (a & b).bit_count() / either if either else 1.0


def summary(items, rows):
    """{"cosine", "distance", "rank", "overlap"} of a contestant: means over the questions that have the number."""
    numbers = {}
    for name in NAMES:
        known = [row["statistics"][name] for row in rows if row["statistics"][name] is not None]
        numbers[name] = sum(known) / len(known) if known else None
    numbers["overlap"] = overlap([item.image for item in items], [row["kept"] for row in rows])
    return numbers


def lines(contestants):
    """The table as text, of the contestants of a result."""
    ran = [row for row in contestants if "statistics" in row]
    width = max(len(row["contestant"]) for row in ran)
    yield ""
    yield f"{'':{width}}  cosine  distance   rank  overlap"
    for row in ran:
        numbers = row["statistics"]
        cells = [cell(numbers["cosine"], 6, 3), cell(numbers["distance"], 8, 2), cell(numbers["rank"], 5, 1),
                 cell(numbers["overlap"], 7, 2)]
        yield f"{row['contestant']:{width}}  {'  '.join(cells)}".rstrip()
    yield ""
    yield from LEGEND


def cell(number, width, digits):
    """The number as text of this width; blanks for None."""
    return " " * width if number is None else f"{number:{width}.{digits}f}"
