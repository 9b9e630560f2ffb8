"""How well a method answers in the drawn world, and a picture of what it keeps.

Its answers are compared, question by question, with those of the unpruned model, random tokens, evenly spaced ones and
FastV at the same budget.
"""

from minivlm.io.atomic import written
from minivlm.io.image import open_image
from minivlm.io.text.tokenizer import prompt
from minivlm.lab.cli import session, shipped
from minivlm.lab.compare.compare import compare, picture
from minivlm.lab.lineup.lineup import Prompt, lineup
from minivlm.lab.named.kind import kind_of
from minivlm.lab.score import accuracy
from minivlm.lab.score.answers import Contest
from minivlm.lab.score.contestants import contestants
from minivlm.lab.score.log import Log
from minivlm.toy import benchmark
from pruning.fields import annotations

OTHERS = ("fastv", "random", "uniform")            # on the picture


def accuracy_of(args, names):
    """How right each contestant is, and the paired difference of the method to it."""
    model = session.shipped_model()
    items = benchmark.items("heldout", args.count)
    pixels = model.processor.pixels(items[0].picture)
    entered = contestants(model, pixels, names, args.keep)
    contest = Contest(model, items, entered, model.config.template)
    rows = contest.run(Log(None, {}))
    answers, why_not = accuracy.answered(items, entered, rows)
    own = label_of(args.own, entered)
    if own in why_not:
        return dict(why_not=why_not, lines=[f"accuracy: it does not run here: {why_not[own]}"])
    table = [compared(answers, own, label) for label in answers]
    lines = list(accuracy_lines(own, table, why_not, len(items)))
    if "keep" not in annotations(kind_of(args.own)):
        lines.append(f"  {own} takes no keep: it leaves another number of tokens than those at {args.keep}, and the "
                     "differences are of numbers, too")
    return dict(questions=len(items), rows=table, why_not=why_not, lines=lines)


def label_of(name, entered):
    """The label of the method among the contestants; of a control that of the first with its name."""
    labels = [contestant.label for contestant in entered if contestant.method == name]
    return labels[0]


def compared(answers, own, label):
    """The row of one contestant."""
    right = [row["right"] for row in answers[label]]
    share = sum(right) / len(right)
    interval = accuracy.wilson(share, len(right))
    row = dict(contestant=label, accuracy=share, interval=interval)
    if label != own:
        own_right = [answer["right"] for answer in answers[own]]
        row["own_minus_it"] = accuracy.against(own_right, right)
    return row


def accuracy_lines(own, table, why_not, count):
    """As text, with a verdict for each comparison."""
    width = max(len(row["contestant"]) for row in table)
    yield f"accuracy on {count} questions of the drawn world, of the shipped model (run.py eval says more)"
    yield f"  {'':{width}}  % right, 95 %      {own} minus it, in points, with its paired 95 % interval"
    for row in table:
        right = accuracy.percent(row, 1, 4)
        line = f"  {row['contestant']:{width}}  {right:17}"
        if "own_minus_it" in row:
            line += f"  {difference(row['own_minus_it'])}"
        yield line.rstrip()
    for label, reason in why_not.items():
        yield f"  {label} does not run here: {reason}"


def difference(paired):
    """The difference, its interval, and what follows from it."""
    low, high = paired["interval"]
    points = 100 * paired["difference"]
    verdict = "cannot be told apart"
    if low > 0:
        verdict = "better than it"
    if high < 0:
        verdict = "worse than it"
    return f"{points:+5.1f} ({100 * low:+5.1f} to {100 * high:+5.1f})  {verdict}"


def drawn(args):
    """One sample question under the method, FastV and the controls, on one sheet."""
    name, question = shipped.FIRST
    path = shipped.SAMPLES / name
    image = open_image(path)
    model = session.shipped_model()
    pixels = model.processor.pixels(image)
    others = [other for other in OTHERS if other != args.own]
    names = ",".join([args.own, *others])
    entrants = lineup(names, args.keep, None, (), Prompt(model, [pixels]))
    text = prompt([(question, None)], 1, model.config.template)
    ids = model.tokenizer.encode(text)
    runs = compare(model, ids, [pixels], entrants)
    known = shipped.known(path, question)
    box = model.processor.box(*image.size)
    sheet = picture(runs, image, box, question, columns=len(runs), evidence=known["evidence"], maps=True)
    with written(args.out) as beside:
        sheet.save(beside)
    return dict(file=args.out, lines=[f"wrote {args.out}"])
