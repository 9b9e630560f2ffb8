"""The answer to a question of the toy by loops over what a picture shows: what the fast answers are compared with."""

from minivlm.toy.scenes import COLORS, GLYPHS, OBJECTS, SCENES, SHAPES


def answer_by_loops(family, words, world, i):
    """The answer from the words of the question, by loops over what picture i shows; None where there is none."""
    things = [(SHAPES[world.shape[i, s]], COLORS[world.color[i, s]], *world.center[i, s]) for s in range(OBJECTS)
              if world.present[i, s]]
    named = [(w, words[at + 1]) for at, w in enumerate(words[:-1]) if w in COLORS and words[at + 1] in SHAPES]
    of = lambda color, shape: [t for t in things if t[:2] == (shape, color)]
    if family == "exist":
        return "yes" if of(*named[0]) else "no"
    if family in ("color", "shape"):
        matching = [t for t in things if t[0] in words or t[1] in words]
        return matching[0][1 if family == "color" else 0] if len(matching) == 1 else None
    if family == "count":
        singular = {"crosses": "cross"}.get(words[2], words[2].removesuffix("s"))
        n = sum(singular in t[:2] or words[2] in t[:2] for t in things)
        return ("zero one two three four five".split() + [None] * 9)[n]
    if family == "read":
        sign = ("white", "black").index(words[4])
        return GLYPHS[world.glyph[i, sign]] if world.present[i, OBJECTS + sign] else None
    if family == "scene":
        return SCENES[world.scene[i]]
    matching = [of(*name) for name in named]
    if any(len(f) != 1 for f in matching):
        return None
    origin = matching[1][0][2:] if family == "relpos" else (96, 96)
    x, y = (int(a) - int(b) for a, b in zip(matching[0][0][2:], origin))
    if max(abs(x), abs(y)) < 1.5 * min(abs(x), abs(y)) or max(abs(x), abs(y)) < 16:
        return None
    across, down = ("left", "right"), (("above", "below") if family == "relpos" else ("top", "bottom"))
    return across[x > 0] if abs(x) > abs(y) else down[y > 0]
