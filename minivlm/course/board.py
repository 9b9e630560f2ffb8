"""The leaderboard as Markdown: a row for each contestant, and below what its signs mean."""

from minivlm.lab.own.promises.finding import BROKEN

HEADS = ("method", "right, %", "against random", "evidence", "tokens", "own time", "laws")
LEGEND = (
    "right: with the 95 % interval (Wilson). against random: points to random tokens at the same place and budget, on",
    "the same questions, with the paired 95 % interval. evidence: of the tokens that show the answer, the share that",
    "enters a layer. tokens: entering a layer. own time: of the method itself, for a prompt. laws: promised, and kept",
    "on drawn prompts; ~~struck out~~: broken there.",
)
ROLES = ("floor", "method", "ceiling")             # in this order


def lines(rows, seed):
    """The table, the legend, which laws break, and which methods do not run."""
    shown = in_order([row for row in rows if "why_not" not in row])
    questions = shown[0]["all"]["questions"]
    yield f"{questions} questions of the drawn world, seed {seed}; the shipped model:"
    yield ""
    yield line(HEADS)
    yield line(["---"] * len(HEADS))
    for row in shown:
        yield line(cells(row))
    yield ""
    yield from LEGEND
    for row in shown:
        yield from complaints(row)
    for row in rows:
        if "why_not" in row:
            reason = row["why_not"]
            yield f"{row['contestant']} does not run here: {reason}"


def in_order(rows):
    """The floors, the methods from the most right answers to the fewest, the ceilings.

    The floor of a method that cuts at several layers is shown if that is the only method.
    """
    methods = [row for row in rows if row["role"] == "method"]
    is_only = len(methods) == 1
    shown = [row for row in rows if is_only or not row["contestant"].startswith("random as ")]
    return sorted(shown, key=lambda row: (ROLES.index(row["role"]), -row["all"]["accuracy"]))


def line(cells):
    """line(["a", "b"]) -> "| a | b |\""""
    return f"| {' | '.join(cells)} |"


def cells(row):
    """The columns of one row."""
    whole = row["all"]
    against = whole["against"].get(row["rival"])
    evidence = "" if whole["evidence"] is None else f"{whole['evidence']:.0%}"
    tokens = f"{row['tokens']:.1f}"
    time = ""
    if "seconds" in row:
        milliseconds = 1e3 * row["seconds"]
        time = f"{milliseconds:.1f} ms"
    return [name(row), right(whole), points(against), evidence, tokens, time, badges(row["laws"])]


def name(row):
    """Its label; in italics, and with what it is for, if it is no method."""
    label = row["contestant"].replace("|", r"\|")          # which would end the cell
    return label if row["role"] == "method" else f"*{label}* ({row['role']})"


def right(part):
    """92.5 (89.1 to 94.9)"""
    low, high = (f"{100 * end:.1f}" for end in part["interval"])
    return f"{100 * part['accuracy']:.1f} ({low} to {high})"


def points(compared):
    """+2.5 (-0.2 to +5.2); "" without a comparison."""
    if compared is None:
        return ""
    low, high = (f"{100 * end:+.1f}" for end in compared["interval"])
    return f"{100 * compared['difference']:+.1f} ({low} to {high})"


def badges(findings):
    """The names of the laws, those that break struck out."""
    if findings is None:
        return "not tried"
    names = [f"~~{finding.name}~~" if finding.status == BROKEN else finding.name for finding in findings]
    return " ".join(names)


def complaints(row):
    """A sentence for each law that breaks."""
    for finding in row["laws"] or ():
        if finding.status == BROKEN:
            yield f"{row['contestant']} breaks {finding.name} ({finding.sentence}): {finding.case}; {finding.seen}."
