"""POPE: is there such an object? The mean F1 of the splits (random, popular, adversarial), where "yes" is positive.

official     The answer is what precedes the first period, without commas, as words parted by spaces. It is no if one of
             the words is No, no or not; everything else is yes, an empty answer too. The released script compares
             answers and labels by their order; here they are joined by ids.
lmms-eval    The answer must be yes or no, but for capitals. Any other one is wrong for the accuracy, and does not occur
             in precision and recall. The yes-ratio is that of the labels, not of the answers.
"""

import numpy as np

from minivlm.lab.tasks.metrics.base import Metric, ratio

WORDS_FOR_NO = ("No", "not", "no")
COUNTS = ("true yes", "false yes", "true no", "false no", "lost", "labelled yes")


class Pope(Metric):
    """Counts, for each split, in the order of COUNTS."""

    name = "F1"
    is_mean = False
    parses = True

    def __init__(self, questions, rules):
        """The splits are the families of the questions."""
        super().__init__(questions, rules)
        self.splits = list(dict.fromkeys(question.family for question in questions))

    def said(self, answer):
        """"yes" or "no"; by lmms-eval "" for anything else."""
        if self.rules == "lmms-eval":
            word = answer.lower().strip()
            return word if word in ("yes", "no") else ""
        sentence = answer.split(".")[0]
        words = sentence.replace(",", "").split(" ")
        is_no = any(word in WORDS_FOR_NO for word in words)
        return "no" if is_no else "yes"

    def score(self, question, answer):
        """1 or 0."""
        return float(self.said(answer) == question.answer)

    def is_parsed(self, question, answer):
        """Whether it is yes or no and nothing else, which official rules do not ask for."""
        return answer.lower().strip(" .\n") in ("yes", "no")

    def counts(self, questions, answers):
        """One 1 among the counts of its split, and another if the label is yes."""
        question, = questions
        said = self.said(*answers)
        kind = "true" if said == question.answer else "false"
        name = f"{kind} {said}" if said else "lost"
        split = self.splits.index(question.family)
        counts = np.zeros((len(self.splits), len(COUNTS)))
        counts[split, COUNTS.index(name)] = 1
        counts[split, COUNTS.index("labelled yes")] = question.answer == "yes"
        return counts.flatten()

    def value(self, sums):
        """The mean F1 of the splits."""
        return self.of_splits(sums)["F1"].mean(axis=-1)

    def parts(self, sums):
        """Means over the splits; and the F1 of each of several."""
        numbers = self.of_splits(sums)
        f1 = numbers.pop("F1")
        parts = {name: number.mean(axis=-1) for name, number in numbers.items()}
        if len(self.splits) > 1:
            for i, split in enumerate(self.splits):
                parts[f"F1 {split}"] = f1[..., i]
        return parts

    def of_splits(self, sums):
        """{name: (.., splits)}"""
        shape = (*sums.shape[:-1], len(self.splits), len(COUNTS))
        by_split = sums.reshape(shape)                                             # (.., splits, 6)
        true_yes, false_yes, true_no, false_no, lost, labelled = np.moveaxis(by_split, -1, 0)
        said_yes = true_yes + false_yes
        precision = ratio(true_yes, said_yes)
        recall = ratio(true_yes, true_yes + false_no)
        count = said_yes + true_no + false_no + lost
        yes = labelled if self.rules == "lmms-eval" else said_yes
        return {
            "F1": ratio(2 * precision * recall, precision + recall),
            "accuracy": ratio(true_yes + true_no, count),
            "precision": precision,
            "recall": recall,
            "yes-ratio": ratio(yes, count),
        }
