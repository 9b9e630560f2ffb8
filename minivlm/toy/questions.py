"""Questions about drawn scenes: eight families, exact answers, and the patches that hold the answer.

`ask` draws one question a picture of a family; `answer` gives the answers to questions from those things alone that it
is told are visible, so that the answers after patches are hidden come from the same few lines:

    exist   is there a red circle ?                      yes no
    color   what color is the circle ?                   a colour; there is one circle
    shape   what shape is the red object ?               a shape; there is one red object
    count   how many circles (red objects) are there ?   zero .. five
    relpos  where is the red circle from the blue ring ? left right above below: the longer way, by half at least
    read    what is on the white sign ?                  a glyph
    scene   what scene is this ?                         a scene
    abspos  where is the red circle ?                    left right top bottom of the picture's middle

A question is four numbers: shape and colour of the object it is about, then of the second object; -1 where it names
none. For `read` the first is the sign: 0 white, 1 black. An answer is the id of its word, -1 where there is none.
"""

import numpy as np

from minivlm.toy.scenes import COLORS, GLYPHS, OBJECTS, SCENES, SHAPES, SIDE, UNSEEN, seen_pairs

FAMILIES = ("exist", "color", "shape", "count", "relpos", "read", "scene", "abspos")
NUMBERS = ("zero", "one", "two", "three", "four", "five")
PLURALS = ("circles", "squares", "triangles", "diamonds", "rings", "crosses", "objects")
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
TEMPLATES = {
    "exist": "is there a C S ?", "color": "what color is the S ?", "shape": "what shape is the C object ?",
    "count": "how many C P are there ?", "relpos": "where is the C S from the C2 S2 ?",
    "read": "what is on the PLATE sign ?", "scene": "what scene is this ?", "abspos": "where is the C S ?"}
PLAIN = "user assistant : ? . is there a what color the shape object how many are where from on sign scene this"
WORDS = (*SPECIAL, *PLAIN.split(), "yes", "no", "left", "right", "above", "below", "top", "bottom", "white", "black",
         *SHAPES, *PLURALS, *COLORS, *NUMBERS, *SCENES, *GLYPHS)
ID = {word: i for i, word in enumerate(WORDS)}
assert len(ID) == len(WORDS), "a word stands twice in the vocabulary"


def ids(words):
    """Ids of the words."""
    return np.array([ID[word] for word in words])


def ask(rng, family, worlds, unseen=False):
    """(B, 4) one question a picture; its answer is -1 where the picture has none to ask. `unseen`: about UNSEEN pairs."""
    return np.stack(DRAW[family](rng, worlds, unseen), axis=1)


def answer(family, question, worlds, visible):
    """(B,) ids of the answers, from the things `visible` (B, 9) alone; -1 where there is no answer then."""
    return ANSWER[family](question, worlds, visible & worlds.present)


def evidence(family, question, worlds):
    """(B, N) the patches needed: of the things the question is about, whole.

    Where the answer is no or zero, those of every object, since each could have been one; for `scene` every patch
    that is not mostly a thing, any few of which are enough.
    """
    if family == "scene":
        return worlds.area.sum(axis=1) < 32
    objects, need = worlds.present & (np.arange(OBJECTS + 2) < OBJECTS), np.zeros_like(worlds.present)
    if family == "read":
        need[np.arange(len(need)), OBJECTS + question[:, 0]] = True
    else:
        second = (question[:, 2:] >= 0).any(axis=1)[:, None]
        need[:, :OBJECTS] = _match(question[:, :2], worlds) | _match(question[:, 2:], worlds) & second
        need &= objects
        need = np.where(need.any(axis=1, keepdims=True), need, objects)
    return (worlds.area * need[..., None]).sum(axis=1) > 0


def text(family, question):
    """The words of one question, as a list."""
    s, c, s2, c2 = question
    names = dict(S=SHAPES[s], C=COLORS[c] if c >= 0 else "", S2=SHAPES[s2], C2=COLORS[c2], P=PLURALS[s],
                 PLATE=("white", "black")[max(s, 0) % 2])
    return [word for word in (names.get(part, part) for part in TEMPLATES[family].split()) if word]


