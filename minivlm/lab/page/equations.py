"""Equations typed as text, as HTML: indices lowered, powers raised, Greek letters, the columns still aligned.

    html_of("score_j = x^2    Eq. 1")    score<sub>j</sub> = x<sup>2</sup>      Eq. 1
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
# the gaps between columns: two spaces or more, and the space before an equals sign
GAP = re.compile(r"( {2,}| (?=[=≤] ))")
# what is rendered: a name with its indices, a power, a sign
PIECE = re.compile(r"(?P<name>[A-Za-z]+(?:_[A-Za-z0-9]+)*)|\^(?P<power>[A-Za-z0-9]+)|(?P<sign><=|>=|->|\*)")


def html_of(text):
    """A block of equations, line by line, for a <pre>."""
    return "\n".join(line_of(line) for line in text.splitlines())


def line_of(line):
    """One line. A gap grows by what its left neighbour has become shorter, so that columns stay aligned."""
    parts = []
    missing = 0
    for piece in GAP.split(line):
        if piece.isspace():
            parts.append(piece + " " * missing)
            missing = 0
        else:
            html, width = rendered(piece)
            parts.append(html)
            missing += len(piece) - width
    return "".join(parts)


def rendered(text):
    """(the HTML of a piece of an equation, how many characters wide it is)"""
    parts = []
    width = 0
    end = 0
    for match in PIECE.finditer(text):
        between = text[end:match.start()]
        html, wide = piece_of(match)
        parts += [escape(between), html]
        width += len(between) + wide
        end = match.end()
    rest = text[end:]
    return "".join([*parts, escape(rest)]), width + len(rest)


def piece_of(match):
    """(HTML, width) of a name, a power or a sign."""
    if match["power"]:
        return f"<sup>{match['power']}</sup>", len(match["power"])
    if match["sign"]:
        return SIGNS[match["sign"]], 1
    base, *indices = match["name"].split("_")
    base = GREEK.get(base, base)
    width = len(base)
    if indices[:1] == ["hat"]:
        base += HAT
        indices = indices[1:]
    index = ",".join(GREEK.get(name, name) for name in indices)
    lowered = f"<sub>{index}</sub>" if index else ""
    return base + lowered, width + len(index)
