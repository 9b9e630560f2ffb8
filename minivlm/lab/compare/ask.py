"""Answer one question about pictures, or about none.

examples:
  python run.py ask photo.jpg "What is on the table?" --model llava-hf/llava-1.5-7b-hf
  python run.py ask photo.jpg "What is this?" --model DIR --method fastv --keep 128 --set layer=3 --out kept.png
  python run.py ask photo.jpg "What is this?" --model DIR --method vispruner+fastv --keep 256+64
"""

import os

from minivlm.io.text.tokenizer import prompt
from minivlm.lab.cli import output, session
from minivlm.lab.cli.arguments import add_method, add_model, add_output, add_sampling
from minivlm.lab.compare import report
from minivlm.lab.draw import draw
from minivlm.lab.draw.sheet import sheet
from pruning.base import UserError


def add_arguments(parser):
    """Pictures and question, the method, and the rest."""
    parser.add_argument("input", nargs="+", metavar="IMAGE.. QUESTION",
                        help="pictures, then the question; <image> marks in it place them")
    add_method(parser)
    add_output(parser, "the answer, the tokens of each layer and the kept indices")
    add_sampling(parser)
    add_model(parser)


def main(args):
    """Print the answer and what it cost; write what was kept."""
    *pictures, question = args.input
    if os.path.isfile(question):
        raise UserError(f"{question!r} is a picture and no question follows it: end with the question, in quotes")
    output.writable(args.out, ".png")
    output.writable(args.json)
    talk, images, pixels = session.conversation(args, pictures)
    model = talk.model
    session.note(model, question, images)
    turn = prompt([(question, None)], len(images), session.template(args, model))
    talk.read(model.tokenizer.encode(turn), pixels)
    answer = session.stream(talk, session.sampling(args), args.max_new_tokens)
    print("\n".join(report.cost_lines(talk)))
    if args.out:
        title = report.title(args.method, talk.pruner)
        page = sheet(rows(talk, images, args.maps, title), f"{question}  {answer}", legend=draw.legend())
        output.save(args.out, page.save)
    asked = dict(model=str(args.model), images=pictures, question=question)
    output.save_json(args.json, dict(asked, answer=answer, **report.facts(talk)))


def rows(talk, images, maps, title):
    """The panels of each image, as rows of a sheet; with maps, what the method ranked by and merged too."""
    rows = []
    boxes = talk.model.processor.boxes_of(images)
    for i, (image, box) in enumerate(zip(images, boxes)):
        if maps:
            rows += draw.rows(image, box, talk.trace, i, title)
        else:
            rows.append(draw.panels(image, box, talk.trace, i, title))
    return rows
