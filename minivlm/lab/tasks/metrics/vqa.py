"""VQA accuracy: an answer is right if four of the ten people gave it, and partly right if fewer did.

Each person is left out in turn, and the answer gets min(1, matches among the other nine / 3); the mean of the ten is
the score. So 0, 1, 2, 3 and 4 people that agree with it make 0, 0.3, 0.6, 0.9 and 1.

VQAv2 and TextVQA differ in what is made alike. TextVQA: the prediction and all people's answers, by `normalized`.
VQAv2: the prediction by `normalized`, as LLaVA submits it and lmms-eval does too. The challenge's script then makes
both alike (no 's apart, no commas and question marks first), but only if people do not all agree: if all say "Yes",
"yes" is wrong. By both rules the scores are the same.
"""

from minivlm.lab.tasks.metrics.base import Metric
from minivlm.lab.tasks.metrics.vqa_words import normalized, one_line, punctuated, words


def soft(prediction, people):
    """soft("red", ["red"] * 2 + ["blue"] * 8) -> 0.6: the answer's score."""
    matches = sum(answer == prediction for answer in people)
    shares = []
    for answer in people:
        others = matches - (answer == prediction)
        shares.append(min(1, others / 3))
    return sum(shares) / len(shares)


class TextVqa(Metric):
    """Everything is made alike."""

    def score(self, question, answer):
        """0 to 1."""
        return soft(normalized(answer), [normalized(own) for own in question.answer])


class VqaV2(Metric):
    """As the challenge's script does it, on predictions that LLaVA's script has made alike."""

    def score(self, question, answer):
        """0 to 1."""
        prediction = normalized(answer)
        people = [one_line(own) for own in question.answer]
        if len(set(people)) > 1:
            prediction = words(punctuated(prediction))
            people = [words(punctuated(own)) for own in people]
        return soft(prediction, people)
