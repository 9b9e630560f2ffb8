"""The drawn world: textured scenes with three to seven objects and up to two signs, 96 x 96 pixels, 12 x 12 patches.

    worlds("train", seed=0, batch=7, count=64) -> 64 `Worlds` at once, the same to the byte at every call

All is done for a whole batch at once, in numpy. The sets draw from seeds of their own: "train", "validation",
"heldout", and "pairs", each of whose pictures shows at least one of the shape-colour pairs in `UNSEEN`, which are in
no picture and no question of the other sets.

Letters: B pictures of the batch, S = 9 slots for things (7 objects, then the white and the black sign), N = 144 patches.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

SIDE, PATCH = 96, 8
GRID = SIDE // PATCH
OBJECTS, STAMP = 7, 16                             # object slots; side of the square in which a thing is drawn
SHAPES = ("circle", "square", "triangle", "diamond", "ring", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan")
SCENES = ("stone", "night", "sand", "water", "grass", "brick")
GLYPHS = "0123456789hkltxz"
SETS = ("train", "validation", "heldout", "pairs")
UNSEEN = ((4, 6), (5, 5), (2, 4), (1, 1))          # (shape, color): cyan ring, orange cross, purple triangle, green square
RGB = np.array([(225, 45, 40), (50, 190, 60), (50, 95, 235), (240, 225, 55), (155, 65, 205), (250, 140, 30),
                (55, 215, 225)])
GROUND = np.array([(165, 170, 180), (28, 28, 42), (168, 142, 100), (45, 75, 115), (68, 112, 62), (118, 66, 56)])
SIZES = range(9, 15)                               # side of an object in pixels
FONT = {                                           # 5 x 7 pixels, a row of bits each
    "0": "0e11131519110e", "1": "040c040404040e", "2": "0e11010204081f", "3": "1f02040201110e", "4": "02060a121f0202",
    "5": "1f101e0101110e", "6": "0608101e11110e", "7": "1f010204080808", "8": "0e11110e11110e", "9": "0e11110f01020c",
    "h": "1111111f111111", "k": "11121418141211", "l": "1010101010101f", "t": "1f040404040404", "x": "11110a040a1111",
    "z": "1f01020408101f"}


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
    shape, color = _kinds(rng, name, count)
    present = np.concatenate([np.arange(OBJECTS) < rng.integers(3, OBJECTS + 1, (count, 1)),
                              rng.random((count, 2)) < 0.85], axis=1)
    glyph = rng.integers(len(GLYPHS), size=(count, 2))
    size = rng.integers(len(SIZES), size=(count, OBJECTS))
    side = np.concatenate([np.array(SIZES)[size], np.full((count, 2), 13)], axis=1)
    corner, present = _places(rng, side, present)
    stamp = np.concatenate([_shapes()[shape, size], np.ones((count, 2, STAMP, STAMP)) * _plate()], axis=1)
    scene = rng.integers(len(SCENES), size=count)
    ground = _ground(rng, scene)
    return Worlds(_drawn(rng, ground, corner, stamp, present, color, glyph), scene, present, shape, color, glyph,
                  2 * corner + side[..., None], _areas(corner, stamp, present))


def seen_pairs():
    """The (shape, color) pairs of the ordinary sets."""
    return np.array([(s, c) for s in range(len(SHAPES)) for c in range(len(COLORS)) if (s, c) not in UNSEEN])


def _kinds(rng, name, count):
    """Shapes and colours (B, 7). Half of the pictures have a theme that more objects share: there is more to count."""
    pairs = seen_pairs()
    shape, color = np.moveaxis(pairs[rng.integers(len(pairs), size=(count, OBJECTS))], 2, 0)
    theme, by = pairs[rng.integers(len(pairs), size=count)], rng.integers(4, size=count)
    joins = rng.random((count, OBJECTS)) < 0.6
    shape = np.where(joins & (by == 0)[:, None], theme[:, :1], shape)
    color = np.where(joins & (by == 1)[:, None], theme[:, 1:], color)
    for s, c in UNSEEN:                            # a theme may have made one: it gets the next colour
        color = np.where((shape == s) & (color == c), (c + 1) % len(COLORS), color)
    if name == "pairs":
        shape[:, 0], color[:, 0] = np.array(UNSEEN)[rng.integers(len(UNSEEN), size=count)].T
    return shape, color


def _places(rng, side, present, tries=24):
    """Top left corners (B, S, 2), two pixels apart at least; a thing that finds no place in `tries` is left out."""
    corner, present = np.zeros((*side.shape, 2), int), present.copy()
    for s in range(side.shape[1]):
        at = rng.integers(0, SIDE - side[:, s, None, None] + 1, (len(side), tries, 2))             # (B, tries, 2)
        gap = np.abs((2 * at + side[:, s, None, None])[:, :, None] - (2 * corner + side[..., None])[:, None, :s])
        near = (gap.max(axis=3) < (side[:, s, None] + side[:, :s])[:, None] + 4) & present[:, None, :s]
        free = ~near.any(axis=2)                                                   # (B, tries)
        corner[:, s] = at[np.arange(len(at)), free.argmax(axis=1)]
        present[:, s] &= free.any(axis=1)
    return corner, present


@cache
def _shapes():
    """(shapes, sizes, 16, 16) how much of each pixel a shape covers, 0 to 1, from 4 x 4 points a pixel."""
    drawn = np.zeros((len(SHAPES), len(SIZES), STAMP, STAMP))
    for k, size in enumerate(SIZES):
        at = ((np.arange(4 * STAMP) + 0.5) / 4 - size / 2) / (size / 2)            # -1 to 1 across the object
        x, y = at[None, :], at[:, None]
        r, box = np.hypot(x, y), np.maximum(abs(x), abs(y)) <= 1
        inside = (r <= 1, box & (np.maximum(abs(x), abs(y)) <= 0.9), box & (2 * abs(x) <= y + 1), abs(x) + abs(y) <= 1,
                  (r <= 1) & (r >= 0.5), box & (np.minimum(abs(x), abs(y)) <= 0.33))
        drawn[:, k] = np.array(inside).reshape(len(SHAPES), STAMP, 4, STAMP, 4).mean(axis=(2, 4))
    return drawn


def _plate():
    return np.pad(np.ones((13, 13)), (0, STAMP - 13))


@cache
def _glyphs():
    """(glyphs, 16, 16) of 0 and 1: the glyph in the middle of its plate, 7 x 9 pixels (5 x 7 stretched)."""
    drawn = np.zeros((len(GLYPHS), STAMP, STAMP))
    for g, name in enumerate(GLYPHS):
        rows = np.array([[row >> bit & 1 for bit in (4, 3, 2, 1, 0)] for row in bytes.fromhex(FONT[name])])
        drawn[g, 2:11, 3:10] = rows[np.arange(9) * 7 // 9][:, np.arange(7) * 5 // 7]
    return drawn


@cache
def _textures():
    """(scenes, 8, 160, 160) of about -1 to 1: larger than a picture, which shows a random part."""
    rng = np.random.default_rng(2024)
    y, x = np.mgrid[:160, :160]
    bank = np.zeros((len(SCENES), 8, 160, 160))
    for i in range(8):
        fine, soft = rng.standard_normal((160, 160)), _blur(rng.standard_normal((160, 160)), 9)
        wave = np.sin((y + 5 * _blur(rng.standard_normal((160, 160)), 15)) * 2 * np.pi / 11)
        stars = 6.0 * (rng.random((160, 160)) < 0.006)
        joint = -2.0 * ((y % 10 == 0) | ((x + (y // 10 % 2) * 10) % 20 == 0))
        blades = _blur(rng.standard_normal((160, 160)), 5, axes=(0,))
        bank[:, i] = (0.7 * soft, 0.3 * soft + stars, 0.5 * fine + 0.4 * soft, wave + 0.3 * soft, 0.9 * blades + 0.3 * soft,
                      joint + 0.3 * fine)
    return bank.astype(np.float32)


def _blur(x, width, axes=(0, 1)):
    """Moving averages, scaled back to variance 1."""
    for axis in axes:
        total = np.cumsum(np.concatenate([x, x], axis=axis), axis=axis)
        x = np.take(total, np.arange(160) + width, axis=axis) - np.take(total, np.arange(160), axis=axis)
    return x / x.std()


def _ground(rng, scene):
    """(B, 96, 96, 3) of float32: colour of the scene, brightness and texture of each picture."""
    B, at = len(scene), np.arange(SIDE)
    top, left, bank = *rng.integers(0, 160 - SIDE + 1, (2, B, 1, 1)), rng.integers(8, size=(B, 1, 1))
    texture = _textures()[scene[:, None, None], bank, top + at[:, None], left + at]                # (B, 96, 96)
    light = (GROUND[scene] * rng.uniform(0.85, 1.15, (B, 1))).astype(np.float32)   # (B, 3)
    return light[:, None, None] * (1 + 0.12 * texture[..., None]) + 6 * texture[..., None]


def _drawn(rng, ground, corner, stamp, present, color, glyph):
    """(B, 96, 96, 3) uint8: the things laid over the ground, then noise."""
    B, at, each = len(ground), np.arange(STAMP), np.arange(len(ground))[:, None, None]
    canvas = np.pad(ground, ((0, 0), (0, STAMP), (0, STAMP), (0, 0)))
    tint = np.clip(RGB[color] * rng.uniform(0.88, 1.08, (B, OBJECTS, 1)), 0, 255)  # (B, 7, 3)
    ink = _glyphs()[glyph][..., None]                                              # (B, 2, 16, 16, 1)
    for s in range(stamp.shape[1]):
        rows, columns = corner[:, s, 1, None, None] + at[:, None], corner[:, s, 0, None, None] + at
        paint = tint[:, s, None, None] if s < OBJECTS else (12 + 226 * ink[:, 1] if s > OBJECTS else 238 - 226 * ink[:, 0])
        cover = (stamp[:, s] * present[:, s, None, None])[..., None]               # (B, 16, 16, 1)
        here = canvas[each, rows, columns]
        canvas[each, rows, columns] = here + cover * (paint - here)
    noise = rng.integers(-8, 9, (B, SIDE, SIDE, 3), dtype=np.int8)
    return np.clip(np.rint(canvas[:, :SIDE, :SIDE]) + noise, 0, 255).astype(np.uint8)


def _areas(corner, stamp, present):
    """(B, S, N) pixels, at least half covered, of each thing in each patch."""
    B, S, at = *present.shape, np.arange(STAMP)
    rows, columns = (corner[..., i, None] + at for i in (1, 0))                    # (B, S, 16)
    patch = rows[..., :, None] // PATCH * GRID + columns[..., None, :] // PATCH    # (B, S, 16, 16)
    inside = (stamp >= 0.5) & present[..., None, None]
    place = np.arange(B * S).reshape(B, S, 1, 1) * GRID ** 2 + patch
    return np.bincount(place[inside], minlength=B * S * GRID ** 2).reshape(B, S, GRID ** 2)
