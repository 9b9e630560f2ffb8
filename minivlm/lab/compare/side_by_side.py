"""Answer one question under several methods: a table, and a sheet of pictures.

For each method the table has answer, tokens, FLOPs and cache.

examples:
  python run.py compare photo.jpg "What is this?" --model DIR --average 128 --out sheet.png          every method
  python run.py compare photo.jpg "What is this?" --model DIR --method fastv,divprune --keep 0.25
"""

from minivlm.io.image import open_image
from minivlm.io.text.tokenizer import prompt
from minivlm.lab.cli import output, session, shipped
from minivlm.lab.cli.arguments import add_length, add_model, add_output, add_settings, within
from minivlm.lab.cli.options import own_settings
from minivlm.lab.compare.compare import compare, facts, lines, picture
from minivlm.lab.lineup.lineup import build_all
from pruning.fields import Positive


def add_arguments(parser):
    """Picture and question, the methods with one budget, and the rest."""
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("question", metavar="QUESTION")
    group = parser.add_argument_group("methods")
    group.add_argument("--method", default="all", metavar="A,B,..", help="methods, with commas, or all (default)")
    group.add_argument("--keep", help="visual tokens left after the reduction: a number, of the whole prompt, or a "
                                      "share (default: the methods' own)")
    group.add_argument("--average", type=within(Positive), metavar="A",
                       help="visual tokens entering a layer on average: each method solves for its budget")
    add_settings(group, "another option of one method", "METHOD.OPTION=VALUE")
    add_output(parser, "the table as JSON")
    add_length(parser)
    add_model(parser)


def main(args):
    """Print the table; write it and the sheet."""
    output.writable(args.out, ".png")
    output.writable(args.json)
    session.one_budget(args)
    image = open_image(args.image)
    model = session.opened(args)
    known = shipped.known(args.image, args.question)
    evidence = known.get("evidence", ())
    session.note(model, args.question, [image])
    text = prompt([(args.question, None)], 1, session.template(args, model))
    pixels = model.processor.pixels(image)
    n = model.visual_tokens(pixels)
    layers = model.config.text.num_hidden_layers
    pruners = build_all(args.method, args.keep, args.average, args.set, n, layers, model.parts([pixels]),
                        own_settings(model.folder))
    runs = compare(model, model.tokenizer.encode(text), [pixels], pruners, args.max_new_tokens)
    rows = facts(runs, model.config, evidence)
    header = f"{args.question}  (right: {known['answer']})" if "answer" in known else args.question
    print("\n".join([header, "", *lines(rows)]))
    if args.out:
        box = model.processor.box(*image.size)
        output.save(args.out, picture(runs, image, box, header, evidence=evidence, maps=args.maps).save)
    output.save_json(args.json, rows)
