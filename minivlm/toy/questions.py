"""Questions about drawn scenes: eight families, exact answers, and the patches that hold the answer.

`ask` draws one question per picture of a family; `answer` gives the answers to questions from only those things that it
is given as visible, so that the answers after patches are hidden come from the same few lines:

    exist   is there a red circle ?                      yes no
    color   what color is the circle ?                   a colour; there is one circle
    shape   what shape is the red object ?               a shape; there is one red object
    count   how many circles (red objects) are there ?   zero .. five
    relpos  where is the red circle from the blue ring ? left right above below: the longer way, by half at least
    read    what is on the white sign ?                  a glyph
    scene   what scene is this ?                         a scene
    abspos  where is the red circle ?                    left right top bottom of the picture's middle

A question is four numbers: shape and colour of the object it is about, then of the second object; -1 if it names none.
For `read` the first is the sign: 0 white, 1 black. An answer is the id of its word, -1 if there is none.
"""

import numpy as np

from minivlm.toy.scenes import COLORS, GLYPHS, OBJECTS, SCENES, SHAPES, SIDE, UNSEEN, seen_pairs

FAMILIES = ("exist", "color", "shape", "count", "relpos", "read", "scene", "abspos")
NUMBERS = ("zero", "one", "two", "three", "four", "five")
PLURALS = ("circles", "squares", "triangles", "diamonds", "rings", "crosses", "objects")
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
TEMPLATES = {
    "exist": "is there a C S ?",
    "color": "what color is the S ?",
    "shape": "what shape is the C object ?",
    "count": "how many C P are there ?",
    "relpos": "where is the C S from the C2 S2 ?",
    "read": "what is on the PLATE sign ?",
    "scene": "what scene is this ?",
    "abspos": "where is the C S ?",
}
PLAIN = "user assistant : ? . is there a what color the shape object how many are where from on sign scene this"
WORDS = (
    *SPECIAL, *PLAIN.split(), "yes", "no", "left", "right", "above", "below", "top", "bottom", "white", "black",
    *SHAPES, *PLURALS, *COLORS, *NUMBERS, *SCENES, *GLYPHS,
)
ID = {word: i for i, word in enumerate(WORDS)}
NEAREST = 16                                       # half pixels: what is less far in a direction is not clearly there
assert len(ID) == len(WORDS), "a word is in the vocabulary twice"


def ids(words):
    """Ids of the words."""
    return np.array([ID[word] for word in words])


def ask(rng, family, worlds, unseen=False):
    """(B, 4) one question per picture; its answer is -1 if the picture has none to ask. `unseen`: about UNSEEN
    pairs."""
    return DRAW[family](rng, worlds, unseen)


def answer(family, question, worlds, visible):
    """(B,) ids of the answers, from only the things `visible` (B, 9); -1 if there is no answer then."""
    first = question[:, :2]
    second = question[:, 2:]
    visible = visible & worlds.present
    return ANSWER[family](first, second, worlds, visible)


def evidence(family, question, worlds):
    """(B, N) the patches needed: of the things the question is about, whole.

    If the answer is no or zero, those of every object, since each could have been one; for `scene` every patch that is
    not mostly a thing, any few of which are enough.
    """
    if family == "scene":
        return worlds.area.sum(axis=1) < 32
    if family == "read":
        slot = np.arange(OBJECTS + 2)                                              # (S,)
        sign = OBJECTS + question[:, :1]                                           # (B, 1)
        needed = slot == sign                                                      # (B, S)
    else:
        needed = _objects_asked_about(question, worlds)
    area = worlds.area * needed[..., None]                                         # (B, S, N)
    return area.sum(axis=1) > 0


