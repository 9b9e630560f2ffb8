"""The drawn world: textured scenes with three to seven objects and up to two signs, 96 x 96 pixels, 12 x 12 patches.

    worlds("train", seed=0, batch=7, count=64) -> 64 `Worlds` at once, the same to the byte at every call

All is done for a whole batch at once, in numpy. The sets draw from seeds of their own: "train", "validation",
"heldout", and "pairs", each of whose pictures shows at least one of the shape-colour pairs in `UNSEEN`, which are in
no picture and no question of the other sets.

Letters: B pictures of the batch, S = 9 slots for things (7 objects, then the white and the black sign), N = 144
patches.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

SIDE = 96                                          # pixels of a picture
PATCH = 8                                          # pixels of a patch
GRID = SIDE // PATCH
OBJECTS = 7                                        # object slots
STAMP = 16                                         # side of the square in which a thing is drawn
TEXTURE = 160                                      # side of a texture, of which a picture shows a part
SHAPES = ("circle", "square", "triangle", "diamond", "ring", "cross")
RGB_OF = {                                         # of an object
    "red": (225, 45, 40),
    "green": (50, 190, 60),
    "blue": (50, 95, 235),
    "yellow": (240, 225, 55),
    "purple": (155, 65, 205),
    "orange": (250, 140, 30),
    "cyan": (55, 215, 225),
}
GROUND_OF = {                                      # of the ground
    "stone": (165, 170, 180),
    "night": (28, 28, 42),
    "sand": (168, 142, 100),
    "water": (45, 75, 115),
    "grass": (68, 112, 62),
    "brick": (118, 66, 56),
}
COLORS = tuple(RGB_OF)
SCENES = tuple(GROUND_OF)
GLYPHS = "0123456789hkltxz"
SETS = ("train", "validation", "heldout", "pairs")
UNSEEN = ((4, 6), (5, 5), (2, 4), (1, 1))          # cyan ring, orange cross, purple triangle, green square
RGB = np.array(list(RGB_OF.values()))
GROUND = np.array(list(GROUND_OF.values()))
SIZES = range(9, 15)                               # side of an object in pixels
PLATE = 13                                         # side of a sign
FONT = {                                           # 5 x 7 pixels, a row of bits each
    "0": "0e11131519110e",
    "1": "040c040404040e",
    "2": "0e11010204081f",
    "3": "1f02040201110e",
    "4": "02060a121f0202",
    "5": "1f101e0101110e",
    "6": "0608101e11110e",
    "7": "1f010204080808",
    "8": "0e11110e11110e",
    "9": "0e11110f01020c",
    "h": "1111111f111111",
    "k": "11121418141211",
    "l": "1010101010101f",
    "t": "1f040404040404",
    "x": "11110a040a1111",
    "z": "1f01020408101f",
}


@dataclass(frozen=True)
class Worlds:
    """B pictures and everything that is true of them."""

    pixels: np.ndarray                             # (B, 96, 96, 3) uint8
    scene: np.ndarray                              # (B,)     index into SCENES
    present: np.ndarray                            # (B, S)   whether the slot holds a thing
    shape: np.ndarray                              # (B, 7)   index into SHAPES
    color: np.ndarray                              # (B, 7)   index into COLORS
    glyph: np.ndarray                              # (B, 2)   index into GLYPHS: of the white sign, of the black one
    center: np.ndarray                             # (B, S, 2) x, y in half pixels (of 192)
    area: np.ndarray                               # (B, S, N) pixels of each thing in each patch


def worlds(name, seed, batch, count):
    """Batch number `batch` of the set `name`, `count` pictures."""
    rng = np.random.default_rng((seed, SETS.index(name), batch))
    # what there is
    shape, color = _kinds(rng, name, count)
    has_object = np.arange(OBJECTS) < rng.integers(3, OBJECTS + 1, (count, 1))     # (B, 7)
    has_sign = rng.random((count, 2)) < 0.85                                       # (B, 2)
    present = np.concatenate([has_object, has_sign], axis=1)                       # (B, S)
    glyph = rng.integers(len(GLYPHS), size=(count, 2))
    # where it is, and how large
    size = rng.integers(len(SIZES), size=(count, OBJECTS))
    object_side = np.array(SIZES)[size]                                            # (B, 7)
    sign_side = np.full((count, 2), PLATE)
    side = np.concatenate([object_side, sign_side], axis=1)                        # (B, S)
    corner, present = _places(rng, side, present)
    center = 2 * corner + side[..., None]
    # what it covers
    sign_stamp = np.ones((count, 2, STAMP, STAMP)) * _plate()
    stamp = np.concatenate([_shapes()[shape, size], sign_stamp], axis=1)           # (B, S, 16, 16)
    area = _areas(corner, stamp, present)
    # what it looks like
    scene = rng.integers(len(SCENES), size=count)
    ground = _ground(rng, scene)
    pixels = _drawn(rng, ground, corner, stamp, present, color, glyph)
    return Worlds(pixels, scene, present, shape, color, glyph, center, area)


def seen_pairs():
    """The (shape, color) pairs of the ordinary sets."""
    pairs = [(shape, color) for shape in range(len(SHAPES)) for color in range(len(COLORS))]
    return np.array([pair for pair in pairs if pair not in UNSEEN])


def _kinds(rng, name, count):
    """Shapes and colours (B, 7). Half of the pictures have a theme that more objects share: there is more to count."""
    pairs = seen_pairs()
    pair = rng.integers(len(pairs), size=(count, OBJECTS))
    shape, color = np.moveaxis(pairs[pair], 2, 0)                                  # (B, 7) twice
    # a theme is a shape in a quarter of the pictures, a colour in another
    theme = pairs[rng.integers(len(pairs), size=count)]                            # (B, 2)
    by = rng.integers(4, size=count)[:, None]                                      # (B, 1)
    joins = rng.random((count, OBJECTS)) < 0.6
    shape = np.where(joins & (by == 0), theme[:, :1], shape)
    color = np.where(joins & (by == 1), theme[:, 1:], color)
    # a theme may give an unseen pair: it gets the next colour
    for unseen_shape, unseen_color in UNSEEN:
        is_unseen = (shape == unseen_shape) & (color == unseen_color)
        next_color = (unseen_color + 1) % len(COLORS)
        color = np.where(is_unseen, next_color, color)
    if name == "pairs":
        pair = rng.integers(len(UNSEEN), size=count)
        first_shape, first_color = np.array(UNSEEN)[pair].T
        shape[:, 0] = first_shape
        color[:, 0] = first_color
    return shape, color


def _places(rng, side, present, tries=24):
    """Top left corners (B, S, 2), two pixels apart at least; a thing that finds no place in `tries` is left out."""
    B, S = side.shape
    corner = np.zeros((B, S, 2), int)
    present = present.copy()
    rows = np.arange(B)
    for s in range(S):
        own_side = side[:, s, None, None]                                          # (B, 1, 1)
        at = rng.integers(0, SIDE - own_side + 1, (B, tries, 2))                   # (B, tries, 2)
        # distances to the things before, in half pixels
        own_center = 2 * at + own_side
        center = 2 * corner + side[..., None]                                      # (B, S, 2)
        gap = np.abs(own_center[:, :, None] - center[:, None, :s])                 # (B, tries, s, 2)
        least = side[:, s, None] + side[:, :s] + 4                                 # (B, s)
        is_near = gap.max(axis=3) < least[:, None]
        is_near &= present[:, None, :s]
        free = ~is_near.any(axis=2)                                                # (B, tries)
        first = free.argmax(axis=1)
        corner[:, s] = at[rows, first]
        present[:, s] &= free.any(axis=1)
    return corner, present


@cache
def _shapes():
    """(shapes, sizes, 16, 16) how much of each pixel a shape covers, 0 to 1, from 4 x 4 points per pixel."""
    drawn = np.zeros((len(SHAPES), len(SIZES), STAMP, STAMP))
    point = (np.arange(4 * STAMP) + 0.5) / 4
    for k, size in enumerate(SIZES):
        at = (point - size / 2) / (size / 2)                                       # -1 to 1 across the object
        x = at[None, :]
        y = at[:, None]
        width = abs(x)
        height = abs(y)
        r = np.hypot(x, y)
        longer = np.maximum(width, height)
        shorter = np.minimum(width, height)
        box = longer <= 1
        circle = r <= 1
        square = box & (longer <= 0.9)
        triangle = box & (2 * width <= y + 1)
        diamond = width + height <= 1
        ring = circle & (r >= 0.5)
        cross = box & (shorter <= 0.33)
        inside = np.array([circle, square, triangle, diamond, ring, cross])        # (shapes, 64, 64)
        points = inside.reshape(len(SHAPES), STAMP, 4, STAMP, 4)
        drawn[:, k] = points.mean(axis=(2, 4))
    return drawn


def _plate():
    plate = np.ones((PLATE, PLATE))
    return np.pad(plate, (0, STAMP - PLATE))


@cache
def _glyphs():
    """(glyphs, 16, 16) of 0 and 1: the glyph in the middle of its plate, 7 x 9 pixels (5 x 7 stretched)."""
    drawn = np.zeros((len(GLYPHS), STAMP, STAMP))
    stretched_rows = np.arange(9) * 7 // 9
    stretched_columns = np.arange(7) * 5 // 7
    for g, name in enumerate(GLYPHS):
        rows = []
        for row in bytes.fromhex(FONT[name]):
            rows.append([row >> bit & 1 for bit in (4, 3, 2, 1, 0)])
        glyph = np.array(rows)[stretched_rows]
        drawn[g, 2:11, 3:10] = glyph[:, stretched_columns]
    return drawn


@cache
def _textures():
    """(scenes, 8, 160, 160) of about -1 to 1: larger than a picture, which shows a random part."""
    rng = np.random.default_rng(2024)
    square = (TEXTURE, TEXTURE)
    y, x = np.mgrid[:TEXTURE, :TEXTURE]
    bank = np.zeros((len(SCENES), 8, *square))
    for i in range(8):
        fine = rng.standard_normal(square)
        soft = _blur(rng.standard_normal(square), 9)
        bend = _blur(rng.standard_normal(square), 15)
        wave = np.sin((y + 5 * bend) * 2 * np.pi / 11)
        stars = 6.0 * (rng.random(square) < 0.006)
        brick_row = y // 10
        is_joint = (y % 10 == 0) | ((x + (brick_row % 2) * 10) % 20 == 0)
        joint = -2.0 * is_joint
        blades = _blur(rng.standard_normal(square), 5, axes=(0,))
        stone = 0.7 * soft
        night = 0.3 * soft + stars
        sand = 0.5 * fine + 0.4 * soft
        water = wave + 0.3 * soft
        grass = 0.9 * blades + 0.3 * soft
        brick = joint + 0.3 * fine
        bank[:, i] = [stone, night, sand, water, grass, brick]
    return bank.astype(np.float32)


def _blur(x, width, axes=(0, 1)):
    """Moving averages, scaled back to variance 1."""
    first = np.arange(TEXTURE)
    for axis in axes:
        twice = np.concatenate([x, x], axis=axis)
        total = np.cumsum(twice, axis=axis)
        x = np.take(total, first + width, axis=axis) - np.take(total, first, axis=axis)
    return x / x.std()


def _ground(rng, scene):
    """(B, 96, 96, 3) of float32: colour of the scene, brightness and texture of each picture."""
    B = len(scene)
    at = np.arange(SIDE)
    # a part of one of the scene's eight textures
    top, left = rng.integers(0, TEXTURE - SIDE + 1, (2, B, 1, 1))
    bank = rng.integers(8, size=(B, 1, 1))
    rows = top + at[:, None]
    columns = left + at
    texture = _textures()[scene[:, None, None], bank, rows, columns]               # (B, 96, 96)
    texture = texture[..., None]
    # the scene's colour, lighter or darker
    brightness = rng.uniform(0.85, 1.15, (B, 1))
    light = (GROUND[scene] * brightness).astype(np.float32)                        # (B, 3)
    return light[:, None, None] * (1 + 0.12 * texture) + 6 * texture


def _drawn(rng, ground, corner, stamp, present, color, glyph):
    """(B, 96, 96, 3) uint8: the things laid over the ground, then noise."""
    B = len(ground)
    canvas = np.pad(ground, ((0, 0), (0, STAMP), (0, STAMP), (0, 0)))
    tint = RGB[color] * rng.uniform(0.88, 1.08, (B, OBJECTS, 1))
    tint = np.clip(tint, 0, 255)                                                   # (B, 7, 3)
    ink = _glyphs()[glyph][..., None]                                              # (B, 2, 16, 16, 1)
    paints = [tint[:, s, None, None] for s in range(OBJECTS)]
    paints.append(238 - 226 * ink[:, 0])                   # the white sign
    paints.append(12 + 226 * ink[:, 1])                    # the black one
    for s, paint in enumerate(paints):
        place = _pixels_of(corner[:, s])
        below = canvas[place]
        cover = stamp[:, s] * present[:, s, None, None]
        cover = cover[..., None]                                                   # (B, 16, 16, 1)
        canvas[place] = below + cover * (paint - below)
    noise = rng.integers(-8, 9, (B, SIDE, SIDE, 3), dtype=np.int8)
    picture = np.rint(canvas[:, :SIDE, :SIDE])
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def _pixels_of(corner):
    """The indices (picture, row, column) of the squares with these corners (B, 2)."""
    at = np.arange(STAMP)
    left, top = corner.T[:, :, None, None]                                         # (B, 1, 1) twice
    picture = np.arange(len(corner))[:, None, None]
    return picture, top + at[:, None], left + at


def _areas(corner, stamp, present):
    """(B, S, N) pixels, at least half covered, of each thing in each patch."""
    B, S = present.shape
    N = GRID ** 2
    at = np.arange(STAMP)
    columns = corner[..., 0, None] + at                                            # (B, S, 16)
    rows = corner[..., 1, None] + at
    patch = rows[..., :, None] // PATCH * GRID + columns[..., None, :] // PATCH    # (B, S, 16, 16)
    is_inside = (stamp >= 0.5) & present[..., None, None]
    thing = np.arange(B * S).reshape(B, S, 1, 1)
    place = thing * N + patch
    count = np.bincount(place[is_inside], minlength=B * S * N)
    return count.reshape(B, S, N)
