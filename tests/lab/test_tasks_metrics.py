"""Every metric of a benchmark on cases computed by hand, and the traps of the released scorers."""

from math import e, log

import numpy as np
import pytest

from minivlm.lab.tasks.intervals import middle, paired, paired_by_picture, resampled, share_by_picture, wilson
from minivlm.lab.tasks.metrics.anls import Anls, edits
from minivlm.lab.tasks.metrics.choice import MmBench, ScienceQa
from minivlm.lab.tasks.metrics.cider import Cider, tokens
from minivlm.lab.tasks.metrics.exact import Exact
from minivlm.lab.tasks.metrics.mme import Mme
from minivlm.lab.tasks.metrics.pope import Pope
from minivlm.lab.tasks.metrics.relaxed import Relaxed
from minivlm.lab.tasks.metrics.vqa import CONTRACTIONS, TextVqa, VqaV2, normalized, punctuated, soft
from minivlm.lab.tasks.question import Question
from minivlm.lab.tasks.report import Counted, facts
from pruning.base import UserError

RULES = ("official", "lmms-eval")


def question(answer, **more):
    """A question with this answer; its picture's name is `image`."""
    return Question(more.pop("image", "a.png"), None, more.pop("family", ""), "?", answer, names=("1",), **more)


def scores(kind, answer, said, rules="official", **more):
    """The score of one answer."""
    own = question(answer, **more)
    return kind([own], rules).score(own, said)


def totals(metric, answers):
    """The value and the parts of all answers."""
    counts = sum(np.array(metric.counts([metric.questions[i] for i in unit], [answers[i] for i in unit]), dtype=float)
                 for unit in metric.units())
    return metric.value(counts), metric.parts(counts)


# --- POPE -------------------------------------------------------------------------------------------------------------

EIGHT = {                              # answer: (label, what the official rule makes of it)
    "Yes, there is.": ("yes", "yes"),
    "yes": ("yes", "yes"),
    "No, there is not.": ("no", "no"),
    "There is no dog. Yes": ("no", "no"),
    "": ("no", "yes"),
    "None": ("no", "yes"),
    "NO": ("yes", "yes"),
    "It is not": ("yes", "no"),
}


def test_pope_official():
    """Of eight answers TP 3 (two yes, NO), FP 2 (empty, None), TN 2, FN 1: P = 3/5, R = 3/4, F1 = 2/3, accuracy 5/8."""
    metric = Pope([question(label, family="random") for label, _ in EIGHT.values()], "official")
    assert [metric.said(answer) for answer in EIGHT] == [said for _, said in EIGHT.values()]
    value, parts = totals(metric, list(EIGHT))
    assert value == pytest.approx(2 / 3)
    assert parts == pytest.approx({"accuracy": 5 / 8, "precision": 3 / 5, "recall": 3 / 4, "yes-ratio": 5 / 8})


def test_pope_reads_the_first_sentence():
    """What follows the first period is not looked at; a comma is no part of a word."""
    metric = Pope([], "official")
    assert [metric.said(answer) for answer in ("Yes. It is not red.", "Well, no, it is", "not.", "nope")] == [
        "yes", "no", "no", "yes"]


def test_pope_of_lmms_eval_loses_what_it_cannot_parse():
    """Only "yes" and "NO" are words: TP 1 of "yes", FN 1 of "NO"; the other six are wrong and in neither P = 1 nor
    R = 1/2. Accuracy 1/8, and the yes-ratio is that of the labels, 4/8."""
    metric = Pope([question(label, family="random") for label, _ in EIGHT.values()], "lmms-eval")
    value, parts = totals(metric, list(EIGHT))
    assert value == pytest.approx(2 / 3)
    assert parts == pytest.approx({"accuracy": 1 / 8, "precision": 1, "recall": 1 / 2, "yes-ratio": 1 / 2})


def test_pope_is_the_mean_of_its_splits():
    """Always yes: P = 1/2, R = 1, F1 = 2/3 in one split; always no: no positive at all, and F1 is 0."""
    metric = Pope([question(label, family=split) for split in ("random", "popular") for label in ("yes", "no")],
                  "official")
    value, parts = totals(metric, ["yes", "yes", "no", "no"])
    assert value == pytest.approx(1 / 3) and parts["F1 random"] == pytest.approx(2 / 3) and parts["F1 popular"] == 0


