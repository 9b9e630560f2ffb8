"""Equations typed as text, as HTML: indices lowered, powers raised, Greek letters, the equals signs still aligned.

    html_of("score_j = x^2    Eq. 1")    score<sub>j</sub> = x<sup>2</sup>, and to the right of it Eq. 1
"""

import re
from html import escape

GREEK = {
    "alpha": "α",
    "eps": "ε",
    "eta": "η",
    "lambda": "λ",
    "sigma": "σ",
    "tau": "τ",
    "theta": "θ",
}
SIGNS = {"<=": "≤", ">=": "≥", "->": "→", "*": "·"}
HAT = "\u0302"                         # a combining circumflex
# a line and, after a wide gap, its number or what else is said of it
NOTED = re.compile(r"(.*[^\s:]) {4,}(?![ =])(\S.*)|(.*:) {8,}(\S.*)")
EQUALS = re.compile(r" +(?== )")       # what is before an equals sign
# what is rendered: a name with its indices, a power, a sign
PIECE = re.compile(r"(?P<name>[A-Za-z]+(?:_[A-Za-z0-9]+)*)|\^(?P<power>[A-Za-z0-9]+)|(?P<sign><=|>=|->|\*)")


def html_of(text):
    """A block of equations, line by line."""
    return "\n".join(line_of(line) for line in text.splitlines())


def line_of(line):
    """One line, and the note to its right."""
    noted = NOTED.fullmatch(line)
    left, note = (part for part in noted.groups() if part) if noted else (line, "")
    note_html = f'<span class="note">{rendered(note)}</span>' if note else ""
    return f'<span class="line"><span>{aligned(left)}</span>{note_html}</span>'


def aligned(text):
    """An equation whose left side is shorter as HTML gets as many more spaces before its equals sign."""
    gap = EQUALS.search(text)
    if not gap:
        return rendered(text)
    left = text[:gap.start()]
    html = rendered(left)
    shorter = len(left) - len(re.sub(f"<.+?>|{HAT}", "", html))
    return html + gap.group() + " " * shorter + rendered(text[gap.end():])


def rendered(text):
    """The HTML of a piece of an equation."""
    parts = []
    end = 0
    for match in PIECE.finditer(text):
        parts += [escape(text[end:match.start()]), piece_of(match)]
        end = match.end()
    return "".join([*parts, escape(text[end:])])


def piece_of(match):
    """A name, a power or a sign."""
    if match["power"]:
        return f"<sup>{match['power']}</sup>"
    if match["sign"]:
        return escape(SIGNS[match["sign"]])
    base, *indices = match["name"].split("_")
    base = GREEK.get(base, base)
    if indices[:1] == ["hat"]:
        base += HAT
        indices = indices[1:]
    index = ",".join(GREEK.get(name, name) for name in indices)
    return f"{base}<sub>{index}</sub>" if index else base
