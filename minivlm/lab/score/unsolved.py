"""How methods answer the questions that need more than a smaller picture: those that downsample_image does not solve.

VTC-Bench (Liao et al., arXiv:2510.07143) calls a question difficult if the unpruned model answers it and the same model
on the smaller picture does not; on the others a method shows little, since a smaller picture would do. Here both are
counted: all that downsample_image does not solve, and the difficult ones among them. Each budget has its own, from
downsample_image at that budget.
"""

from minivlm.lab.score.accuracy import answered, part, percent
from minivlm.lab.tasks.intervals import share_by_picture, wilson

FILTER = "downsample_image"


def unsolved(items, contestants, rows, by_picture=False):
    """[{"budget", "questions", "share", "interval", "difficult", "contestants": [{"contestant", "unsolved": part,
    "difficult": part}]}] as plain data, one per budget of downsample_image; [] if that was not run.

    A part is None if it has no question. by_picture: questions about one picture are taken together. An answer that is
    partly right solves nothing.
    """
    answers, _ = answered(items, contestants, rows)
    pictures = [item.image for item in items] if by_picture else None
    groups = []
    for contestant in contestants:
        if contestant.method == FILTER and contestant.label in answers:
            others = [c.label for c in contestants if c.label in answers and is_alike(c, contestant)]
            groups.append(_group(answers, contestant, others, pictures))
    return groups


def is_alike(contestant, other):
    """Whether a contestant has the budget of the other one, or none of its own."""
    return contestant.budget in (None, other.budget)


def _group(answers, filter, labels, pictures):
    """The numbers of one budget."""
    right = [row["right"] for row in answers[filter.label]]
    unpruned = [row["right"] for row in answers["none"]]
    left = [i for i, share in enumerate(right) if share < 1]
    difficult = [i for i in left if unpruned[i] == 1]
    rows = []
    for label in labels:
        parts = {
            "unsolved": _part(answers, label, left, pictures),
            "difficult": _part(answers, label, difficult, pictures),
        }
        rows.append(dict(contestant=label, **parts))
    share = len(left) / len(right)
    interval = wilson(share, len(right))
    if pictures:
        interval = share_by_picture([float(score < 1) for score in right], pictures)
    return dict(budget=filter.budget, questions=len(left), share=share, interval=interval,
                difficult=len(difficult), contestants=rows)


def _part(answers, label, questions, pictures):
    return part(answers, label, (), questions, pictures) if questions else None


def lines(groups):
    """The tables as text."""
    for group in groups:
        width = max(len(row["contestant"]) for row in group["contestants"])
        low, high = group["interval"]
        yield ""
        yield (f"{FILTER} {group['budget']} does not solve {group['questions']} questions, "
               f"{100 * group['share']:.1f} % ({100 * low:.1f}-{100 * high:.1f}); no pruning solves "
               f"{group['difficult']} of these: the difficult ones")
        yield f"{'':{width}}  unsolved        difficult"
        for row in group["contestants"]:
            cells = [_cell(row[name]) for name in ("unsolved", "difficult")]
            yield f"{row['contestant']:{width}}  {cells[0]:16}{cells[1]}".rstrip()
    if groups:
        yield ""
        yield f"unsolved, difficult: % right of these questions; {FILTER} is wrong on them by definition"


def _cell(numbers):
    return "" if numbers is None else percent(numbers, 1, 4)
