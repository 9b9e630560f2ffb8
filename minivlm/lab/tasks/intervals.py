"""95 % intervals: of shares and differences; the same if questions about one picture count together; and of any number.

Questions about one picture are not independent: a picture is easy or hard for all of them. So the variance is that of
whole pictures. With one question per picture each interval is the usual one.
"""

from math import sqrt

import numpy as np

Z = 1.959964                                       # of the normal distribution: 2.5 % lie above
DRAWS = 2000                                       # of pictures, for a bootstrap interval
CHUNK = 100                                        # draws at once


def wilson(share, n):
    """The interval of a share of n questions, by Wilson (1927). share .5 of 10 -> (.237, .763); 1 of 10 -> (.722, 1)

    For shares of questions that count by halves or thirds (several draws) it is wider than need be.
    """
    more = Z ** 2 / n
    center = share + more / 2
    variance = share * (1 - share) / n
    half = Z * sqrt(variance + more / (4 * n))
    low = (center - half) / (1 + more)
    high = (center + half) / (1 + more)
    return max(0.0, low), min(1.0, high)


def paired(differences):
    """The interval of the mean of differences, a number from -1 to 1 per question, by Bonett and Price (2012).

    It is the normal interval of the mean after two more questions, one won and one lost. Without them, no difference at
    all among few questions would prove that there is none: ten zeros -> (-.231, .231).
    """
    n = len(differences) + 2
    squares = sum(d * d for d in differences) + 2
    center = sum(differences) / n
    variance = squares / n - center ** 2
    half = Z * sqrt(variance / n)
    return max(-1.0, center - half), min(1.0, center + half)


def share_by_picture(scores, pictures):
    """Wilson's interval of the mean score, 0 to 1, with as many questions as the pictures are worth.

    That number is n divided by the design effect (Kish 1965): the variance of whole pictures divided by that of
    independent questions, at least 1. If all scores are 0, or all 1, it is the number of pictures.
    """
    n = len(scores)
    share = sum(scores) / n
    usual = share * (1 - share) / n
    if not usual:
        return wilson(share, len(set(pictures)))
    deviations = [score - share for score in scores]
    squares = sum(total ** 2 for total in totals(deviations, pictures))
    effect = squares / n ** 2 / usual
    return wilson(share, n / max(1.0, effect))


def paired_by_picture(differences, pictures):
    """The interval of Bonett and Price with the variance of whole pictures.

    The two more questions are about two more pictures.
    """
    n = len(differences) + 2
    center = sum(differences) / n
    deviations = [d - center for d in differences]
    of_pictures = totals(deviations, pictures)
    of_two_more = [1 - center, -1 - center]
    squares = sum(total ** 2 for total in of_pictures + of_two_more)
    half = Z * sqrt(squares / n ** 2)
    return max(-1.0, center - half), min(1.0, center + half)


def totals(values, pictures):
    """totals([1, 2, 3], ["a", "b", "a"]) -> [4, 2]: the sum of each picture."""
    sums = {}
    for value, picture in zip(values, pictures):
        sums[picture] = sums.get(picture, 0) + value
    return list(sums.values())


def resampled(sums, value, seed=0):
    """The values (DRAWS,) of sums of resampled pictures: as many as there are, drawn with replacement.

    sums: (pictures, F) of each picture; value: a function (.., F) -> (..). The same seed draws the same pictures, so
    that values of two contestants are paired.
    """
    count = len(sums)
    rng = np.random.default_rng(seed)
    even = np.full(count, 1 / count)
    values = []
    for _ in range(0, DRAWS, CHUNK):
        times = rng.multinomial(count, even, size=CHUNK)                           # (CHUNK, pictures)
        drawn = times @ sums                                                       # (CHUNK, F)
        values.append(value(drawn))
    return np.concatenate(values)                                                  # (DRAWS,)


def middle(values):
    """(low, high): what lies between the 2.5th and the 97.5th percentile."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