# --- VQA accuracy -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("matches, score", [(0, 0), (1, .3), (2, .6), (3, .9), (4, 1), (10, 1)])
def test_soft_accuracy(matches, score):
    """Two of ten: if one of the two is left out one other matches, 1/3; if one of eight is, 2/3: (2 + 16) / 30."""
    assert soft("red", ["red"] * matches + ["blue"] * (10 - matches)) == pytest.approx(score)


@pytest.mark.parametrize("text, plain", [
    ("The two dogs.", "2 dogs"),
    ("none", "0"),
    ("t-shirt", "t shirt"),                        # the mark touches no space: a space takes its place
    ("t- shirt", "t shirt"),
    ("red/ blue/green", "red bluegreen"),          # one of its marks touches a space: all go
    ("1,000 a/b", "1000 b"),                       # tokenising drops the comma, "a" is an article
    ("3.5", "3.5"),
    ("5 p.m.", "5 pm"),
    ("dont", "don't"), ("hed've", "he'd've"), ("somebody'd", "somebodyd"),
    ("Im", "im"),                                  # the table has "Im" with a capital, which is gone by then
    ("man's hat", "man 's hat"),
    ("line\nbreak\t!", "line break"),
])
def test_words_are_made_alike(text, plain):
    assert normalized(text) == plain


def test_a_comma_in_a_number_glues_all_marks():
    """Of people's answers, whose commas are there: without the number "a/b" is "a b"."""
    assert punctuated("1,000 a/b") == "1000 ab" and punctuated("a/b") == "a b"


def test_only_32_periods_go():
    """re.UNICODE, 32, is passed as the count."""
    assert punctuated("." * 40) == "." * 8


def test_forms_of_contractions():
    """One apostrophe is forgotten at a time."""
    assert CONTRACTIONS["yall'll"] == CONTRACTIONS["y'allll"] == "y'all'll" and "yallll" not in CONTRACTIONS


def test_vqav2_and_textvqa_differ_if_people_agree():
    """Ten people say "Yes": the challenge's script then changes nothing, and "yes" is wrong."""
    assert scores(VqaV2, ("Yes",) * 10, "yes") == 0
    assert scores(TextVqa, ("Yes",) * 10, "yes") == 1
    assert scores(VqaV2, ("Yes",) * 9 + ("no",), "Yes.") == 1


def test_vqav2_does_not_tokenise_people():
    """"man's": apart for TextVQA on both sides; in VQAv2 only the prediction is "man 's"."""
    people = ("man's",) * 9 + ("x",)
    assert scores(TextVqa, people, "man's") == 1 and scores(VqaV2, people, "man's") == 0


# --- words ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("said, official, lenient", [
    ("Dog.", 1, 1), ("dog..", 1, 1), ("d-o-g", 0, 1), ("the dog", 0, 0), ("dog!", 0, 1), (" dog", 0, 0),
])
def test_gqa(said, official, lenient):
    assert [scores(Exact, "dog", said, rules) for rules in RULES] == [official, lenient]


def test_edits():
    """k -> s, e -> i, and a g."""
    assert edits("kitten", "sitting") == 3 and edits("", "abc") == 3 and edits("abc", "abc") == 0


@pytest.mark.parametrize("said, score", [
    ("Hello", 1), ("hell", .8), ("helios", 1 - 2 / 6), ("hxxxo", 0), ("  HELLO \n", 1), ("", 0),
])
def test_anls(said, score):
    """Of "hello": one letter of five is missing; two of six; three of five, .4, is below one half."""
    assert scores(Anls, ("nothing", "hello"), said) == pytest.approx(score)


def test_half_counts():
    """Two of four letters: 0.5 is not below 0.5."""
    assert scores(Anls, ("abcd",), "abxy") == .5


def test_spaces_do_not_help():
    """Three wrong letters and 100 spaces: by the raw lengths 1 - 3 / 103."""
    said = "xyz" + " " * 100
    assert scores(Anls, ("abc",), said) == 0
    assert scores(Anls, ("abc",), said, "lmms-eval") == pytest.approx(1 - 3 / 103)


@pytest.mark.parametrize("target, said, score", [
    ("100", "105", 1), ("100", "105.1", 0), ("-20", "-19", 1), ("5%", "0.05", 1), ("Yes", "yes", 1), ("Yes", "no", 0),
    ("0", "0.0", 0), ("0", "0", 1), ("5%", "5", 0), ("1000", "1,000", 0), ("3", "three", 0), ("nan", "nan", 1),
])
def test_relaxed_accuracy(target, said, score):
    """The second row's traps: 0 allows no margin, a percentage is a hundredth, a comma is no number."""
    assert scores(Relaxed, target, said) == score


