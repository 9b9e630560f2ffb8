"""95 % intervals of a share, and of the difference of two shares over the same questions.

Both take the questions as independent. Those of one family are, in the drawn world, where a family asks of a picture once;
over all families they are nearly so.
"""

from math import sqrt

Z = 1.959964                                       # of the normal distribution: 2.5 % lie above


def wilson(share, n):
    """Of a share of n questions, by Wilson (1927). share .5 of 10 -> (.237, .763); 1 of 10 -> (.722, 1)

    For shares of questions that count by halves or thirds (several draws) it is wider than need be.
    """
    center, half = share + Z ** 2 / (2 * n), Z * sqrt(share * (1 - share) / n + Z ** 2 / (4 * n ** 2))
    return max(0.0, (center - half) / (1 + Z ** 2 / n)), min(1.0, (center + half) / (1 + Z ** 2 / n))


def paired(differences):
    """Of the mean of differences, a number from -1 to 1 a question, by Bonett and Price (2012).

    The normal interval of the mean after two questions more, one won and one lost, without which no difference at all
    among few questions would be proof of none: ten zeros -> (-.231, .231).
    """
    n, total, squares = len(differences) + 2, sum(differences), sum(d * d for d in differences) + 2
    center = total / n
    half = Z * sqrt((squares / n - center ** 2) / n)
    return max(-1.0, center - half), min(1.0, center + half)
