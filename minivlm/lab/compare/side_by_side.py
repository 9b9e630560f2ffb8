"""Answer one question under several methods: a table, a sheet of pictures, and a page for the browser.

For each method the table has answer, tokens, FLOPs and cache. The page is one file that needs no network: it shows what
each method keeps in each layer at each budget, and for each patch its score, its rank, and what was merged into it.

examples:
  python run.py compare photo.jpg "What is this?" --model DIR --average 128 --out sheet.png          every method
  python run.py compare photo.jpg "What is this?" --model DIR --method fastv,divprune --keep 0.5,0.3,0.1
  python run.py compare photo.jpg "What is this?" --model DIR --keep 0.5,0.25,0.1 --html page.html
"""

from minivlm.io.image import open_image
from minivlm.io.text.tokenizer import prompt
from minivlm.lab.cli import output, session, shipped
from minivlm.lab.cli.arguments import add_length, add_model, add_output, new_name
from minivlm.lab.compare.compare import compare, facts, legend, lines, picture
from minivlm.lab.lineup.arguments import add_lineup
from minivlm.lab.lineup.lineup import Prompt, lineup
from minivlm.lab.page.page import page


def add_arguments(parser):
    """Picture and question, the methods with their budgets, and the rest."""
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("question", metavar="QUESTION")
    add_lineup(parser, "all", "the methods' own")
    group = add_output(parser, "the table as JSON")
    group.add_argument("--html", type=new_name, metavar="FILE",
                       help="write a page for the browser: what is kept in each layer, and why, under each method")
    add_length(parser)
    add_model(parser)


def main(args):
    """Print the table; write it, the sheet and the page."""
    output.writable(args.out, ".png")
    output.writable(args.html, ".html")
    output.writable(args.json)
    image = open_image(args.image)
    model = session.opened(args)
    known = shipped.known(args.image, args.question)
    evidence = known.get("evidence", ())
    answer = known.get("answer", "")
    session.note(model, args.question, [image])
    runs = answered(args, model, image)
    rows = facts(runs, model.config, evidence)
    header = f"{args.question}  (right: {answer})" if answer else args.question
    print("\n".join([header, "", *lines(rows)]))
    box = model.processor.box(*image.size)
    if args.out:
        sheet = picture(runs, image, box, header, evidence=evidence, maps=args.maps)
        output.save(args.out, sheet.save)
    if args.html:
        text = page(runs, rows, image, box, args.question, answer, evidence, legend(rows))
        encoded = text.encode("utf-8", "replace")
        output.save(args.html, lambda place: place.write_bytes(encoded))
    output.save_json(args.json, rows)


def answered(args, model, image):
    """The runs of all methods at all budgets."""
    text = prompt([(args.question, None)], 1, session.template(args, model))
    ids = model.tokenizer.encode(text)
    pixels = [model.processor.pixels(image)]
    entrants = lineup(args.method, args.keep, args.average, args.set, Prompt(model, pixels), args.schedule)
    return compare(model, ids, pixels, entrants, args.max_new_tokens)