# --- MME --------------------------------------------------------------------------------------------------------------

def pairs(family, count):
    """`count` pictures, each with a yes and a no."""
    return [question(label, family=family, image=f"{family}{i}") for i in range(count) for label in ("yes", "no")]


def test_mme_by_hand():
    """count: pictures right-right, right-wrong: accuracy 75, accuracy+ 50. OCR: one picture, both right: 200. Text
    translation, cognition: wrong-right: 50 + 0."""
    metric = Mme(pairs("count", 2) + pairs("OCR", 1) + pairs("text_translation", 1), "official")
    value, parts = totals(metric, ["Yes", "No", "yes", "maybe", "yes, it is", "no.", "no", "no"])
    assert value == 125 + 200 + 50
    assert parts == {"perception": 325, "cognition": 50, "count": 125, "OCR": 200, "text_translation": 50}


@pytest.mark.parametrize("said, official, lmms", [
    ("Yes", "yes", "yes"), ("No.", "no", "no"), (" no", "no", "no"), ("A no", "no", "no"), ("I see yes", "", ""),
    ("yno", "no", "no"), ("y", "", "yes"), ("N.", "", "no"), ("    yes", "", "yes"), ("noyes", "no", "no"),
    ("", "", ""),
])
def test_mme_looks_at_four_letters(said, official, lmms):
    """"noyes": of its first four letters, noye, only no is a word of the two."""
    assert [Mme([], rules).said(said) for rules in RULES] == [official, lmms]


def test_mme_needs_pairs():
    with pytest.raises(UserError, match="count0 of count has 1 questions"):
        Mme(pairs("count", 1)[:1], "official")


# --- choices ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("said, official, lmms", [
    ("B", 1, 1), ("B. dog", 1, 1), ("B.", 0, 1), ("B\n", 1, 0), ("The answer is B.", 1, 0), ("The answer is B", 1, 0),
    ("The answer is A or The answer is B.", 1, 0), ("b", 0, 0), ("dog", 0, 0), ("C", 0, 0), ("E. ", 0, 0), ("", 0, 0),
])
def test_scienceqa(said, official, lmms):
    """"B." alone is a letter for lmms-eval only: LLaVA's script wants a space after it."""
    assert [scores(ScienceQa, "B", said, rules, choices=("cat", "dog")) for rules in RULES] == [official, lmms]


def test_a_letter_beyond_the_choices_is_not_parsed():
    own = question("B", choices=("cat", "dog"))
    metric = ScienceQa([own], "official")
    assert metric.is_parsed(own, "A") and not metric.is_parsed(own, "C") and not metric.is_parsed(own, "dog")


@pytest.mark.parametrize("said, letter", [
    ("B", "B"), ("(B) dog", "B"), ("Answer: B.", "B"), ("A dog sits here", "B"), ("A", "A"), ("A or B", ""),
    ("cat and dog", ""), ("It is a DOG", "B"), ("none", ""), ("A cat sits here, B.", "B"),
])
def test_mmbench(said, letter):
    """"A dog sits here": that A is an article, and the only choice that is repeated is dog."""
    assert MmBench([], "official").letter(question("B", choices=("cat", "dog")), said) == letter


def test_mmbench_goes_round():
    """Two questions of two rows: one right in both, the other in one: 1/2 of the questions, 3/4 of the rows."""
    metric = MmBench([question("A", choices=("cat", "dog"), group=group) for group in "1212"], "official")
    value, parts = totals(metric, ["A", "A", "A", "B"])
    assert value == .5 and parts == {"of rows": .75}


# --- captions ---------------------------------------------------------------------------------------------------------

def captions(*groups):
    """A question for each picture, with its references."""
    return [question(tuple(group), image=str(i)) for i, group in enumerate(groups)]


def test_words_of_captions():
    assert tokens("A dog's black-and-white ball, isn't it? It can't -- o'clock.") == [
        "a", "dog", "'s", "black-and-white", "ball", "is", "n't", "it", "it", "ca", "n't", "o'clock"]


def test_the_reference_itself_scores_ten():
    """Equal n-grams of four words: every cosine is 1, so 10 x 1; a score is a tenth."""
    metric = Cider(captions(["a dog runs fast"], ["one cat sleeps here"]), "official")
    assert [metric.score(own, own.answer[0]) for own in metric.questions] == pytest.approx([1, 1])