def visible(worlds, shown):
    """What can be told when only the patches `shown` (B, N) are left: (B, 9) surely, and perhaps, visible.

    A thing is visible when a fifth of its pixels is; when less is left of it, nobody can say.
    """
    share = (worlds.area * shown[:, None]).sum(axis=2) / np.maximum(worlds.area.sum(axis=2), 1)
    return share >= 0.2, share > 0


def _match(kind, worlds):
    """(B, 7) the objects of that shape and colour; -1 is any."""
    shape, color = kind[:, :1], kind[:, 1:]
    return ((shape < 0) | (worlds.shape == shape)) & ((color < 0) | (worlds.color == color))


def _one(kind, worlds, visible):
    """The only visible object of that kind, and whether there is just one."""
    found = _match(kind, worlds) & visible[:, :OBJECTS]
    return found.argmax(axis=1), found.sum(axis=1) == 1


def _exist(q, w, visible):
    return np.where((_match(q[:, :2], w) & visible[:, :OBJECTS]).any(axis=1), ID["yes"], ID["no"])


def _color(q, w, visible):
    at, one = _one(q[:, :2], w, visible)
    return np.where(one, ids(COLORS)[w.color[np.arange(len(q)), at]], -1)


def _shape(q, w, visible):
    at, one = _one(q[:, :2], w, visible)
    return np.where(one, ids(SHAPES)[w.shape[np.arange(len(q)), at]], -1)


def _count(q, w, visible):
    n = (_match(q[:, :2], w) & visible[:, :OBJECTS]).sum(axis=1)
    return np.where(n < len(NUMBERS), ids(NUMBERS)[np.minimum(n, 5)], -1)


def _relpos(q, w, visible):
    (a, one), (b, other), each = _one(q[:, :2], w, visible), _one(q[:, 2:], w, visible), np.arange(len(q))
    way = _way(w.center[each, a] - w.center[each, b], ids(("left", "right", "above", "below")))
    return np.where(one & other & (a != b), way, -1)


def _read(q, w, visible):
    sign, each = q[:, 0], np.arange(len(q))
    return np.where(visible[each, OBJECTS + sign], ids(GLYPHS)[w.glyph[each, sign]], -1)


def _scene(q, w, visible):
    return ids(SCENES)[w.scene]


def _abspos(q, w, visible):
    at, one = _one(q[:, :2], w, visible)
    way = _way(w.center[np.arange(len(q)), at] - SIDE, ids(("left", "right", "top", "bottom")))
    return np.where(one, way, -1)


def _way(step, words):
    """(B, 2) steps in half pixels -> the word for the longer of the two, -1 if it is not half as long again and 8 pixels."""
    x, y = abs(step[:, 0]), abs(step[:, 1])
    clear = (np.maximum(x, y) >= 1.5 * np.minimum(x, y)) & (np.maximum(x, y) >= 16)
    return np.where(clear, words[np.where(x > y, (step[:, 0] > 0) * 1, 2 + (step[:, 1] > 0))], -1)


def _pick(rng, fits):
    """(B,) the index of one True of each row of (B, m), each as likely; 0 where there is none."""
    return (fits * (0.1 + rng.random(fits.shape))).argmax(axis=1)


def _alone(worlds, attribute):
    """(B, 7) whether no other object has the same value of `attribute`."""
    here = worlds.present[:, :OBJECTS]
    same = (attribute[:, :, None] == attribute[:, None, :]) & here[:, None, :]
    return (same.sum(axis=2) == 1) & here


def _candidates(worlds, alone, unseen):
    """(B, 7) the objects to ask about; `unseen`: those of UNSEEN kinds where there are any."""
    if not unseen:
        return alone
    rare = alone & np.any([(worlds.shape == s) & (worlds.color == c) for s, c in UNSEEN], axis=0)
    return np.where(rare.any(axis=1, keepdims=True), rare, alone)