def _objects_asked_about(question, worlds):
    """(B, S) the objects that the question names, or every object if it names none that is there."""
    slot = np.arange(OBJECTS + 2)                                                  # (S,)
    is_object = slot < OBJECTS
    objects = worlds.present & is_object                                           # (B, S)
    first = question[:, :2]
    second = question[:, 2:]
    has_second = (second >= 0).any(axis=1)[:, None]                                # (B, 1)
    named = _match(second, worlds) & has_second                                    # (B, 7)
    named |= _match(first, worlds)
    needed = np.zeros_like(worlds.present)
    needed[:, :OBJECTS] = named
    needed &= objects
    names_some = needed.any(axis=1, keepdims=True)
    return np.where(names_some, needed, objects)


def text(family, question):
    """The words of one question, as a list."""
    shape, color, second_shape, second_color = question
    names = dict(S=SHAPES[shape], P=PLURALS[shape])
    names["S2"] = SHAPES[second_shape]
    names["C2"] = COLORS[second_color]
    names["C"] = COLORS[color] if color >= 0 else ""
    names["PLATE"] = "black" if shape == 1 else "white"
    words = []
    for part in TEMPLATES[family].split():
        word = names.get(part, part)
        if word:
            words.append(word)
    return words


def visible(worlds, shown):
    """What is visible when only the patches `shown` (B, N) are left: (B, 9) surely, and perhaps.

    A thing is visible when a fifth of its pixels is; of less, nobody can say.
    """
    area_shown = worlds.area * shown[:, None]                                      # (B, S, N)
    pixels_shown = area_shown.sum(axis=2)                                          # (B, S)
    pixels = worlds.area.sum(axis=2)                                               # (B, S)
    share = pixels_shown / np.maximum(pixels, 1)
    return share >= 0.2, share > 0


def of_each(values, at):
    """(B, ..) the value at place `at` (B,) of each picture's values (B, m, ..)."""
    rows = np.arange(len(at))
    return values[rows, at]


# --- answers ----------------------------------------------------------------------------------------------------------

def _match(kind, worlds):
    """(B, 7) the objects of that shape and colour; -1 is any."""
    shape = kind[:, :1]
    color = kind[:, 1:]
    has_shape = (shape < 0) | (worlds.shape == shape)
    has_color = (color < 0) | (worlds.color == color)
    return has_shape & has_color


def _visible_match(kind, worlds, visible):
    """(B, 7) the same, of the visible objects."""
    return _match(kind, worlds) & visible[:, :OBJECTS]


def _only(kind, worlds, visible):
    """(B,) the only visible object of that kind, and whether there is just one."""
    match = _visible_match(kind, worlds, visible)
    count = match.sum(axis=1)
    return match.argmax(axis=1), count == 1


def _exist(first, second, worlds, visible):
    match = _visible_match(first, worlds, visible)
    is_there = match.any(axis=1)
    return np.where(is_there, ID["yes"], ID["no"])


def _color(first, second, worlds, visible):
    at, is_only = _only(first, worlds, visible)
    color = of_each(worlds.color, at)
    word = ids(COLORS)[color]
    return np.where(is_only, word, -1)


def _shape(first, second, worlds, visible):
    at, is_only = _only(first, worlds, visible)
    shape = of_each(worlds.shape, at)
    word = ids(SHAPES)[shape]
    return np.where(is_only, word, -1)


def _count(first, second, worlds, visible):
    match = _visible_match(first, worlds, visible)
    n = match.sum(axis=1)
    largest = len(NUMBERS) - 1
    word = ids(NUMBERS)[np.minimum(n, largest)]
    return np.where(n <= largest, word, -1)


def _relpos(first, second, worlds, visible):
    at, is_only = _only(first, worlds, visible)
    other, is_only_other = _only(second, worlds, visible)
    center = of_each(worlds.center, at)                                            # (B, 2)
    from_center = of_each(worlds.center, other)
    step = center - from_center
    way = _way(step, ids(("left", "right", "above", "below")))
    has_answer = is_only & is_only_other
    has_answer &= at != other
    return np.where(has_answer, way, -1)


def _read(first, second, worlds, visible):
    sign = first[:, 0]
    slot = OBJECTS + sign
    glyph = of_each(worlds.glyph, sign)
    is_visible = of_each(visible, slot)
    return np.where(is_visible, ids(GLYPHS)[glyph], -1)


