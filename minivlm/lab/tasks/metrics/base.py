"""What every metric is: a score of each answer, and a number of all.

The number is a function of sums over units. A unit is a question, or questions that count together, as MME's pairs do.
So an interval needs the sums only, once of the questions and again of resampled pictures.
"""

RULES = ("official", "lmms-eval")


class Metric:
    """The mean score of the questions. A subclass scores an answer; if its number is no mean, it counts otherwise."""

    name = "accuracy"
    scale = 100                        # the printed number is `value` times this
    is_mean = True                     # whether `value` is the mean of the first of the counts
    parses = False                     # whether an answer may be one that `is_parsed` refuses
    shown = 7                          # of the parts, in a table
    notes = ()                         # what a reader of the table should know

    def __init__(self, questions, rules=RULES[0]):
        """Of these questions, which may decide what is counted, by these rules."""
        self.questions = questions
        self.rules = rules

    def score(self, question, answer):
        """How right an answer is, 0 to 1."""
        raise NotImplementedError

    def is_parsed(self, question, answer):
        """Whether the answer was understood."""
        return True

    def unit(self, question):
        """What the question counts together with: the same for all of a unit. By itself if it is None."""
        return None

    def counts(self, questions, answers):
        """Numbers of a unit, which are added up over units: its score, and 1."""
        score, = map(self.score, questions, answers)
        return score, 1

    def value(self, sums):
        """The number, of sums (.., F) of the counts."""
        return ratio(sums[..., 0], sums[..., 1])

    def parts(self, sums):
        """{name: number}: further numbers of the same sums, printed as they are."""
        return {}

    def units(self):
        """[(indices of its questions), ..], in the order of the questions."""
        groups = {}
        for i, question in enumerate(self.questions):
            unit = self.unit(question)
            key = i if unit is None else unit
            groups.setdefault(key, []).append(i)
        return [tuple(group) for group in groups.values()]


def ratio(part, whole):
    """part / whole; 0 where the whole is 0. Arrays or numbers of numpy."""
    is_empty = whole == 0
    return part * (1 - is_empty) / (whole + is_empty)
