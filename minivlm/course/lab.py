"""Learn what pruning does by experiments: predict, measure, read what the numbers say.

Without a name the labs are listed. A lab asks first what you expect; --predict answers beforehand, and without a
terminal it goes on without an answer. What it then says follows from what it has just measured.

examples:
  python run.py lab
  python run.py lab late --predict c --out late.png
  python run.py lab positions --count 100
"""

import sys
from importlib import import_module

from minivlm.lab.cli import output
from minivlm.lab.cli.arguments import Number, Seed, new_name, within
from pruning.base import UserError

# In the order in which they are best done: the name, and the module in minivlm.course.labs.
LABS = {
    "late": "mechanism.late",
    "positions": "mechanism.positions",
    "twice": "mechanism.twice",
    "copies": "mechanism.copies",
    "soft": "mechanism.soft",
    "withdrawal": "mechanism.withdrawal",
    "budgets": "measuring.budgets",
    "time": "measuring.clock",
    "blind": "measuring.blind",
    "smaller": "measuring.smaller",
}


def add_arguments(parser):
    """The lab, the prediction, how much is measured, and the picture."""
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"one of {', '.join(LABS)} (default: list them)")
    parser.add_argument("--predict", metavar="LETTER", help="the choice that you expect to be right")
    parser.add_argument("--count", type=within(Number), metavar="N",
                        help="how much is measured, in the lab's unit: fewer is faster and tells less")
    parser.add_argument("--seed", type=within(Seed), default=0, help="of what is drawn (default: 0)")
    parser.add_argument("--out", type=new_name, metavar="PNG", help="draw what was measured")


def main(args):
    """List the labs; or introduce one, take the prediction, measure, and say what the numbers say."""
    output.writable(args.out, ".png")
    if args.name is None:
        refuse_options(args)
        print("\n".join(overview()))
        return
    module = named(args.name)
    lab = module.LAB
    predicted = None
    if args.predict is not None:
        predicted = chosen(args.predict, lab)              # refused before anything is measured
    print("\n".join(introduction(args.name, lab)), flush=True)
    if predicted is None:
        predicted = asked(lab)
    numbers = module.measure(args.count or lab.count, args.seed)
    print("\n".join(report(module, numbers, predicted)))
    if args.out:
        output.save(args.out, module.picture(numbers).save)


def refuse_options(args):
    """UserError for a prediction or a picture without the lab."""
    if args.predict or args.out:
        raise UserError(f"which lab? Name one of {', '.join(LABS)}")


def named(name):
    """The module of that lab, see labs/form.py. UserError if there is none."""
    if name not in LABS:
        raise UserError(f"lab {name!r} is not known: use one of {', '.join(LABS)}")
    return import_module(f"minivlm.course.labs.{LABS[name]}")


def overview():
    """A line or two for each lab."""
    yield "labs, each with its seconds on two cores: `python run.py lab NAME`"
    for name in LABS:
        lab = named(name).LAB
        yield ""
        yield f"{name:12}{lab.seconds:3} s   {lab.question}"


def introduction(name, lab):
    """The question and the choices."""
    yield f"lab {name}: {lab.question}"
    yield ""
    for letter, choice in zip(lab.letters, lab.choices):
        yield f"  {letter}  {choice}"
    yield ""


def chosen(word, lab):
    """The index of a choice, by its letter. UserError if it is none."""
    letter = word.strip().lower()
    if len(letter) != 1 or letter not in lab.letters:
        raise UserError(f"--predict {word}: choose one of {', '.join(lab.letters)}")
    return lab.letters.index(letter)


def asked(lab):
    """The index of the choice that the reader types; None for an empty line, or without a terminal."""
    if not sys.stdin.isatty():
        return None
    while True:
        try:
            word = input(f"what do you expect, {', '.join(lab.letters)}? ")
        except EOFError:
            return None
        if not word.strip():
            return None
        try:
            return chosen(word, lab)
        except UserError:
            print(f"type one of {', '.join(lab.letters)}, or nothing")


def report(module, numbers, predicted):
    """The table, what it says, and where to read on."""
    yield from module.table(numbers)
    yield ""
    yield from module.sentences(numbers)
    yield ""
    yield verdict(module.LAB, module.right(numbers), predicted)
    yield ""
    for place in module.LAB.read_on:
        yield f"read on: {place}"


def verdict(lab, right, predicted):
    """Which choice the numbers bear out, and whether it was predicted."""
    if right is None:
        return "The numbers bear out none of the choices: measure more with --count, or read the table."
    says = f"The numbers say {lab.letters[right]}: {lab.choices[right]}."
    if predicted is None:
        return says
    agrees = "as you predicted" if predicted == right else f"you predicted {lab.letters[predicted]}"
    return f"{says[:-1]} ({agrees})."
