"""The result of an evaluation, from its rows: accuracy with intervals, compared with no pruning and with random tokens.

    accuracy    the share of right answers, with Wilson's interval
    against     the mean difference to another contestant on the same questions, with the interval of Bonett and Price
    evidence    of the tokens that show what the question is about, the share that enters a decoder layer, merged ones
                included, on average over layers and questions
    tokens      visual tokens that enter a decoder layer, on average over layers and questions

Both intervals take the questions as independent. Those of one family are, in the drawn world, in which a family has one
question per picture; over all families they are nearly so.
"""

from math import sqrt

from minivlm.lab.score.answers import mean
from minivlm.lab.score.statistics import summary
from pruning.base import UserError

Z = 1.959964                                       # of the normal distribution: 2.5 % lie above
LEGEND = (
    "% right and its 95 % interval (Wilson); tokens: image tokens entering a layer; evidence: of those that show",
    "what the question is about, the share that enters a layer, merged ones included; against: the difference over",
    "the same questions, in points, and its 95 % interval (Bonett and Price); random: the mean of its draws",
)


def wilson(share, n):
    """The interval of a share of n questions, by Wilson (1927). share .5 of 10 -> (.237, .763); 1 of 10 -> (.722, 1)

    For shares of questions that count by halves or thirds (several draws) it is wider than need be.
    """
    more = Z ** 2 / n
    center = share + more / 2
    variance = share * (1 - share) / n
    half = Z * sqrt(variance + more / (4 * n))
    low = (center - half) / (1 + more)
    high = (center + half) / (1 + more)
    return max(0.0, low), min(1.0, high)


def paired(differences):
    """The interval of the mean of differences, a number from -1 to 1 per question, by Bonett and Price (2012).

    It is the normal interval of the mean after two more questions, one won and one lost. Without them, no difference at
    all among few questions would prove that there is none: ten zeros -> (-.231, .231).
    """
    n = len(differences) + 2
    squares = sum(d * d for d in differences) + 2
    center = sum(differences) / n
    variance = squares / n - center ** 2
    half = Z * sqrt(variance / n)
    return max(-1.0, center - half), min(1.0, center + half)


def against(right, other):
    """How right two contestants were on the same questions -> the mean difference, its interval, won and lost."""
    differences = [a - b for a, b in zip(right, other)]
    won = sum(d for d in differences if d > 0)
    lost = -sum(d for d in differences if d < 0)
    return dict(
        difference=mean(differences),
        interval=paired(differences),
        won=won,
        lost=lost,
    )


def answered(items, contestants, rows):
    """{label: its rows, in the order of the questions} of those that run; {label: why not} of the others.

    UserError if the unpruned model cannot answer.
    """
    row_of = {(row["contestant"], row["question"]): row for row in rows}
    answers = {}
    why_not = {}
    for contestant in contestants:
        label = contestant.label
        if contestant.why_not:
            why_not[label] = contestant.why_not
            continue
        own = [row_of[label, i] for i in range(len(items))]
        reasons = [row["why_not"] for row in own if "why_not" in row]
        if reasons:
            why_not[label] = reasons[0]
        else:
            answers[label] = own
    if "none" in why_not:
        raise UserError(why_not["none"])
    return answers, why_not


def facts(items, contestants, rows):
    """[{"contestant", "method", "budget", "tokens", "statistics", "all": part, "families": {name: part}}, ..] as plain
    data.

    A contestant that does not run has "why_not" in place of the numbers. UserError if the unpruned model cannot answer.
    """
    answers, why_not = answered(items, contestants, rows)
    return [_fact(contestant, answers, why_not, items) for contestant in contestants]


def _fact(contestant, answers, why_not, items):
    """The numbers of one contestant: on all questions, and on those of each family."""
    label = contestant.label
    names = dict(contestant=label, method=contestant.method, budget=contestant.budget)
    if label in why_not:
        return dict(names, why_not=why_not[label])
    others = [other for other in ("none", contestant.rival) if other in answers and other != label]
    families = {}
    for family in sorted({item.family for item in items}):
        questions = [i for i, item in enumerate(items) if item.family == family]
        families[family] = part(answers, label, others, questions)
    tokens = [mean(row["visual"]) for row in answers[label]]
    return dict(
        names,
        tokens=mean(tokens),
        statistics=summary(items, answers[label]),
        all=part(answers, label, others, range(len(items))),
        families=families,
    )


def part(answers, label, others, questions):
    """The numbers on some of the questions."""
    rows = [answers[label][i] for i in questions]
    right = [row["right"] for row in rows]
    evidence = [row["evidence"] for row in rows if row["evidence"] is not None]
    accuracy = mean(right)
    compared = {}
    for other in others:
        other_right = [answers[other][i]["right"] for i in questions]
        compared[other] = against(right, other_right)
    return dict(
        questions=len(rows),
        accuracy=accuracy,
        interval=wilson(accuracy, len(rows)),
        evidence=mean(evidence) if evidence else None,
        against=compared,
    )


def lines(result):
    """The table, and the sentences, as text."""
    recipe = result["recipe"]
    rows = result["contestants"]
    width = max(len(row["contestant"]) for row in rows)
    count = rows[0]["all"]["questions"]
    task = ", ".join(filter(None, (recipe["task"], recipe["data"], recipe["split"])))
    families = "".join(f"{family:11}" for family in rows[0]["families"])
    yield f"{recipe['model']} on {task}: {count} questions, {recipe['dtype']}"
    yield ""
    yield f"{'':{width}}  tokens  evidence  {families}all             against no pruning"
    for row in rows:
        yield f"{row['contestant']:{width}}  {_cells(row)}".rstrip()
    yield ""
    yield from LEGEND
    worse = list(verdicts(rows))
    if worse:
        yield ""
        yield from worse


def _cells(row):
    """The columns of one contestant, or why it does not run."""
    if "why_not" in row:
        return f"does not run here: {row['why_not']}"
    whole = row["all"]
    evidence = ""
    if whole["evidence"] is not None:
        evidence = f"{whole['evidence']:.0%}"
    families = "".join(f"{percent(part, 0):11}" for part in row["families"].values())
    accuracy = percent(whole, 1, 4)
    against_none = ""
    if "none" in whole["against"]:
        against_none = _points(whole["against"]["none"])
    return f"{row['tokens']:6.1f}  {evidence:>8}  {families}{accuracy:16}{against_none}"


def percent(part, digits, width=0):
    """"57 47-66": per cent, and the interval."""
    low, high = part["interval"]
    share = f"{100 * part['accuracy']:{width}.{digits}f}"
    return f"{share} {100 * low:.{digits}f}-{100 * high:.{digits}f}"


def _points(compared):
    """The difference in points, with its interval."""
    low, high = compared["interval"]
    difference = 100 * compared["difference"]
    return f"{difference:+5.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def verdicts(rows):
    """A sentence for each contestant that random tokens of its place beat: the interval lies below zero."""
    for row in rows:
        if "why_not" in row:
            continue
        for name, compared in row["all"]["against"].items():
            if name != "none" and compared["interval"][1] < 0:
                yield (
                    f"{row['contestant']} is worse than random: "
                    f"random tokens at the same place and budget ({name}) answer more questions; "
                    f"the difference is {_points(compared)} points"
                )
