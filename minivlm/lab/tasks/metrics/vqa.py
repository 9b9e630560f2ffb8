"""VQA accuracy: an answer is right if four of the ten people gave it, and partly right if fewer did.

Each person is left out in turn, and the answer gets min(1, matches among the other nine / 3); the mean of the ten is
the score. So 0, 1, 2, 3 and 4 people that agree with it make 0, 0.3, 0.6, 0.9 and 1.

Before that, answers are made alike: lower case, punctuation, numbers, articles. The released code has oddities that
move scores, so they are kept:

- Punctuation is removed if one of its marks touches a space, or if the text has a comma between digits; else a space
  takes its place. So "t-shirt" is "t shirt", and "t- shirt" is "t shirt" too, by the other way.
- A period goes unless a digit follows. Of more than 32 periods the later ones stay: a flag is passed as the count.
- Where an apostrophe is missing it is put back. "Im" and "Ive" stay, as their forms in the table have a capital I and
  the text has none by then.

VQAv2 and TextVQA differ in what is made alike. TextVQA: the prediction and all people's answers, by `normalized`.
VQAv2: the prediction by `normalized`, as LLaVA submits it and lmms-eval does too. The challenge's script then makes
both alike (no 's apart, no commas and question marks first), but only if people do not all agree: if all say "Yes",
"yes" is wrong. By both rules the scores are the same.
"""

import re

from minivlm.lab.tasks.metrics.base import Metric

PUNCTUATION = ";/[]\"{}()=+\\_-><@`,?!"
PERIOD = re.compile(r"\.(?!\d)")
MOST_PERIODS = 32
COMMA_IN_NUMBER = re.compile(r"\d,+\d")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {word: str(n) for n, word in enumerate(NUMBERS)} | {"none": "0"}
ARTICLES = ("a", "an", "the")
WITH_APOSTROPHE = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()


def without_one(word):
    """without_one("he'd've") -> ["hed've", "he'dve"]: what it is if an apostrophe is forgotten."""
    marks = [i for i, letter in enumerate(word) if letter == "'"]
    return [word[:i] + word[i + 1:] for i in marks]


CONTRACTIONS = {form: word for word in WITH_APOSTROPHE for form in without_one(word)} | {"somebody'd": "somebodyd"}


def normalized(answer):
    """normalized("The two dogs.") -> "2 dogs": what an answer is compared as."""
    return words(punctuated(one_line(tokenized(answer))))


def tokenized(text):
    """Lower case without commas and question marks, and 's apart."""
    return text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()


def one_line(text):
    """Line breaks and tabs as spaces, none at the ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def punctuated(text):
    """Without punctuation."""
    has_number = COMMA_IN_NUMBER.search(text)
    bare = text
    for mark in PUNCTUATION:
        touches_space = f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if touches_space or has_number else " ")
    return PERIOD.sub("", bare, count=MOST_PERIODS)


def words(text):
    """Numbers as digits, no articles, apostrophes where they belong."""
    digits = [DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in digits if word not in ARTICLES)


def soft(prediction, people):
    """soft("red", ["red"] * 2 + ["blue"] * 8) -> 0.6: the answer's score."""
    matches = sum(answer == prediction for answer in people)
    shares = []
    for answer in people:
        is_match = answer == prediction
        others = matches - is_match
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
