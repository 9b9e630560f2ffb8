"""COCO captions: CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726, section 5), as the COCO evaluation computes it.

    g_n(caption)     for each n-gram its count times log(N / pictures with it in a reference), N pictures in all
    CIDEr-D_n        mean over references of exp(-(l_c - l_r)^2 / (2 sigma^2)) min(g_c, g_r) . g_r / (|g_c| |g_r|)
    CIDEr-D          10 times the mean over n = 1 .. 4

Papers print 100 times that, lmms-eval does not. Lengths l are counted in bigrams, as in the released code. N and the
n-grams of all pictures decide the weights, so a CIDEr-D of 100 pictures cannot be compared with one of 5000: the table
says how many there are. Intervals hold these weights fixed.

The released code cuts words with Stanford's PTB tokenizer, a Java program. Here they are cut by a pattern, which agrees
on plain sentences: lower case, punctuation dropped, n't and 's apart. Figures may differ in the first decimal.
"""

import re
from collections import Counter
from math import exp, log, sqrt

from minivlm.lab.tasks.metrics.base import Metric

LONGEST = 4                            # n-grams
SIGMA = 6.0
ENDING = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))\b")
WORD = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|[^\W_]+(?:[-.'][^\W_]+)*")


def tokens(caption):
    """tokens("A dog's ball, isn't it?") -> ["a", "dog", "'s", "ball", "is", "n't", "it"]"""
    text = ENDING.sub(r" \1", caption.lower())
    return WORD.findall(text)


def n_grams(caption):
    """[Counter of the n-grams] for n from 1 to 4."""
    words = tokens(caption)
    counters = []
    for n in range(1, LONGEST + 1):
        grams = zip(*(words[i:] for i in range(n)))
        counters.append(Counter(grams))
    return counters


class Cider(Metric):
    """The mean over pictures. A score is a tenth of the picture's CIDEr-D, so that it is at most 1."""

    name = "CIDEr-D"
    is_mean = False

    def __init__(self, questions, rules):
        """Counts in how many pictures each n-gram occurs."""
        super().__init__(questions, rules)
        self.scale = 10 if rules == "lmms-eval" else 1000
        self.pictures_with = Counter()
        for question in questions:
            of_picture = {gram for caption in question.answer for grams in n_grams(caption) for gram in grams}
            self.pictures_with.update(of_picture)
        self.log_pictures = log(len(questions))
        self.notes = (
            f"n-grams are weighed by the references of these {len(questions)} pictures: other sets do not compare",
            "words are cut by a pattern in place of Stanford's tokenizer",
        )

    def score(self, question, answer):
        """0 to 1."""
        said = n_grams(answer)
        own = [self.similarity(said, n_grams(caption)) for caption in question.answer]
        return min(1.0, sum(own) / len(own))

    def similarity(self, said, reference):
        """The mean over n; n-grams of one text and another."""
        apart = said[1].total() - reference[1].total()
        penalty = exp(-apart ** 2 / (2 * SIGMA ** 2))
        shares = [self.clipped_cosine(*pair) for pair in zip(said, reference)]
        return penalty * sum(shares) / LONGEST

    def clipped_cosine(self, said, reference):
        """min(g_c, g_r) . g_r / (|g_c| |g_r|) of n-grams of one n; 0 if one has no weight."""
        g_c = self.weighed(said)
        g_r = self.weighed(reference)
        norms = length(g_c) * length(g_r)
        if not norms:
            return 0.0
        clipped = sum(min(weight, g_r[gram]) * g_r[gram] for gram, weight in g_c.items() if gram in g_r)
        return clipped / norms

    def weighed(self, grams):
        """{n-gram: count times the weight of its rarity}"""
        return {gram: count * self.rarity(gram) for gram, count in grams.items()}

    def rarity(self, gram):
        """log(N / pictures with it); log N for what is in no reference."""
        return self.log_pictures - log(max(1, self.pictures_with[gram]))


def length(weights):
    """The Euclidean norm."""
    return sqrt(sum(weight * weight for weight in weights.values()))