def _kind(worlds, at):
    each = np.arange(len(at))
    return worlds.shape[each, at], worlds.color[each, at]


def _draw_exist(rng, w, unseen):
    """Half are there; of the others, four of five share their shape or colour with an object."""
    pairs = np.array(UNSEEN) if unseen else seen_pairs()
    same = (w.shape[:, :, None] == pairs[:, 0], w.color[:, :, None] == pairs[:, 1])                # (B, 7, pairs) each
    here = w.present[:, :OBJECTS, None]
    there, near = (same[0] & same[1] & here).any(axis=1), ((same[0] | same[1]) & here).any(axis=1)
    hard = near & ~there & (rng.random((len(near), 1)) < 0.8)
    absent = np.where(hard.any(axis=1, keepdims=True), hard, ~there)
    wants = (rng.random((len(near), 1)) < 0.5) & there.any(axis=1, keepdims=True) | ~absent.any(axis=1, keepdims=True)
    shape, color = pairs[_pick(rng, np.where(wants, there, absent))].T
    return shape, color, np.full(len(shape), -1), np.full(len(shape), -1)


def _draw_color(rng, w, unseen):
    shape, color = _kind(w, _pick(rng, _candidates(w, _alone(w, w.shape), unseen)))
    return shape, *np.full((3, len(shape)), -1)


def _draw_shape(rng, w, unseen):
    shape, color = _kind(w, _pick(rng, _candidates(w, _alone(w, w.color), unseen)))
    return np.full(len(shape), -1), color, *np.full((2, len(shape)), -1)


def _draw_count(rng, w, unseen):
    """First a number that the picture has, each as likely, then a shape or colour of that many."""
    here = w.present[:, :OBJECTS, None]
    n = np.concatenate([((w.shape[..., None] == np.arange(len(SHAPES))) & here).sum(axis=1),
                        ((w.color[..., None] == np.arange(len(COLORS))) & here).sum(axis=1)], axis=1)  # (B, 13)
    number = _pick(rng, (n[:, :, None] == np.arange(len(NUMBERS))).any(axis=1))
    at = _pick(rng, n == number[:, None])
    shapes = at < len(SHAPES)
    return np.where(shapes, at, -1), np.where(shapes, -1, at - len(SHAPES)), *np.full((2, len(at)), -1)


def _draw_relpos(rng, w, unseen):
    alone, each = _alone(w, w.shape * len(COLORS) + w.color), np.arange(len(w.shape))
    first = _pick(rng, _candidates(w, alone, unseen))
    step = abs(w.center[:, :OBJECTS] - w.center[each, first][:, None])             # (B, 7, 2)
    clear = (step.max(axis=2) >= 1.5 * step.min(axis=2)) & (step.max(axis=2) >= 16)
    second = _pick(rng, alone & clear & (np.arange(OBJECTS) != first[:, None]))
    swap = rng.random(len(first)) < 0.5
    return *_kind(w, np.where(swap, second, first)), *_kind(w, np.where(swap, first, second))


def _draw_read(rng, w, unseen):
    return _pick(rng, w.present[:, OBJECTS:]), *np.full((3, len(w.shape)), -1)


def _draw_scene(rng, w, unseen):
    return tuple(np.full((4, len(w.scene)), -1))


def _draw_abspos(rng, w, unseen):
    step = abs(w.center[:, :OBJECTS] - SIDE)
    clear = (step.max(axis=2) >= 1.5 * step.min(axis=2)) & (step.max(axis=2) >= 16)
    alone = _alone(w, w.shape * len(COLORS) + w.color) & clear
    return *_kind(w, _pick(rng, _candidates(w, alone, unseen))), *np.full((2, len(w.shape)), -1)


DRAW = dict(exist=_draw_exist, color=_draw_color, shape=_draw_shape, count=_draw_count, relpos=_draw_relpos,
            read=_draw_read, scene=_draw_scene, abspos=_draw_abspos)
ANSWER = dict(exist=_exist, color=_color, shape=_shape, count=_count, relpos=_relpos, read=_read, scene=_scene,
              abspos=_abspos)
