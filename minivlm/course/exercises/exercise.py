"""Do the exercises: list them, start one, grade answers.

Without words the exercises are listed; with a name, one is described. `start` writes a stub, a file of this repository
without the functions that are to be written. `grade` runs the answers that it finds in folders. Points are for worked
examples, laws on drawn cases, and equality with the reference, and each check that fails has a sentence. The exit
status is 1 if points are missing.

The answers run in processes of their own, with limits on time and memory. That protects from mistakes, not from code
that means harm: such code has the rights of who grades. For answers of strangers use a container without a network.

examples:
  python run.py exercise
  python run.py exercise fastv
  python run.py exercise start fastv hw
  python run.py exercise grade hw
  python run.py exercise grade submissions --seed 7 --junit grades.xml
"""

from pathlib import Path

from tqdm import tqdm

from minivlm.course.exercises import page
from minivlm.course.exercises.grading import report
from minivlm.course.exercises.grading.grade import graded, no_traces
from minivlm.course.exercises.grading.process import ForkServer, Limits
from minivlm.course.exercises.problems import PROBLEMS
from minivlm.course.exercises.stub import problem_name, stub
from minivlm.io.atomic import write_text, written_folder
from minivlm.lab.cli.arguments import Seed, add_json, new_name, within
from minivlm.lab.cli.output import printed, writable
from pruning.base import UserError
from pruning.fields import Positive

ALL = "all"


def add_arguments(parser):
    """What to do, and how answers are graded."""
    parser.add_argument("words", nargs="*", type=new_name, metavar="NAME | start NAME DIR | grade DIR ..",
                        help="nothing: the list; a name: that exercise; start NAME (or all) DIR: write a stub into "
                             "DIR; grade DIR ..: grade the answers in DIR, or in the folders in it")
    group = parser.add_argument_group("grading")
    group.add_argument("--seed", type=within(Seed), default=0, help="of the drawn cases (default: 0)")
    group.add_argument("--seconds", type=within(Positive), default=Limits.seconds,
                       help=f"for one check (default: {Limits.seconds:g})")
    group.add_argument("--memory", type=within(Positive), default=Limits.memory / 2 ** 30, metavar="GIB",
                       help="besides torch's own (default: 1)")
    group.add_argument("--junit", type=new_name, metavar="FILE", help="write the result as JUnit XML, for a CI system")
    add_json(group)


def main(args):
    """Run the sub-command that the words name."""
    word, *rest = args.words or [""]
    if word == "start":
        return start(*arguments("start", ("NAME", "DIR"), rest))
    if word == "grade":
        if not rest:
            arguments("grade", ("DIR",), rest)
        return grade(rest, args)
    if rest:
        raise UserError(f"exercise {' '.join(args.words)}: give one name, or start, or grade")
    if word:
        problem = found(word)
        return printed(page.facts(problem), page.lines(problem), args.json)
    printed([page.facts(problem) for problem in PROBLEMS.values()], page.table(PROBLEMS.values()), args.json)


def found(name):
    """The exercise of that name. UserError if there is none."""
    if name not in PROBLEMS:
        raise UserError(f"{name!r} is no exercise: use one of {', '.join(PROBLEMS)}")
    return PROBLEMS[name]


def arguments(command, names, words):
    """The words, if there is one for each name."""
    if len(words) != len(names):
        raise UserError(f"exercise {command} needs {' and '.join(names)}: see `python run.py exercise --help`")
    return words


# --- start ------------------------------------------------------------------------------------------------------------

def start(name, folder):
    """Write the stub of an exercise, or of all, into a folder. UserError if a file would be overwritten."""
    problems = PROBLEMS.values() if name == ALL else [found(name)]
    folder = Path(folder)
    files = {folder / f"{problem.name}.py": stub(problem, PROBLEMS) for problem in problems}
    for file in files:
        if file.exists():
            raise UserError(f"{file} exists: name another folder, or remove it")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is no folder: name another")
    with written_folder(folder) as place:
        for file, text in files.items():
            write_text(place / file.name, text)
    for file in files:
        print(f"wrote {file}; what must hold: python run.py exercise {file.stem}")
    print(f"when you have written something: python run.py exercise grade {folder}")


# --- grade ------------------------------------------------------------------------------------------------------------

def grade(folders, args):
    """Grade all answers in the folders; 1 if points are missing."""
    writable(args.junit)
    answers = sum(map(answers_in, folders), [])
    limits = Limits(args.seconds, int(args.memory * 2 ** 30))
    results = []
    with ForkServer(PROBLEMS, limits) as server, no_traces(server.folder):
        for file, problem in tqdm(answers, desc="grading", unit=" answers", leave=False):
            side = server.submission(problem, file)
            try:
                results.append((file, graded(problem, side, args.seed)))
            finally:
                side.close()
    printed(report.facts(results, args.seed), report.lines(results), args.json)
    if args.junit:
        write_text(args.junit, report.junit(results))
    return 0 if all(result.is_full for _, result in results) else 1


def answers_in(folder):
    """[(file, its exercise)] of a folder, or of the folders in it. UserError if there are none."""
    path = Path(folder)
    if path.is_file():
        raise UserError(f"{folder} is a file: grade its folder, {path.parent}")
    if not path.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    answers = marked(path) or sum((marked(inner) for inner in sorted(path.iterdir()) if inner.is_dir()), [])
    if not answers:
        raise UserError(f"{folder} holds no answer: make a stub with `python run.py exercise start NAME {folder}`, and "
                        "leave its first line or its name as it is")
    return answers


def marked(folder):
    """[(file, its exercise)] of a folder's Python files: their first lines, or else their names, say which it is."""
    answers = []
    for file in sorted(filter(Path.is_file, folder.glob("*.py"))):         # no folder, no pipe
        name = problem_name(beginning(file)) or file.stem
        if name in PROBLEMS:
            answers.append((file, PROBLEMS[name]))
    return answers


def beginning(file):
    """The first lines of a file, as text."""
    with open(file, encoding="utf-8", errors="replace") as lines:
        return lines.read(1000)
