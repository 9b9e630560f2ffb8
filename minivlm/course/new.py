"""Write a method of your own: a file to start from, which runs.

It lies outside this repository and holds a class `Mine` with comments on what a method can read and must return. Every
command takes it as FILE.py:Mine, and executes the file.

examples:
  python run.py new mine.py
  python run.py new mine.py --like asap
"""

import re
import shlex
from pathlib import Path

from minivlm.io.atomic import write_text
from minivlm.lab.cli.arguments import new_name
from minivlm.lab.cli.output import writable
from pruning.base import UserError

USABLE = re.compile(r"[\w./~][\w./~ -]*\.py")  # a comma, + and @ part the names of methods, a colon ends the file's
STARTS = Path(__file__).parent / "starts"
LIKE = {
    "fastv": "scores, and the best are kept",
    "divprune": "a choice before the decoder, from the features alone",
    "asap": "a mask, and a merge",
}


def add_arguments(parser):
    """Where, and what it begins as."""
    likes = "; ".join(f"{name}: {what}" for name, what in LIKE.items())
    parser.add_argument("file", metavar="FILE.py", type=new_name, help="the file to write")
    parser.add_argument("--like", choices=LIKE, default="fastv", help=f"{likes} (default: fastv)")


def main(args):
    """Write the file, and say what to do next."""
    file = Path(args.file)
    writable(file, ".py")
    if not USABLE.fullmatch(args.file):
        raise UserError(f"{file}: take a name of letters, digits, _ and -, with .py at its end: no command could take "
                        "this one as FILE.py:NAME")
    if file.exists():
        raise UserError(f"{file} exists: name a new file")
    write_text(file, start(args.like, args.file))
    print(f"wrote {file}; next:")
    print(f"  python run.py check {shlex.quote(args.file)}:Mine")


def start(like, file):
    """The text of the file: a method to start from, with the file's own name in its examples."""
    text = (STARTS / f"{like}.py").read_text()
    return text.replace("mine.py", shlex.quote(file))
