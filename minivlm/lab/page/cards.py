"""The cards of pruning/README.md as HTML: the few forms of Markdown that they have, and no others.

Headings, paragraphs, tables, blocks of text (equations), indented commands; code, bold and links inside a line. A link
to a file of the repository becomes its name, since the page may lie anywhere.
"""

import inspect
import re
from html import escape

from minivlm.lab.check.cards import PAGE, cards, cells_of
from minivlm.lab.cli.options import read_from, root
from minivlm.lab.named.kind import in_file, kind_of
from minivlm.lab.page.equations import html_of

INLINE = re.compile(r"`(?P<code>[^`]+)`|\*\*(?P<bold>[^*]+)\*\*|\*(?P<slanted>\w[^*]*)\*"
                    r"|\[(?P<text>[^]]+)\]\((?P<to>[^)]+)\)")
# a block of text between fences, a table, an indented command, or a paragraph with what follows it directly
BLOCK = re.compile(r"^```\w*\n(?P<fenced>(?:(?!```).*\n)*)^```$|(?P<table>(?:^\|.*\n?)+)|(?P<command>(?:^    .*\n?)+)"
                   r"|^(?P<heading>#+ .*)$|(?P<words>(?:^(?!```|\||    |#).+\n?)+)", re.M)


def cards_of(methods):
    """{method: names of its cards}, and {name of a card: its HTML}.

    A reading has the card of its method; the card of a method of one's own, FILE.py:NAME, is its docstring; what `fit`
    wrote has none.
    """
    texts = cards(PAGE.read_text(encoding="utf-8"))
    name_of = {method: names[0] for names in texts for method in names}
    texts = {names[0]: text for names, text in texts.items()}
    names_of = {}
    for method in methods:
        parts = root(method).split("+")
        own = filter(in_file, parts)
        texts |= {part: own_card(part) for part in own}
        names = [name_of.get(read_from(part) or part, part) for part in parts]
        names_of[method] = [name for name in names if name in texts]
    needed = dict.fromkeys(name for names in names_of.values() for name in names)
    return names_of, {name: card_html(texts[name]) for name in needed}


def own_card(name):
    """A card, in Markdown, of a method of one's own."""
    about = inspect.getdoc(kind_of(name)) or "It has no docstring."
    return f"### `{name}`\n\n{about}\n"


def card_html(text):
    """A card, its heading on the third level."""
    return "\n".join(block_html(match) for match in BLOCK.finditer(text))


def block_html(match):
    """One block."""
    if match["fenced"] is not None:
        return f'<div class="equations">{html_of(match["fenced"].rstrip())}</div>'
    if match["table"]:
        return table_html(match["table"].splitlines())
    if match["command"]:
        return f'<pre tabindex="0">{escape(match["command"].strip())}</pre>'
    if match["heading"]:
        return f"<h3>{inline(match['heading'].lstrip('# '))}</h3>"
    return f"<p>{inline(match['words'].strip())}</p>"


def table_html(lines):
    """A table of Markdown; its second line only separates."""
    heads, _, *rows = [cells_of(line) for line in lines]
    head = "".join(f'<th scope="col">{inline(cell)}</th>' for cell in heads)
    body = "".join(row_html(row) for row in rows)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def row_html(cells):
    """A row, whose first cell is its head."""
    first, *others = map(inline, cells)
    rest = "".join(f"<td>{cell}</td>" for cell in others)
    return f'<tr><th scope="row">{first}</th>{rest}</tr>'


def inline(text):
    """Code, bold, slanted and links inside a line; everything else is escaped."""
    parts = []
    end = 0
    for match in INLINE.finditer(text):
        parts += [escape(text[end:match.start()]), inline_html(match)]
        end = match.end()
    return "".join([*parts, escape(text[end:])])


def inline_html(match):
    """One of them."""
    if match["code"]:
        return f"<code>{escape(match['code'])}</code>"
    if match["bold"]:
        return f"<strong>{escape(match['bold'])}</strong>"
    if match["slanted"]:
        return f"<em>{escape(match['slanted'])}</em>"
    text = escape(match["text"])
    if match["to"].startswith("https:"):
        return f'<a href="{escape(match["to"])}" rel="noreferrer">{text}</a>'
    return text