def _scene(first, second, worlds, visible):
    return ids(SCENES)[worlds.scene]


def _abspos(first, second, worlds, visible):
    at, is_only = _only(first, worlds, visible)
    step = of_each(worlds.center, at) - SIDE                                       # (B, 2)  from the middle
    way = _way(step, ids(("left", "right", "top", "bottom")))
    return np.where(is_only, way, -1)


def _is_clear(step):
    """Whether steps (.., 2) are half as long again in one direction as in the other, and at least 8 pixels. (..)"""
    length = abs(step)
    longer = length.max(axis=-1)
    shorter = length.min(axis=-1)
    return (longer >= 1.5 * shorter) & (longer >= NEAREST)


def _way(step, words):
    """(B, 2) steps in half pixels -> the word for the longer of the two, -1 if it is not clearly so."""
    across, down = step.T
    left_or_right = np.where(across > 0, 1, 0)
    above_or_below = np.where(down > 0, 3, 2)
    is_across = abs(across) > abs(down)
    word = np.where(is_across, left_or_right, above_or_below)
    return np.where(_is_clear(step), words[word], -1)


# --- questions --------------------------------------------------------------------------------------------------------

def _pick(rng, fits):
    """(B,) the index of one True of each row of (B, m), each as likely; 0 if there is none."""
    weight = 0.1 + rng.random(fits.shape)
    return (fits * weight).argmax(axis=1)


def _is_unique(worlds, attribute):
    """(B, 7) whether no other object has the same value of `attribute`."""
    present = worlds.present[:, :OBJECTS]
    value = attribute[:, :, None]
    other = attribute[:, None, :]
    same = value == other                                                          # (B, 7, 7)
    same &= present[:, None, :]
    count = same.sum(axis=2)                                                       # (B, 7)
    return (count == 1) & present


def _kind_of(worlds):
    """(B, 7) a number for each pair of shape and colour."""
    return worlds.shape * len(COLORS) + worlds.color


def _candidates(worlds, unique, unseen):
    """(B, 7) the objects to ask about; `unseen`: those of UNSEEN kinds if there are any."""
    if not unseen:
        return unique
    rare = np.zeros_like(unique)
    for shape, color in UNSEEN:
        has_shape = worlds.shape == shape
        has_color = worlds.color == color
        rare |= has_shape & has_color
    rare &= unique
    has_rare = rare.any(axis=1, keepdims=True)
    return np.where(has_rare, rare, unique)


def _kind(worlds, at):
    """(B,) shape and (B,) colour of one object of each picture."""
    shape = of_each(worlds.shape, at)
    color = of_each(worlds.color, at)
    return shape, color


def _question(worlds, shape=-1, color=-1, second_shape=-1, second_color=-1):
    """(B, 4) questions, -1 for what they do not name."""
    B = len(worlds.scene)
    question = np.empty((B, 4), int)
    question[:, 0] = shape
    question[:, 1] = color
    question[:, 2] = second_shape
    question[:, 3] = second_color
    return question


def _draw_exist(rng, worlds, unseen):
    """Half are there; of the others, four of five share their shape or colour with an object."""
    pairs = np.array(UNSEEN) if unseen else seen_pairs()                           # (pairs, 2)
    present = worlds.present[:, :OBJECTS, None]
    pair_shape, pair_color = pairs.T
    same_shape = worlds.shape[..., None] == pair_shape                             # (B, 7, pairs)
    same_color = worlds.color[..., None] == pair_color
    there = (same_shape & same_color & present).any(axis=1)                        # (B, pairs)
    near = ((same_shape | same_color) & present).any(axis=1)
    B = len(near)
    # a pair that is absent, most often one that is nearly there
    wants_near = rng.random((B, 1)) < 0.8
    hard = near & ~there & wants_near
    has_hard = hard.any(axis=1, keepdims=True)
    absent = np.where(has_hard, hard, ~there)
    # one that is there for half of the pictures, as far as there are such pairs
    wants_there = rng.random((B, 1)) < 0.5
    wants_there &= there.any(axis=1, keepdims=True)
    wants_there |= ~absent.any(axis=1, keepdims=True)
    pair = _pick(rng, np.where(wants_there, there, absent))
    shape, color = pairs[pair].T
    return _question(worlds, shape, color)


