"""Your own function or class against one of the methods: `check --against`, on recordings and on drawn prompts.

A function returns the indices of the visual tokens that it keeps. A class (a Pruner) gets the method's values of the
options that it has, too, and its merges are compared, too. Recordings (tests/goldens) hold what the released code kept;
on drawn prompts, which are small and always the same, this repository's method says what is kept.
"""

import inspect
from dataclasses import fields

from minivlm.lab.cli.output import printed
from minivlm.lab.named.file import blaming, from_file
from minivlm.lab.named.inputs import called
from minivlm.lab.own.cases import RECORDED, cases
from pruning import EVERY, METHODS
from pruning.apply import checked
from pruning.base import Pruner, UserError

SHOWN = 8                              # tokens of a difference
TOLERANCE = 1e-4                       # of a merge weight


def compare(args):
    """Print a line per case; 1 if one differs."""
    if args.against not in EVERY:
        raise UserError(f"--against {args.against}: it is not known: use one of {', '.join(METHODS)}, "
                        "or a reading (run.py methods --readings)")
    for option, value in (("--out", args.out), ("--junit", args.junit)):
        if value is not None:
            raise UserError(f"{option} is for a check without --against, which compares and writes nothing")
    own = from_file(args.own)
    file = args.own.rpartition(":")[0]
    is_class = inspect.isclass(own)
    if is_class and not issubclass(own, Pruner):
        raise UserError(f"{args.own}: the class is no Pruner: derive it from pruning.base.Pruner")
    compared = cases(args.against)
    with blaming(file):
        rows = [row_of(case, own, is_class) for case in compared]
    printed(rows, lines(rows, args), args.json)
    return 0 if all(row["agrees"] for row in rows) else 1


def row_of(case, own, is_class):
    """One case as data: whether the user's own method agrees, and the difference in words."""
    if is_class:
        reduction = checked(built(own, case.pruner), case.tokens)
    else:
        reduction = called(own, case.tokens, len(case.kept))
    difference = kept_otherwise(reduction.keep, case)
    if is_class and not difference:
        difference = merged_otherwise(reduction, case.pruner.reduce(case.tokens))
    return dict(case=case.name, n=case.tokens.n, keep=len(case.kept), agrees=not difference, difference=difference)


def built(own, pruner):
    """The class, built with our method's values of the options that both have."""
    known = {field.name for field in fields(own) if field.init}
    shared = [field.name for field in fields(pruner) if field.name in known]
    return own(**{name: getattr(pruner, name) for name in shared})


def kept_otherwise(keep, case):
    """How the kept tokens differ from the case's, in words; "" if they do not."""
    keep = keep.tolist()
    kept = case.kept.tolist()
    outside = [i for i in keep if not 0 <= i < case.tokens.n]
    if outside:
        return f"keeps {outside[0]}, and the visual tokens are 0 to {case.tokens.n - 1}"
    if len(set(keep)) < len(keep):
        return f"keeps {len(keep)} tokens, but only {len(set(keep))} different ones"
    words = []
    if len(keep) != len(kept):
        words.append(f"keeps {len(keep)} tokens, not {len(kept)}")
    words += named("keeps", set(keep) - set(kept), case)
    words += named("drops", set(kept) - set(keep), case)
    return "; ".join(words)


def named(verb, tokens, case):
    """["keeps 3 (row 0, column 3), .."]: the verb and the first tokens of a set; [] if it is empty."""
    places = []
    for i in sorted(tokens)[:SHOWN]:
        _, row, column = case.tokens.grid[i].tolist()
        places.append(f"{i} (row {row}, column {column})")
    more = len(tokens) - len(places)
    if more:
        places.append(f"{more} more")
    return [f"{verb} {', '.join(places)}"] if places else []


def merged_otherwise(reduction, expected):
    """The first merge weight by which two Reductions differ, in words; "" if there is none."""
    if reduction.merge is None or expected.merge is None:
        both_select = reduction.merge is expected.merge
        return "" if both_select else "one of the two merges tokens, and the other selects them"
    # rows in the order of the tokens whose places they take
    weights = reduction.merge.float()[reduction.keep.argsort()]                    # (k, n)
    expected = expected.merge.float()[expected.keep.argsort()]                     # (k, n)
    is_far = (weights - expected).abs() > TOLERANCE
    if not is_far.any():
        return ""
    i, j = is_far.nonzero()[0].tolist()
    return f"row {i} takes {weights[i, j]:.4f} of token {j}, not {expected[i, j]:.4f}"


def lines(rows, args):
    """The rows as text, and a line on all of them."""
    for row in rows:
        verdict = "agrees" if row["agrees"] else "differs"
        yield f"{row['case']:28} {row['n']:5} visual tokens, {row['keep']:4} kept: {verdict}"
    different = [row for row in rows if not row["agrees"]]
    yield f"{args.own} agrees with {args.against} in {len(rows) - len(different)} of {len(rows)} cases"
    if different:
        first = different[0]
        yield f"first difference, in {first['case']}: {first['difference']}"
    if args.against not in RECORDED:
        yield f"all cases are drawn: {args.against} has no recordings of single calls"
