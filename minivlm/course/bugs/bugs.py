"""Find the bug: write twelve files of this repository with one mistake each, or grade what was found.

DIR gets bug_01.py to bug_12.py, in an order that the seed decides, and ANSWERS.txt, in which you write the promise that
each file breaks. `bugs grade DIR` reads that page only: it makes the broken files anew from the seed, and runs the
promise on our own file and on the broken one. The exit status of `grade` is 1 unless all twelve are right.

examples:
  python run.py bugs BUGS
  python run.py bugs grade BUGS
  python run.py bugs --laws
"""

import shlex
import textwrap
from pathlib import Path

from tqdm import tqdm

from minivlm.course.bugs import answers, grading
from minivlm.course.bugs.promises.promises import PROMISES
from minivlm.course.bugs.variant import variant
from minivlm.io.atomic import write_text, written_folder
from minivlm.lab.cli.arguments import Seed, add_json, new_name, within
from minivlm.lab.cli.output import printed
from pruning.base import UserError

WIDTH = 120


def add_arguments(parser):
    """What to do, and where."""
    parser.add_argument("words", nargs="*", type=new_name, metavar="[grade] DIR",
                        help="the folder to write, or to grade")
    parser.add_argument("--seed", type=within(Seed), default=0, help="of the order of the files (default: 0)")
    parser.add_argument("--laws", action="store_true", help="list the promises that can be named")
    add_json(parser)


def main(args):
    """Write, grade or list; 1 if something is not right yet."""
    words = args.words
    if args.laws and not words:
        printed({name: promise.sentence for name, promise in PROMISES.items()}, answers.listed(), args.json)
        return 0
    if len(words) == 2 and words[0] == "grade" and not args.laws:
        return grade(Path(words[1]), args.json)
    if len(words) != 1 or words[0] == "grade" or args.laws:
        raise UserError("say `bugs DIR` to write, `bugs grade DIR` to grade, or `bugs --laws` for the promises")
    write(Path(words[0]), args)
    return 0


def write(folder, args):
    """The twelve files and ANSWERS.txt. UserError if there are answers already."""
    if (folder / answers.NAME).exists():
        raise UserError(f"{folder / answers.NAME} exists: name a new folder, or remove it to begin again")
    files = {file: variant(bug) for file, bug in answers.shuffled(args.seed).items()}
    files[answers.NAME] = answers.page(args.seed, folder)
    with written_folder(folder) as place:
        for file, text in files.items():
            write_text(place / file, text)
    said = [
        f"wrote {folder}: twelve files with one mistake each; write into {answers.NAME} there what each breaks, then",
        f"  python run.py bugs grade {shlex.quote(str(folder))}",
    ]
    printed(dict(folder=str(folder), seed=args.seed, files=list(files)), said, args.json)


def grade(folder, as_json):
    """Print a verdict for each file; 1 unless all are right."""
    seed, said = answers.read(folder)
    every = grading.rows(seed, said)
    rows = list(tqdm(every, "grade", total=len(answers.BUGS), leave=False))
    right = sum(row["right"] for row in rows)
    text = "\n\n".join("\n".join(lines(row)) for row in rows)
    printed(dict(seed=seed, right=right, rows=rows), [text, "", f"{right} of {len(rows)} are right"], as_json)
    return 0 if right == len(rows) else 1


def lines(row):
    """The verdict on one file as text."""
    if row["named"] is None:
        return [f"{row['file']}: {row['verdict']}"]
    mark = "right" if row["right"] else "wrong"
    text = [f"{row['file']}: {mark}", *wrapped(row["verdict"])]
    if not row["right"]:
        text += wrapped(f"what breaks is {row['breaks']}: {row['sentence']}")
    return [*text, *mistake(row)]


def mistake(row):
    """The mistake in a file as text: where it is, a case, why, and what rejects it."""
    first = row["lines"][0]
    yield from wrapped(f"the mistake: {row['mistake']}, in {row['of']}, line {first}{of_line(row)}")
    for line in row["ours"]:
        yield f"    ours: {line}"
    for line in row["here"]:
        yield f"    here: {line}"
    yield from wrapped(f"a case: {row['case']}")
    yield from wrapped(f"ours: {row['ours_gives']}", "    ")
    yield from wrapped(f"here: {row['here_gives']}", "    ")
    yield from wrapped(row["why"])
    yield from wrapped(f"it is rejected by {row['test']}")


def of_line(row):
    """What to say of the line that was named, if one was."""
    if row["line"] is None:
        return ""
    return " (so was your line)" if row["line_right"] else f" (your line was {row['line']})"


def wrapped(text, indent="  "):
    """The text in lines of at most WIDTH."""
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")
