"""A question of a benchmark, as every reader in formats/ gives it."""

from dataclasses import dataclass, replace

from minivlm.toy.benchmark import Item


@dataclass(frozen=True)
class Question(Item):
    """An Item of an official file.

    image is the picture's name, "" without one; picture is None until `pictures` in pictures.py has looked for it.
    question is the file's until `prompted` makes it the prompt. answer is the label or letter, or a tuple of all that
    people answered. family is the part of the task that it belongs to.
    """

    names: tuple = ()                  # under which answers may name it: ids, and ids with the question's text
    choices: tuple = ()                # of a multiple choice, A first
    hint: str = ""                     # what a prompt gives besides: a context, or words that were read in the picture
    group: str = ""                    # of questions that count together

    @property
    def cluster(self):
        """What its chance is like that of others with: its picture; itself without one."""
        return self.image or self.names[0]


def named(id, question=""):
    """named(3, "Is it?") -> ("3", "3/is it?"): the second tells apart questions of one id."""
    if not question:
        return (str(id),)
    return str(id), f"{id}/{question.strip().lower()}"


def by_picture(questions):
    """The same, those about one picture after each other, in the order in which the pictures come."""
    of_picture = {}
    for question in questions:
        of_picture.setdefault(question.image, []).append(question)
    return [question for own in of_picture.values() for question in own]


def prompted(questions, prompt):
    """The questions with the text that the model reads. prompt: a function of prompts.py."""
    return [replace(question, question=prompt(question)) for question in questions]