def test_cider_by_hand():
    """Two pictures, "red dog" and "red cat"; "dog" is said of the first. red is in both: log(2/2) = 0; dog: log 2.
    1-grams: (0, log 2) and (log 2): cosine 1. Of the bigram the caption has none: 0, as for 3 and 4. Lengths in
    bigrams 0 and 1: exp(-1/72). So 1/4 of that."""
    metric = Cider(captions(["red dog"], ["red cat"]), "official")
    assert metric.score(metric.questions[0], "dog") == pytest.approx(e ** (-1 / 72) / 4)
    assert metric.rarity(("dog",)) == pytest.approx(log(2)) and metric.rarity(("red",)) == 0


def test_repeating_a_word_does_not_help():
    """"dog dog": g_c = 2 log 2 is clipped to g_r = log 2: log2^2 / (2 log2 log2) = 1/2 in place of 1. Both texts have
    one bigram, and they differ."""
    metric = Cider(captions(["red dog"], ["red cat"]), "official")
    assert metric.score(metric.questions[0], "dog dog") == pytest.approx(1 / 2 / 4)


def test_an_empty_caption_scores_nothing():
    metric = Cider(captions(["red dog"], ["red cat"]), "lmms-eval")
    assert metric.score(metric.questions[0], "") == 0 and metric.scale == 10


# --- intervals --------------------------------------------------------------------------------------------------------

def test_with_one_question_per_picture_intervals_are_the_usual_ones():
    right = [1, 0, 0, 1, 1, 0, 1, 1]
    differences = [1, 0, -1, 0, 0, 1, .5, 0]
    assert share_by_picture(right, range(8)) == pytest.approx(wilson(5 / 8, 8))
    assert paired_by_picture(differences, range(8)) == pytest.approx(paired(differences))


def test_pictures_count_and_not_their_questions():
    """Four pictures, each asked twice with the same luck, are worth four questions."""
    assert share_by_picture([1, 1, 0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 2, 2, 3, 3]) == pytest.approx(wilson(.5, 4))
    assert share_by_picture([1] * 8, [0, 0, 1, 1, 2, 2, 3, 3]) == wilson(1, 4)
    assert share_by_picture([1, 0] * 4, [0, 0, 1, 1, 2, 2, 3, 3]) == wilson(.5, 8), "never narrower than that"


def test_paired_by_hand():
    """Two pictures, won twice and lost twice: the center of six is 0, the pictures' sums are 2 and -2, and 1 and -1 of
    the two more: variance (4 + 4 + 1 + 1) / 36."""
    half = 1.959964 * (10 / 36) ** .5
    assert paired_by_picture([1, 1, -1, -1], [0, 0, 1, 1]) == pytest.approx((max(-1, -half), min(1, half)))


def test_bootstrap_is_seeded_and_knows_the_mean():
    """Of 400 coins the interval is that of the normal distribution, 1.96 x .5 / 20, nearly."""
    sums = np.array([[i % 2, 1] for i in range(400)], dtype=float)
    values = resampled(sums, lambda s: s[..., 0] / s[..., 1])
    assert (values == resampled(sums, lambda s: s[..., 0] / s[..., 1])).all()
    assert middle(values) == pytest.approx((.5 - .049, .5 + .049), abs=.008)


def test_draws_are_averaged_in_the_counts():
    """Yes and no to a question that is yes, twice yes to one that is no: TP 1/2, FN 1/2, FP 1: P 1/3, R 1/2, F1 .4."""
    metric = Pope([question("yes", family="s", image="a"), question("no", family="s", image="b")], "official")
    counted = Counted(metric, [("yes", "no"), ("yes", "yes")])
    assert counted.value == pytest.approx(.4) and counted.counts[:, :5].sum() == 2, "each question counts once"


def test_differences_are_paired():
    """The same answers differ by nothing in every draw of pictures; a mean still says how little they tell."""
    questions = [question("yes" if i % 2 else "no", family="s", image=str(i // 2)) for i in range(20)]
    draws = [("yes",)] * 10 + [("no",)] * 10
    same, = facts(Pope(questions, "official"), {"a": draws, "b": draws}, {"b": ["a"]})[1]["against"].values()
    assert same == dict(difference=0, interval=[0, 0])
    rows = facts(Exact(questions, "official"), {"a": draws, "b": draws}, {"b": ["a"]})
    low, high = rows[1]["against"]["a"]["interval"]
    assert low == -high < 0
