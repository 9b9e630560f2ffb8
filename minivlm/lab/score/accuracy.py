"""The result of an evaluation, from its rows: accuracy with intervals, each contestant beside no pruning and beside random tokens.

    accuracy    the share of right answers, with Wilson's interval
    against     the mean difference to another contestant on the same questions, with the interval of Bonett and Price
    evidence    the share of the visual tokens on the evidence that are left after the last reduction
    tokens      visual tokens that enter a decoder layer, on average over layers and questions

Both intervals take the questions as independent. Those of one family are, in the drawn world, where a family asks of a
picture once; over all families they are nearly so.
"""

from math import sqrt

from minivlm.lab.score.answers import mean
from pruning.base import UserError

Z = 1.959964                                       # of the normal distribution: 2.5 % lie above


def facts(items, contestants, rows):
    """[{"contestant", "method", "keep", "tokens", "all": part, "families": {name: part}}, or with "why_not"], as plain data.

    UserError where the unpruned model itself cannot answer.
    """
    by = {(row["contestant"], row["question"]): row for row in rows}
    seen = {one.label: [by[one.label, i] for i in range(len(items))] for one in contestants if not one.why_not}
    failed = {one.label: one.why_not or next((row["why_not"] for row in seen[one.label] if "why_not" in row), "") for one in contestants}
    if failed["none"]:
        raise UserError(failed["none"])
    seen = {label: rows for label, rows in seen.items() if not failed[label]}
    return [dict(contestant=one.label, method=one.method, keep=one.keep) |
            (dict(why_not=failed[one.label]) if failed[one.label] else _numbers(one, seen, items)) for one in contestants]


def _numbers(one, seen, items):
    """Of one contestant: on all questions and on those of each family, against no pruning and against random tokens."""
    others = [other for other in ("none", one.rival) if other in seen and other != one.label]
    part = lambda family: _part(seen, one.label, others, [i for i, item in enumerate(items) if family in (None, item.family)])
    return dict(tokens=mean([mean(row["visual"]) for row in seen[one.label]]), all=part(None),
                families={family: part(family) for family in sorted({item.family for item in items})})


def _part(seen, label, others, questions):
    """The numbers on some of the questions."""
    right, evidence = ([seen[label][i][name] for i in questions] for name in ("right", "evidence"))
    known = [share for share in evidence if share is not None]
    return dict(questions=len(questions), accuracy=mean(right), interval=wilson(mean(right), len(right)),
                evidence=mean(known) if known else None,
                against={other: against(right, [seen[other][i]["right"] for i in questions]) for other in others})


def against(ours, theirs):
    """Two contestants on the same questions: the mean difference, its interval, and how many questions were won and lost."""
    differences = [a - b for a, b in zip(ours, theirs)]
    return dict(difference=mean(differences), interval=paired(differences), won=sum(d for d in differences if d > 0),
                lost=-sum(d for d in differences if d < 0))


def lines(told):
    """The table, and the sentences, as text."""
    recipe, told = told["recipe"], told["contestants"]
    wide, families = max(len(row["contestant"]) for row in told), told[0]["families"]
    part = ", ".join(filter(None, (recipe["task"], recipe["data"], recipe["split"])))
    yield f"{recipe['model']} on {part}: {told[0]['all']['questions']} questions, {recipe['dtype']}"
    yield ""
    yield f"{'':{wide}}  tokens  evidence  {''.join(f'{family:11}' for family in families)}all             against no pruning"
    for row in told:
        yield _line(row, wide) if "all" in row else f"{row['contestant']:{wide}}  does not run here: {row['why_not']}"
    yield ""
    yield "% right and its 95 % interval (Wilson); tokens: image tokens entering a layer; evidence: share of its tokens kept; against: the"
    yield "difference over the same questions, in points, and its 95 % interval (Bonett and Price); random: the mean of its draws"
    yield from ("", *worse) if (worse := list(verdicts(told))) else ()


def _line(row, wide):
    cells = [f"{100 * part['accuracy']:.0f} {_range(part['interval'], 0)}" for part in row["families"].values()]
    whole, evidence = row["all"], row["all"]["evidence"]
    other = whole["against"].get("none")
    return (f"{row['contestant']:{wide}}  {row['tokens']:6.1f}  {'' if evidence is None else f'{evidence:.0%}':>8}  {''.join(f'{c:11}' for c in cells)}"
            f"{100 * whole['accuracy']:4.1f} {_range(whole['interval'], 1):11}" + (f"{_points(other)}" if other else "")).rstrip()


def _range(interval, digits):
    return "-".join(f"{100 * end:.{digits}f}" for end in interval)


def _points(other):
    low, high = other["interval"]
    return f"{100 * other['difference']:+5.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def verdicts(told):
    """A sentence for each contestant that random tokens beat: whose interval against those of its site and budget lies below zero."""
    for row in told:
        for name, other in row.get("all", {}).get("against", {}).items():
            if name != "none" and other["interval"][1] < 0:
                yield (f"{row['contestant']} is worse than random: random tokens at the same place and budget ({name}) answer more questions; "
                       f"the difference is {_points(other)} points")


def wilson(share, n):
    """Of a share of n questions, by Wilson (1927). share .5 of 10 -> (.237, .763); 1 of 10 -> (.722, 1)

    For shares of questions that count by halves or thirds (several draws) it is wider than need be.
    """
    center, half = share + Z ** 2 / (2 * n), Z * sqrt(share * (1 - share) / n + Z ** 2 / (4 * n ** 2))
    return max(0.0, (center - half) / (1 + Z ** 2 / n)), min(1.0, (center + half) / (1 + Z ** 2 / n))


def paired(differences):
    """Of the mean of differences, a number from -1 to 1 a question, by Bonett and Price (2012).

    The normal interval of the mean after two questions more, one won and one lost, without which no difference at all
    among few questions would be proof of none: ten zeros -> (-.231, .231).
    """
    n, total, squares = len(differences) + 2, sum(differences), sum(d * d for d in differences) + 2
    center = total / n
    half = Z * sqrt((squares / n - center ** 2) / n)
    return max(-1.0, center - half), min(1.0, center + half)
