"""The result of an evaluation, from its rows: accuracy with intervals, compared with no pruning and with random tokens.

    accuracy    the share of right answers, with Wilson's interval
    against     the mean difference to another contestant on the same questions, with the interval of Bonett and Price
    evidence    of the tokens that show what the question is about, the share that enters a decoder layer, merged ones
                included, on average over layers and questions
    tokens      visual tokens that enter a decoder layer, on average over layers and questions

Both intervals take the questions as independent. Those of one family are, in the drawn world, in which a family has one
question per picture; over all families they are nearly so. On a benchmark both have the variance of whole pictures.
"""

from minivlm.lab.score.answers import mean
from minivlm.lab.score.statistics import summary
from minivlm.lab.tasks.intervals import paired, paired_by_picture, share_by_picture, wilson
from pruning.base import UserError

LEGEND = (
    "% right and its 95 % interval (Wilson); tokens: image tokens entering a layer; evidence: of those that show",
    "what the question is about, the share that enters a layer, merged ones included; against: the difference over",
    "the same questions, in points, and its 95 % interval (Bonett and Price); random: the mean of its draws",
)


def against(right, other, pictures=None):
    """How right two contestants were on the same questions -> the mean difference, its interval, won and lost.

    pictures: of the questions, if those about one picture are to be taken together.
    """
    differences = [a - b for a, b in zip(right, other)]
    interval = paired(differences) if pictures is None else paired_by_picture(differences, pictures)
    won = sum(d for d in differences if d > 0)
    lost = -sum(d for d in differences if d < 0)
    return dict(
        difference=mean(differences),
        interval=interval,
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


def facts(items, contestants, rows, by_picture=False):
    """[{"contestant", "method", "budget", "tokens", "statistics", "all": part, "families": {name: part}}, ..] as plain
    data.

    A contestant that does not run has "why_not" in place of the numbers. UserError if the unpruned model cannot answer.
    by_picture: questions about one picture are taken together.
    """
    answers, why_not = answered(items, contestants, rows)
    pictures = [item.image for item in items] if by_picture else None
    return [_fact(contestant, answers, why_not, items, pictures) for contestant in contestants]


def _fact(contestant, answers, why_not, items, pictures):
    """The numbers of one contestant: on all questions, and on those of each family."""
    label = contestant.label
    names = dict(contestant=label, method=contestant.method, budget=contestant.budget)
    if label in why_not:
        return dict(names, why_not=why_not[label])
    others = [other for other in ("none", contestant.rival) if other in answers and other != label]
    families = {}
    for family in sorted({item.family for item in items}):
        questions = [i for i, item in enumerate(items) if item.family == family]
        families[family] = part(answers, label, others, questions, pictures)
    tokens = [mean(row["visual"]) for row in answers[label]]
    return dict(
        names,
        tokens=mean(tokens),
        statistics=summary(items, answers[label]),
        all=part(answers, label, others, range(len(items)), pictures),
        families=families,
    )


def part(answers, label, others, questions, pictures=None):
    """The numbers on some of the questions. pictures: of all questions, if those of one are taken together."""
    own = None if pictures is None else [pictures[i] for i in questions]
    rows = [answers[label][i] for i in questions]
    right = [row["right"] for row in rows]
    evidence = [row["evidence"] for row in rows if row["evidence"] is not None]
    accuracy = mean(right)
    compared = {}
    for other in others:
        other_right = [answers[other][i]["right"] for i in questions]
        compared[other] = against(right, other_right, own)
    return dict(
        questions=len(rows),
        accuracy=accuracy,
        interval=wilson(accuracy, len(rows)) if own is None else share_by_picture(right, own),
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
