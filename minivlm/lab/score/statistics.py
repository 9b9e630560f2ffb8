"""Which tokens a method keeps, in four numbers that need no answer: are they alike, near each other, the same again?

    cosine      of a kept token and the most similar other, on average: 1 if each has a twin
    distance    on the grid, in patches, from a kept token to the nearest other of its tile, on average
    rank        effective rank of the (k, D) matrix of kept tokens, not centred (Roy and Vetterli, "The effective rank: a
                measure of effective dimensionality", EUSIPCO 2007): exp(H), H the entropy of the singular values
                divided by their sum
    overlap     Jaccard index of what two questions about one picture keep: 1 for a method that does not read the text

The first three read the tokens that are left after the last cut, merged ones as merged: cosine and rank their hidden
states as they enter the decoder layer that follows it, which is layer 0 if the cut is before the decoder, and without a
cut. States of different layers are not alike, so methods should be compared with random tokens of their own place. A
merged token counts for overlap as the one whose place it takes.
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
    was_cut: bool = True               # since that sequence entered

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
    """{"cosine", "distance", "rank"} of what is left after the last cut, None if too few tokens are left to tell."""
    hidden = trace.last.hidden[trace.last.visual]                                  # (k, D)
    grid = trace.last.grid                                                         # (k, 3)
    values = (nearest_cosine(hidden), nearest_distance(grid), effective_rank(hidden))
    return dict(zip(NAMES, map(rounded, values)))


def rounded(value):
    """Without the last digits, which depend on the number of threads; None stays."""
    return None if value is None else round(value, 6)


def nearest_cosine(hidden):
    """Of each of k tokens (k, D) with the most similar other, on average; None of fewer than two."""
    if len(hidden) < 2:
        return None
    direction = F.normalize(hidden.double(), dim=1)
    cosine = direction @ direction.T                                               # (k, k)
    cosine.fill_diagonal_(-torch.inf)
    return cosine.max(dim=1).values.mean().item()


def nearest_distance(grid):
    """Of each of k places (k, 3) to the nearest other of its tile, on average; None if no two are on one tile.

    (0, 0), (0, 1) and (0, 5): 1, 1 and 4, so 2 on average.
    """
    on_grid = grid[grid[:, 1] >= 0].double()                                       # (m, 3)
    tile = on_grid[:, 0]
    place = on_grid[:, 1:]
    distance = torch.cdist(place, place, compute_mode="donot_use_mm_for_euclid_dist")
    is_other_tile = tile[:, None] != tile
    distance.masked_fill_(is_other_tile, torch.inf).fill_diagonal_(torch.inf)      # (m, m)
    if not distance.isfinite().any():
        return None
    nearest = distance.min(dim=1).values                                           # (m,)
    return nearest[nearest.isfinite()].mean().item()


def effective_rank(hidden):
    """exp of the entropy of the normalised singular values of (k, D); None without tokens.

    Orthogonal rows of the same length: k. Rows that are all alike: 1.
    """
    singular = torch.linalg.svdvals(hidden.double())
    if not singular.any():
        return None
    share = singular / singular.sum()
    return torch.special.entr(share).sum().exp().item()


def bits(kept):
    """The kept tokens as a number in hexadecimal, whose bit i is token i: bits([0, 2, 5]) -> "25"."""
    return f"{sum(1 << i for i in kept):x}"


def overlap(images, kept):
    """Mean Jaccard index over all pairs of questions about one picture; None if no picture has two.

    images: the picture of each question; kept: what each of its draws keeps, as `bits` says.
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
    """Of two sets of bits, the share of the tokens in either that are in both; 1 of two empty ones."""
    either = (a | b).bit_count()
    return (a & b).bit_count() / either if either else 1.0


def summary(items, rows):
    """{"cosine", "distance", "rank", "overlap"} of a contestant: means over the questions on which they are known."""
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
    """The number so wide, blank if it is not known."""
    return " " * width if number is None else f"{number:{width}.{digits}f}"
