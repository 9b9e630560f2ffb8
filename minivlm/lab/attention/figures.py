"""From measured attention to figures: correlation with the token's index, shares by row of patches, and verdicts.

    correlation    Pearson's, of a question's attention row with the index of the image token, mean over the questions:
                   above 0, late tokens get more
    interval       95 %, normal, with the variance of whole pictures, since questions about one picture are alike; that
                   of a difference to the usual position ids is paired
    of_mean        the correlation of the mean row, in which what single questions look at is averaged away
    share          of the row that the image gets
    by_row         of what the image gets, the share of each row of patches, from the top
    alike          mean correlation between the maps of two families of questions
"""

from itertools import combinations
from math import isqrt

import torch

from minivlm.lab.tasks.intervals import Z

AFTER = "turns over", "weakens", "stays", "grows"  # what other ids do to a late bias


def correlation(row, other):
    """Pearson's, along the last dimension; 0 for a row that is constant. (.., m), (m,) or (.., m) -> (..)"""
    row = row.double() - row.double().mean(dim=-1, keepdim=True)
    other = other.double() - other.double().mean(dim=-1, keepdim=True)
    scale = row.norm(dim=-1) * other.norm(dim=-1)
    return (row * other).sum(dim=-1) / scale.clamp_min(1e-30)


def interval(values, pictures, least=-1.0, most=1.0):
    """(low, high): the interval of the mean of a number per question (Q,). pictures: the picture of each question.

    With a single picture nothing is known: it is the whole range from `least` to `most`.
    """
    number = {picture: i for i, picture in enumerate(dict.fromkeys(pictures))}
    picture_of = torch.tensor([number[picture] for picture in pictures])           # (Q,)
    count = len(number)
    if count == 1:
        return least, most
    mean = values.mean()
    # of each picture, the sum of its questions' distances from the mean
    sums = values.new_zeros(count).index_add(0, picture_of, values - mean)         # (pictures,)
    variance = sums.square().sum() * count / (count - 1) / len(values) ** 2
    half = Z * variance.sqrt()
    return max(least, float(mean - half)), min(most, float(mean + half))


def index_correlations(attention, pictures):
    """[{"value", "interval", "difference", "difference_interval", "of_mean"}], one for each case, the usual one first.

    attention: (Q, cases, m) of one layer; pictures: of the Q questions.
    """
    index = torch.arange(attention.shape[-1])
    by_question = correlation(attention, index).T                                  # (cases, Q)
    of_mean = correlation(attention.mean(dim=0), index)                            # (cases,)
    rows = []
    for values, mean_value in zip(by_question, of_mean):
        difference = values - by_question[0]
        rows.append(dict(
            value=float(values.mean()),
            interval=interval(values, pictures),
            difference=float(difference.mean()),
            difference_interval=interval(difference, pictures, -2.0, 2.0),
            of_mean=float(mean_value),
        ))
    return rows


def is_late(correlated):
    """Whether late tokens get more: the interval lies above 0."""
    low, _ = correlated["interval"]
    return low > 0


def verdict(usual, other):
    """What other ids do to the bias of a layer: one of AFTER, or "" if the layer has none with the usual ids."""
    if not is_late(usual):
        return ""
    turned, weakened, stays, grown = AFTER
    low, high = other["difference_interval"]
    if other["interval"][1] < 0:
        return turned
    if high < 0:
        return weakened
    return grown if low > 0 else stays


def facts(measured, cases, contestants, items):
    """Everything as plain data: figures of each layer, maps of each family and case, kept tokens of each method."""
    maps = family_maps(measured.attention[:, 0], items)
    by_case = measured.attention.mean(dim=0)               # (cases, L, m)
    layers = layer_facts(measured, cases, items, maps)
    labels = [case.label for case in cases]
    kept = {}
    for i, contestant in enumerate(contestants):
        kept[contestant.label] = counted(measured.kept[:, i])
    return dict(
        questions=len(items),
        tokens=float(measured.tokens.mean()),
        side=measured.kept.shape[-1],
        layers=layers,
        maps={name: of_family.tolist() for name, of_family in maps.items()},
        cases=dict(zip(labels, by_case.tolist())),
        kept=kept,
    )


def family_maps(attention, items):
    """{family: (L, m)}: the mean map of its questions; the first, "all", is that of all. attention: (Q, L, m)"""
    maps = {"all": attention.mean(dim=0)}
    for family in sorted({item.family for item in items}):
        own = [i for i, item in enumerate(items) if item.family == family]
        maps[family] = attention[own].mean(dim=0)
    return maps


def layer_facts(measured, cases, items, maps):
    """[figures of each layer]"""
    pictures = [item.image for item in items]
    side = measured.kept.shape[-1]
    whole, *of_family = maps.values()
    layers = []
    for l, row in enumerate(whole):                        # (m,)
        usual, *others = index_correlations(measured.attention[:, :, l], pictures)
        for other in others:
            other["verdict"] = verdict(usual, other)
        correlated = {case.label: numbers for case, numbers in zip(cases, [usual, *others])}
        layers.append(dict(
            layer=l,
            correlation=correlated,
            share=float(measured.image[:, 0, l].mean()),
            by_row=by_row(row, side),
            alike=alike([family[l] for family in of_family]),
        ))
    return layers


def of_prompt(attention, drawn):
    """[{"layer", "correlation", "share", "by_row"}], one for each layer, of one prompt.

    attention: (L, n) of all image tokens; drawn: (L, m) of the tile that shows the whole picture.
    """
    m = drawn.shape[-1]
    side = isqrt(m)
    layers = []
    for l, (row, on_tile) in enumerate(zip(attention, drawn)):
        layers.append(dict(
            layer=l,
            correlation=float(correlation(on_tile, torch.arange(m))),
            share=float(row.sum()),
            by_row=by_row(on_tile, side),
        ))
    return layers


def by_row(row, side):
    """(m,) -> the share of each row of patches, from the top"""
    shares = row.view(side, side).sum(dim=1)
    return (shares / shares.sum()).tolist()


def alike(maps):
    """Correlation between two of these maps (m,), mean over all pairs; None if there is no pair."""
    pairs = [float(correlation(first, second)) for first, second in combinations(maps, 2)]
    return sum(pairs) / len(pairs) if pairs else None


def counted(kept):
    """{"tokens", "by_row"} of kept tokens, counted for each question by row of patches (Q, rows).

    tokens: the mean number; by_row: the share of each row, None if nothing is kept.
    """
    mean = kept.mean(dim=0)                                # (rows,)
    total = float(mean.sum())
    shares = (mean / total).tolist() if total else None
    return dict(tokens=total, by_row=shares)