def _draw_color(rng, worlds, unseen):
    unique = _is_unique(worlds, worlds.shape)
    at = _pick(rng, _candidates(worlds, unique, unseen))
    shape, _ = _kind(worlds, at)
    return _question(worlds, shape)


def _draw_shape(rng, worlds, unseen):
    unique = _is_unique(worlds, worlds.color)
    at = _pick(rng, _candidates(worlds, unique, unseen))
    _, color = _kind(worlds, at)
    return _question(worlds, color=color)


def _draw_count(rng, worlds, unseen):
    """First a number that the picture has, each as likely, then a shape or colour of that many."""
    present = worlds.present[:, :OBJECTS, None]
    shapes = np.arange(len(SHAPES))
    colors = np.arange(len(COLORS))
    has_shape = worlds.shape[..., None] == shapes                                  # (B, 7, 6)
    has_color = worlds.color[..., None] == colors                                  # (B, 7, 7)
    of_shape = (has_shape & present).sum(axis=1)
    of_color = (has_color & present).sum(axis=1)
    n = np.concatenate([of_shape, of_color], axis=1)                               # (B, 13)
    numbers = np.arange(len(NUMBERS))
    is_number = n[:, :, None] == numbers                                           # (B, 13, 6)
    number = _pick(rng, is_number.any(axis=1))
    is_of_number = n == number[:, None]                                            # (B, 13)
    at = _pick(rng, is_of_number)
    is_shape = at < len(SHAPES)
    shape = np.where(is_shape, at, -1)
    number_of_color = at - len(SHAPES)
    color = np.where(is_shape, -1, number_of_color)
    return _question(worlds, shape, color)


def _draw_relpos(rng, worlds, unseen):
    unique = _is_unique(worlds, _kind_of(worlds))
    first = _pick(rng, _candidates(worlds, unique, unseen))
    # a second one, clearly on one side of the first
    center = worlds.center[:, :OBJECTS]
    first_center = of_each(center, first)                                          # (B, 2)
    step = center - first_center[:, None]                                          # (B, 7, 2)
    is_other = np.arange(OBJECTS) != first[:, None]
    fits = unique & _is_clear(step) & is_other
    second = _pick(rng, fits)
    # in either order
    swaps = rng.random(len(first)) < 0.5
    at = np.where(swaps, second, first)
    other = np.where(swaps, first, second)
    shape, color = _kind(worlds, at)
    return _question(worlds, shape, color, *_kind(worlds, other))


def _draw_read(rng, worlds, unseen):
    sign = _pick(rng, worlds.present[:, OBJECTS:])
    return _question(worlds, sign)


def _draw_scene(rng, worlds, unseen):
    return _question(worlds)


def _draw_abspos(rng, worlds, unseen):
    step = worlds.center[:, :OBJECTS] - SIDE                                       # (B, 7, 2)
    unique = _is_unique(worlds, _kind_of(worlds))
    fits = unique & _is_clear(step)
    at = _pick(rng, _candidates(worlds, fits, unseen))
    shape, color = _kind(worlds, at)
    return _question(worlds, shape, color)


DRAW = {
    "exist": _draw_exist,
    "color": _draw_color,
    "shape": _draw_shape,
    "count": _draw_count,
    "relpos": _draw_relpos,
    "read": _draw_read,
    "scene": _draw_scene,
    "abspos": _draw_abspos,
}
ANSWER = {
    "exist": _exist,
    "color": _color,
    "shape": _shape,
    "count": _count,
    "relpos": _relpos,
    "read": _read,
    "scene": _scene,
    "abspos": _abspos,
}
