"""Show where on the image the decoder's attention lies, and whether position ids are the reason.

Without a picture it asks many questions, and shows the mean attention row of the last prompt token on the grid of
patches, its correlation with the token's index, and the rows of patches in which the tokens lie that methods keep. Map
and correlation are measured again with the image's position ids reversed, all equal, and without rotation. If the
rotary embedding makes late tokens win, the map turns over with the reversed ids. With a picture and a question it draws
the attention of that prompt on the picture. --demo shows the mechanism without a model. An interrupted run continues if
the same command is given again.

examples:
  python run.py attention --count 10 --out attention.png
  python run.py attention photo.jpg "What is this?" --model DIR --layers 1,2 --rows text --out attention.png
  python run.py attention --demo --out demo.png
"""

from pathlib import Path

import torch

from minivlm.io.image import open_image
from minivlm.io.text.tokenizer import prompt
from minivlm.lab.attention import demo, figures, maps, tables
from minivlm.lab.attention.measured import Study, overview
from minivlm.lab.attention.watch import IDS, attention_of, cases
from minivlm.lab.cli import output, session
from minivlm.lab.cli.arguments import add_model, add_settings, layer_numbers, new_name
from minivlm.lab.lineup.variants import words
from minivlm.lab.score.answers import Contest
from minivlm.lab.score.contestants import contestants
from minivlm.lab.score.eval import add_questions, asked, question_options
from minivlm.trace import Trace
from pruning.base import UserError

MANY = {"method": "fastv,asap,adaptprune", "keep": "0.25", "positions": ",".join(IDS), "set": []}   # options, defaults
ROWS = {"last": "last prompt token", "text": "text after the image"}


def add_arguments(parser):
    """The prompt or the questions, what is shown, and the rest."""
    parser.add_argument("input", nargs="*", metavar="IMAGE QUESTION",
                        help="a picture and a question; without them, many questions are asked")
    add_questions(parser)
    group = parser.add_argument_group("many questions")
    group.add_argument("--positions", default=MANY["positions"], metavar="A,B,..",
                       help=f"position ids of the image, of {', '.join(IDS)} (default: all)")
    group.add_argument("--method", default=MANY["method"], metavar="A,B,..",
                       help="methods whose kept tokens are counted by row of patches, next to random and uniform ones "
                            f"(default: {MANY['method']}; none: nothing is counted)")
    group.add_argument("--keep", default=MANY["keep"],
                       help=f"visual tokens that they keep (default: {MANY['keep']})")
    add_settings(group, "another option; of several methods, METHOD.OPTION=VALUE")
    group = parser.add_argument_group("what is shown")
    group.add_argument("--layers", type=layer_numbers, metavar="L,L,..", help="layers that are drawn (default: all)")
    group.add_argument("--rows", choices=ROWS, default="last",
                       help="whose attention: of the last prompt token (default), or the mean of the text after the "
                            "image")
    group.add_argument("--demo", action="store_true",
                       help="no model: random queries and keys with a common direction, with and without rotation")
    group.add_argument("--out", type=new_name, metavar="PNG",
                       help="draw the maps; of many questions, what is measured is kept next to it, so that the same "
                            "command goes on after an interruption")
    group.add_argument("--json", type=new_name, metavar="FILE", help="write every number")
    add_model(parser)


def main(args):
    """Measure, print, draw."""
    output.writable(args.out, ".png")
    output.writable(args.json)
    if args.demo:
        demo.show(args.out, args.json)
    elif args.input:
        show_prompt(args)
    else:
        show_questions(args)


def chosen(layers, depth):
    """The layers to draw. UserError for one that the model does not have."""
    for l in layers or ():
        if l >= depth:
            raise UserError(f"--layers {l}: the model has {depth} layers, 0 to {depth - 1}")
    return layers or list(range(depth))


# --- many questions ---------------------------------------------------------------------------------------------------

def show_questions(args):
    """The tables and the maps of many questions."""
    names = words("--positions", args.positions)
    unknown = [name for name in names if name not in IDS]
    if unknown:
        raise UserError(f"--positions {unknown[0]}: use some of {', '.join(IDS)}")
    items = asked(args)
    model = session.opened(args)
    layers = chosen(args.layers, len(model.language_model.layers))
    study, why_not = study_of(args, model, items, cases(names))
    with output.interruptible(study.path, output.SAME_COMMAND):
        measured = study.run()
    result = dict(
        model=str(args.model),
        rows=ROWS[args.rows],
        **figures.facts(measured, study.cases, study.contest.contestants, items),
    )
    print(f"{args.model}: attention of the {ROWS[args.rows]}, mean over heads, over {len(items)} questions\n")
    print("\n".join([*tables.lines(result), *output.refusals(why_not)]))
    if args.out:
        output.save(args.out, maps.page(result, layers).save)
    output.save_json(args.json, result)


def study_of(args, model, items, positions):
    """The Study that the options describe, under the Cases `positions`; {method: why it does not run here}."""
    pixels = model.processor.pixels(items[0].picture)
    entered = []
    if args.method != "none":
        entered = contestants(model, pixels, args.method, args.keep, args.set)
    why_not = {contestant.label: contestant.why_not for contestant in entered if contestant.why_not}
    counted = [contestant for contestant in entered if contestant.pruner]
    contest = Contest(model, items, counted, session.template(args, model))
    labels = [case.label for case in positions]
    recipe = contest.recipe(model=str(args.model), positions=labels, rows=args.rows, **question_options(args))
    result = args.out or args.json
    path = Path(result).with_suffix(".safetensors") if result else None
    return Study(contest, positions, args.rows, path, recipe), why_not


# --- one prompt -------------------------------------------------------------------------------------------------------

def show_prompt(args):
    """The attention of one prompt, printed and on the picture."""
    if len(args.input) != 2:
        raise UserError("give one picture and one question, in quotes")
    for name, default in MANY.items():
        if getattr(args, name) != default:
            raise UserError(f"--{name} is for many questions: leave it out, or leave the picture and question out")
    path, question = args.input
    picture = open_image(path)
    model = session.opened(args)
    layers = chosen(args.layers, len(model.language_model.layers))
    session.note(model, question, [picture])
    ids = model.tokenizer.encode(prompt([(question, None)], 1, session.template(args, model)))
    trace = Trace()
    with torch.no_grad():
        tokens = model.embed(ids, [model.processor.pixels(picture)], trace=trace)
        attention = attention_of(model, tokens, cases([]), args.rows)[0]           # (L, n)
    drawn = attention[:, overview(model, tokens.grid)]                             # (L, m)
    result = dict(model=str(args.model), picture=path, question=question, rows=ROWS[args.rows])
    result["layers"] = figures.of_prompt(attention, drawn)
    print(f"{question}  (attention of the {ROWS[args.rows]}, mean over heads)\n")
    print("\n".join(tables.prompt_lines(result, layers)))
    if args.out:
        box = model.processor.box(*picture.size)
        page = maps.on_picture(picture, box, trace, attention, layers, question)
        output.save(args.out, page.save)
    output.save_json(args.json, result | dict(attention=attention.tolist()))
