"""Test what papers claim, each claim by one comparison with its control, with a verdict.

The verdict follows from the interval of the difference. DIR keeps every answer, so that the same command continues an
interrupted run; then claims.json has every number, and claims.png is a page of the intervals.

examples:
  python run.py claims --out CLAIMS
  python run.py claims asap --model DIR --data QUESTIONS --out OTHERS
"""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

from minivlm.io.atomic import filled
from minivlm.io.data import read_json
from minivlm.lab.claims import contest
from minivlm.lab.claims.papers import adaptprune, asap, atp, others
from minivlm.lab.claims.places import Places
from minivlm.lab.claims.plot import page
from minivlm.lab.cli import output, parallel, session, shipped
from minivlm.lab.cli.arguments import add_model, add_processes, new_name
from minivlm.lab.score.eval import add_questions, asked
from minivlm.lab.score.log import Log
from pruning.base import UserError

COUNT = 30                             # drawn questions of each family: minutes on two cores
RESULTS = shipped.FOLDER / "results.json"
PAPERS = {"asap": asap.CLAIMS, "adaptprune": adaptprune.CLAIMS, "atp": atp.CLAIMS, "others": others.CLAIMS}


def add_arguments(parser):
    """The papers, the questions, the output, the model."""
    parser.add_argument("papers", nargs="*", metavar="PAPER", help=f"some of {', '.join(PAPERS)} (default: all)")
    parser.add_argument("--study", metavar="FILE",
                        help="tables.json of `ablate` on this model, for ATP's tables (default: for the shipped model, "
                             "the one that is shipped)")
    parser.add_argument("--out", type=new_name, metavar="DIR",
                        help="the folder for the answers, claims.json and claims.png (default: they are not kept)")
    add_processes(parser)
    add_questions(parser, COUNT)
    add_model(parser)


def main(args):
    """Answer, compare, print, write."""
    papers = chosen(args.papers)
    items = asked(args, COUNT)
    folder = args.out and Path(args.out)
    every = [claim for claims in papers.values() for claim in claims]
    is_kept = output.interruptible(folder, output.SAME_COMMAND)
    with is_kept, parallel.processes(args.device) as (rank, size, args.device):
        model = session.opened(args)
        own_study = study(args)
        count = args.processes or parallel.worthwhile(model)
        if size == 1 and count > 1:
            return parallel.spread(args.again, count)
        prompt = contest.entry(model, items)
        template = session.template(args, model)
        with filled(folder) if folder else nullcontext():
            log = partial(Log, folder and folder / "answers.jsonl")
            rows, entered = contest.rows(prompt, items, every, template, log, rank, size)
        if rank == 0:
            answers = contest.answers(prompt, items, entered, rows, template=template, study=own_study, places=Places())
            report(tested(papers, answers), len(items), args)


def tested(papers, answers):
    """{paper: [(Claim, Finding)]}"""
    return {paper: [(claim, claim.test.result(answers)) for claim in claims] for paper, claims in papers.items()}


def study(args):
    """{"questions", "comparisons"} of `run.py ablate` on this model, in points; {} if there is no study of it.

    UserError for a file that is no study.
    """
    if args.study:
        return compared(read_json(args.study, "tables of run.py ablate"), 100, args.study)
    if Path(args.model).resolve() == shipped.FOLDER.resolve():
        return compared(read_json(RESULTS, "results")["atp"], 1, RESULTS)
    return {}


def compared(data, points, path):
    """What claims need of a study. points: what its numbers are multiplied with to be in points."""
    try:
        rows = [in_points(row, points) for row in data["comparisons"]]
        return dict(questions=int(data["questions"]), comparisons=rows)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is no tables.json of run.py ablate") from None


def in_points(row, points):
    """A comparison: the rows, the difference, the intervals of all trainings, and the share of tokens."""
    trainings = [row["interval"], *row["others"]]
    intervals = [[points * end for end in interval_of(training)] for training in trainings]
    return dict(row=row["row"], control=row["control"], share=float(row["share"]), intervals=intervals,
                difference=points * row["difference"])


def interval_of(training):
    """The interval of a training: given as it is, or in a dict with the difference."""
    return training["interval"] if isinstance(training, dict) else training


def chosen(names):
    """{paper: its claims} of these papers, of all without names."""
    unknown = [name for name in names if name not in PAPERS]
    if unknown:
        raise UserError(f"no claims of {unknown[0]!r}: the papers are {', '.join(PAPERS)}")
    return {name: claims for name, claims in PAPERS.items() if name in (names or PAPERS)}


def report(findings, questions, args):
    """Print the claims and their verdicts; write both, and the page, if there is a folder."""
    print("\n".join(lines(findings, questions, args.model)))
    if args.out:
        output.save_json(Path(args.out) / "claims.json", facts(findings))
        output.save(Path(args.out) / "claims.png", page(findings).save)


def lines(findings, questions, model):
    """The claims as text: where, the claim, what was changed, what the paper prints, what was measured."""
    yield f"{model}: {questions} questions, 95 % intervals of differences on the same questions"
    for paper, rows in findings.items():
        yield ""
        yield f"{paper}: {tally(rows)}"
        for claim, finding in rows:
            yield ""
            yield f"{claim.where}. {claim.says}"
            if claim.figures:
                yield f"  paper     {claim.figures}"
            yield f"  changed   {claim.test.control_line()}"
            yield f"  {finding.verdict.upper()}: {finding.sentence}"


def tally(rows):
    """3 claims: 2 holds, 1 cannot be told"""
    verdicts = [finding.verdict for _, finding in rows]
    counted = [f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)]
    return f"{len(rows)} claims: {', '.join(counted)}"


def facts(findings):
    """Every claim, finding and number as plain data."""
    return {paper: [fact(claim, finding) for claim, finding in rows] for paper, rows in findings.items()}


def fact(claim, finding):
    """One claim as plain data."""
    measured = [vars(each) for each in finding.measured]
    return dict(where=claim.where, says=claim.says, paper=claim.figures, changed=claim.test.control_line(),
                verdict=finding.verdict, sentence=finding.sentence, measured=measured)
