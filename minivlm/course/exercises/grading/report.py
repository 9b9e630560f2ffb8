"""Results of grading as text, as data, and as JUnit XML."""

import re
from xml.etree import ElementTree

from pruning.errors import one_line

NOT_IN_XML = re.compile("[^\t\n -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def lines(results):
    """The checks of each answer, with a sentence for what fails; of several answers a table, too."""
    for file, grade in results:
        yield f"{one_line(str(file))}: {grade.problem.title}, {grade.points} of {grade.problem.points} points"
        for row in grade.rows:
            sentence = f": {row.sentence}" if row.sentence else ""
            yield f"  {row.points:2} of {row.check.points:2}  {row.check.name}{sentence}"
        yield ""
    if len(results) > 1:
        yield from table(results)


def table(results):
    """A row for each folder, a column for each exercise."""
    points = {}                        # of several answers in a folder to one exercise, the best
    for file, grade in results:
        key = one_line(str(file.parent)), grade.problem.name       # a line break in a name would make a row
        points[key] = max(grade.points, points.get(key, 0))
    folders = list(dict.fromkeys(folder for folder, _ in points))
    names = list(dict.fromkeys(name for _, name in points))
    width = max(map(len, folders)) + 2
    heads = "".join(f"{name:>15}" for name in names)
    yield f"{'':{width}}{heads}{'sum':>8}"
    for folder in folders:
        own = [points.get((folder, name), "-") for name in names]
        cells = "".join(f"{number:>15}" for number in own)
        total = sum(number for number in own if number != "-")
        yield f"{folder:{width}}{cells}{total:8}"


def facts(results, seed):
    """Everything as data."""
    answers = []
    for file, grade in results:
        checks = []
        for row in grade.rows:
            checks.append(dict(
                name=row.check.name,
                points=row.points,
                of=row.check.points,
                about=row.check.about,
                sentence=row.sentence,
            ))
        answers.append(dict(
            file=str(file),
            exercise=grade.problem.name,
            points=grade.points,
            of=grade.problem.points,
            checks=checks,
        ))
    return dict(seed=seed, answers=answers)


def junit(results):
    """The text of an XML file: a suite for each answer, a case for each check."""
    root = ElementTree.Element("testsuites")
    for file, grade in results:
        failed = [row for row in grade.rows if row.sentence]
        name = clean(f"{file.parent}: {grade.problem.name}")
        counts = dict(tests=str(len(grade.rows)), failures=str(len(failed)), errors="0")
        suite = ElementTree.SubElement(root, "testsuite", name=name, **counts)
        for row in grade.rows:
            case = ElementTree.SubElement(suite, "testcase", classname=clean(str(file)), name=row.check.name)
            if row.sentence:
                failure = ElementTree.SubElement(case, "failure", message=clean(row.sentence))
                failure.text = f"0 of {row.check.points} points"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def clean(text):
    """The text without characters that XML cannot hold."""
    return NOT_IN_XML.sub("?", text)
