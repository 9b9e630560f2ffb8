"""What `check` found, as a page to read from top to bottom, and as XML for a CI."""

from textwrap import wrap
from xml.etree import ElementTree

from minivlm.io.atomic import written
from minivlm.lab.own.promises.finding import BROKEN, KEPT, SKIPPED
from pruning.errors import escaped

WIDTH = 116
MARKS = {KEPT: "ok", BROKEN: "BROKEN"}


def promises(result):
    """Lines: the method, where it acts, what it reads, and each promise."""
    head = result["method"]
    if result["what"]:
        head += f": {result['what']}"
    yield from indented(head, "  ", first="")
    for part in ("acts", "reads", "laws"):
        for line in result[part]:
            yield from indented(line, "    ", first="  ")
    rows = result["promises"]
    width = max(len(row.name) for row in rows)
    yield ""
    for row in rows:
        if row.status != SKIPPED:
            yield from explained(row, width)
    yield from left_out(rows)
    yield ""
    yield from indented(verdict(rows), "")


def explained(row, width):
    """A line for a promise; if it is broken, the case, what was seen, and the cause."""
    line = f"  {MARKS[row.status]:7} {row.name:{width}}  {row.sentence}"
    yield from indented(line, " " * (12 + width), first="")
    if row.status != BROKEN:
        return
    for head in ("case", "seen", "cause"):
        text = getattr(row, head)
        if text:
            yield from indented(f"{head:5}  {text}", " " * 17, first=" " * 10)


def left_out(rows):
    """A line for each reason why promises were not tried."""
    names = {}
    for row in rows:
        if row.status == SKIPPED:
            names.setdefault(row.seen, []).append(row.name)
    for reason, skipped in names.items():
        yield from indented(f"  -       {', '.join(skipped)}: {reason}", " " * 10, first="")


def indented(text, indent, first=None):
    """The text in lines of at most WIDTH letters."""
    if first is None:
        first = indent
    return wrap(text, WIDTH, initial_indent=first, subsequent_indent=indent)


def verdict(rows):
    """One sentence on all promises."""
    wrong = []
    tried = 0
    for row in rows:
        if row.status != SKIPPED:
            tried += 1
        if row.status == BROKEN:
            wrong.append(row.name)
    if not tried:
        return f"no promise is tried: {rows[0].seen}"
    left_out = len(rows) - tried
    more = ""
    if left_out:
        more = f", {left_out} not tried"
    kept = tried - len(wrong)
    if not wrong:
        return f"all {kept} promises are kept{more}"
    names = ", ".join(wrong)
    return f"{kept} of {tried} promises are kept{more}; broken: {names}. Begin with {wrong[0]}"


def worth(result):
    """Lines: what it costs, how long it takes, and how well it answers."""
    for part in ("cost", "time", "accuracy", "picture"):
        lines = result.get(part, {}).get("lines")
        if lines:
            yield ""
            yield from lines


def data(result):
    """The same as plain data."""
    rows = [row.data() for row in result["promises"]]
    return result | dict(promises=rows)


def write_junit(path, result):
    """Write a test case per promise: a failure with its case, what was seen and the cause if it is broken."""
    rows = result["promises"]
    method = printable(result["method"])
    suite = ElementTree.Element("testsuite", name=method)
    suite.set("tests", str(len(rows)))
    suite.set("failures", number(rows, BROKEN))
    suite.set("skipped", number(rows, SKIPPED))
    for row in rows:
        case = ElementTree.SubElement(suite, "testcase", classname=method, name=row.name)
        if row.status == BROKEN:
            failure = ElementTree.SubElement(case, "failure", message=printable(f"{row.sentence}: {row.seen}"))
            failure.text = "\n".join(map(printable, (f"case: {row.case}", f"seen: {row.seen}", f"cause: {row.cause}")))
        if row.status == SKIPPED:
            ElementTree.SubElement(case, "skipped", message=row.seen)
    tree = ElementTree.ElementTree(suite)
    with written(path) as beside:
        tree.write(beside, encoding="utf-8", xml_declaration=True)


def printable(text):
    """The text with escapes in place of what XML cannot hold, such as the control characters of a file's name."""
    return "".join(map(escaped, text))


def number(rows, status):
    """How many findings have this status, as text."""
    return str(sum(row.status == status for row in rows))
