"""Talk about pictures: one question per line.

An empty line or the end of the input ends the conversation. A line that cannot be read is skipped. What the first
question dropped stays dropped: later answers rest on the tokens that it kept.

example:
  python run.py chat photo.jpg --model DIR --method fastv --keep 0.25
"""

import sys

from minivlm.io.text.tokenizer import next_turn, prompt
from minivlm.lab.cli import session
from minivlm.lab.cli.arguments import add_method, add_model, add_sampling
from minivlm.lab.compare import report
from pruning.base import UserError


def add_arguments(parser):
    """Pictures, the method, and the rest."""
    parser.add_argument("images", nargs="*", metavar="IMAGE")
    add_method(parser)
    add_sampling(parser)
    add_model(parser)


def main(args):
    """Answer every line; 2 if none could be read."""
    chat = Chat(args)
    if sys.stdin.isatty():
        print("One question per line; an empty line ends. What the first question dropped stays dropped.")
    refused = False
    while question := session.line():
        try:
            chat.answer(question)
        except UserError as error:                     # what was said before stays; the next question may do
            print(error, file=sys.stderr)
            refused = True
    return 2 if refused and not chat.turns else 0


class Chat:
    """The turns of a conversation, and the text that the model has read."""

    def __init__(self, args):
        self.talk, self.images, self.pixels = session.conversation(args, args.images)
        self.template = session.template(args, self.talk.model)
        self.sampling = session.sampling(args)
        self.max_new_tokens = args.max_new_tokens
        self.turns = []                                # (question, answer)
        self.read = ""                                 # the text that the model has read last, with its answer

    def answer(self, question):
        """Read the question and print the answer."""
        if self.turns:
            session.note(self.talk.model, question, ())
            text = self.next(question)
        else:
            session.note(self.talk.model, question, self.images)
            text = self.first(question)
        self.turns.append((question, ""))
        self.read = text
        answer = session.stream(self.talk, self.sampling, self.max_new_tokens)
        self.turns[-1] = (question, answer)
        self.read = text + answer

    def first(self, question):
        """The text of the first turn, after it was read with the pictures."""
        text = prompt([(question, None)], len(self.images), self.template)
        self.talk.read(self.talk.model.tokenizer.encode(text), self.pixels)
        print("  " + "\n  ".join(report.cost_lines(self.talk)), file=sys.stderr)
        return text

    def next(self, question):
        """The text of a later turn, after it was read."""
        model = self.talk.model
        text = next_turn(question, template=self.template, turns=self.turns)
        if self.talk.pending and self.talk.pending[0] in model.eos:        # the template writes how an answer ends
            self.talk.pending = []
        self.talk.read(model.tokenizer.encode(text, bos=False, after=self.read))
        return text
