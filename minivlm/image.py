"""A picture in: any file that Pillow reads -> RGB -> the (1, 3, S, S) pixels that CLIP looks at.

Two ways to make a square. "crop" (Hugging Face): the shorter edge is resized to S and the centre is kept. "pad" (the
original LLaVA): the picture is laid on a square of the mean colour, and the square is resized. Resizing is Pillow's
bicubic on 8-bit values, as in training: another resampler, torch's too, differs by several grey levels.

Colour. Transparency is laid over white, as transformers 5 does (transformers 4 and the original LLaVA let it drop).
Grey of 16 or 32 bits is scaled to 8 (transformers and Pillow clip it: nearly all turns white). An animation gives its
first frame. The orientation in the EXIF tags is applied.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from minivlm.config import tower_folder
from minivlm.files import read_json
from pruning.base import UserError

MEAN = (0.48145466, 0.4578275, 0.40821073)         # of the pictures CLIP was trained on: red, green, blue
STD = (0.26862954, 0.26130258, 0.27577711)
PIXELS = 2 ** 28                                   # no picture is padded or resized to more than this
KINDS = ("CLIPImageProcessor", "CLIPFeatureExtractor", "LlavaImageProcessor", "LlavaNextImageProcessor")


def open_image(image):
    """The upright RGB picture of a path or of a PIL image. Raises UserError where there is none that can be read."""
    name = "the picture" if isinstance(image, Image.Image) else image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")        # Pillow's remarks on odd but readable files
            if isinstance(image, Image.Image):
                return _rgb(image)
            with Image.open(image) as opened:
                return _rgb(opened)
    except Exception as error:                     # a damaged file can raise anything in a decoder
        told = getattr(error, "strerror", None) or str(error) or type(error).__name__
        bomb = isinstance(error, Image.DecompressionBombError)
        remedy = "scale it down first" if bomb else "give a PNG or JPEG file"
        raise UserError(f"{name}: no picture that can be read ({told.splitlines()[0]}); {remedy}") from error


def _rgb(image):
    image.load()                                   # TRAP: Pillow lets damaged data pass when it is loaded again
    if 0 in image.size:
        raise ValueError("it is empty")
    image = _upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":                         # Pillow knows no direct way from La
        image = image.convert("LA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _upright(image):
    try:
        return ImageOps.exif_transpose(image)
    except Exception:                              # damaged tags turn nothing: the picture itself is whole
        return image


def _grey(image):
    """White is 65535 in a file of integers, 1 in one of floats up to 1, else 255; or the largest value above it."""
    value = np.asarray(image, dtype=np.float64)                            # (height, width)
    if image.mode == "F":
        value = np.nan_to_num(value, nan=0, posinf=0, neginf=0)
        white = 1 if value.max() <= 1 else 255
    else:
        white = 65535
    grey = np.rint(value.clip(0) * 255 / max(white, value.max())).astype(np.uint8)
    if "transparency" in image.info:                                       # one value is see-through
        grey[value == image.info["transparency"]] = 255
    return Image.fromarray(grey)


@dataclass(frozen=True)
class ImageProcessor:
    """How a picture becomes pixels: resize, crop, rescale and normalise, with CLIP's values.

    ImageProcessor(336).box(500, 336) -> (82, 0, 418, 336): the middle of a landscape; mode="pad": (0, -82, 500, 418).
    """

    size: int = 336                        # S: side of the pixel square
    mode: str = "crop"                     # or "pad": to a square of the mean colour, before resizing
    mean: tuple = MEAN
    std: tuple = STD
    resize: int | tuple | None = 0         # the shorter edge, or (height, width); 0: size; None: do not resize
    crop: bool = True                      # cut out the centre (a smaller picture gets black edges)
    resample: int = Image.Resampling.BICUBIC
    rescale: float = 1 / 255
    normalize: bool = True

    def __post_init__(self):
        if self.mode not in ("crop", "pad"):
            raise UserError(f'image mode {self.mode!r} is not known: use "crop" or "pad"')

    @classmethod
    def from_folder(cls, folder, config):
        """As the folder's preprocessor_config.json says, or processor_config.json; CLIP's values where they are silent.

        config: the LlavaConfig; image_aspect_ratio "pad" pads, vision.image_size is the side the model reads.
        """
        tower = config.vision_tower and tower_folder(folder, config.vision_tower)
        told = _told(Path(folder)) or (_told(tower) if tower else {})
        kind = told.get("image_processor_type") or told.get("feature_extractor_type") or KINDS[0]
        kind = kind.removesuffix("Fast").removesuffix("Pil")
        if kind not in KINDS:
            raise UserError(f"{folder}: image_processor_type {kind} is not known; known are {', '.join(KINDS)}")
        pad = config.image_aspect_ratio == "pad" or (kind == "LlavaImageProcessor" and told.get("do_pad"))
        try:
            processor = cls(mode="pad" if pad else "crop", **_fields(told, config.vision.image_size))
        except (TypeError, ValueError) as error:
            raise UserError(f"{folder}: preprocessor_config.json cannot be followed: {error}") from error
        if processor.size != config.vision.image_size:
            raise UserError(f"{folder}: preprocessor_config.json makes pixels of side {processor.size}, "
                            f"but config.json's image_size is {config.vision.image_size}")
        return processor

    def pixels(self, image):
        """(1, 3, S, S) float32 pixels of a PIL image (or a path)."""
        return self.normalized(self._square(open_image(image)))[None]                  # (1, 3, S, S)

    def normalized(self, image):
        """(3, S, S) float32 values of an S x S picture."""
        x = (np.asarray(image) * np.float64(self.rescale)).astype(np.float32)          # (S, S, 3)
        if self.normalize:
            x = (x - np.float32(self.mean)) / np.float32(self.std)
        return torch.from_numpy(x.transpose(2, 0, 1).copy())

    def box(self, width, height):
        """(left, top, right, bottom) of what the pixels show of a width x height picture, in its own pixels.

        It reaches outside the picture where that was padded. A patch grid is drawn by dividing this box evenly.
        """
        margin, padded = self._margin(width, height), self._padded(width, height)
        resized = self._resized(*padded)
        side = (self.size, self.size) if self.crop else resized
        edges = [((n - s) // 2 * p / n - m, ((n - s) // 2 + s) * p / n - m)
                 for n, s, p, m in zip(resized, side, padded, margin)]
        return edges[0][0], edges[1][0], edges[0][1], edges[1][1]

    def _square(self, image):
        padded = self._padded(*image.size)
        resized = self._resized(*padded)
        if max(padded[0] * padded[1], resized[0] * resized[1]) > PIXELS:
            raise UserError(f"a picture of {image.width} x {image.height} is too long to be made square: crop it first")
        if padded != image.size:
            square = Image.new("RGB", padded, tuple(int(255 * m) for m in self.mean))
            square.paste(image, self._margin(*image.size))
            image = square
        if self.resize is not None:
            image = image.resize(resized, self.resample)
        if self.crop:                                                      # outside the picture PIL's crop is black
            left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
            image = image.crop((left, top, left + self.size, top + self.size))
        if image.size != (self.size, self.size):
            raise UserError(f"the pixels are {image.width} x {image.height}, the model reads a square of {self.size}: "
                            "set do_center_crop in preprocessor_config.json")
        return image

    def _padded(self, width, height):
        return (max(width, height),) * 2 if self.mode == "pad" else (width, height)

    def _margin(self, width, height):
        """(left, top) of the picture on its padded square; an odd pixel goes to the right and the bottom."""
        side, below = self._padded(width, height)
        return (side - width) // 2, (below - height) // 2

    def _resized(self, width, height):
        if self.resize is None:
            return width, height
        if not isinstance(self.resize, int):
            return self.resize[::-1]
        edge, short = self.resize or self.size, min(width, height)
        return int(edge * width / short), int(edge * height / short)      # rounds down, as Hugging Face does


def _told(folder):
    """What a folder's files say about images: {} where they say nothing."""
    preprocessor, processor = folder / "preprocessor_config.json", folder / "processor_config.json"
    if preprocessor.is_file():
        return read_json(preprocessor)
    return (read_json(processor) if processor.is_file() else {}).get("image_processor") or {}


def _fields(told, side):
    """ImageProcessor's fields from Hugging Face's keys; `side` where they name no size."""
    told = {key: value for key, value in told.items() if value is not None}
    resize = _edges(told.get("size", side)) if told.get("do_resize", True) else None
    crop = _edges(told.get("crop_size", side)) if told.get("do_center_crop", True) else resize
    if crop is None or not isinstance(crop, int) and crop[0] != crop[1]:
        raise ValueError(f"{crop} is not the side of a square")
    return {"size": crop if isinstance(crop, int) else crop[0], "resize": resize,
            "crop": told.get("do_center_crop", True), "mean": _three(told.get("image_mean", MEAN)),
            "std": _three(told.get("image_std", STD)),
            "resample": Image.Resampling(told.get("resample", Image.Resampling.BICUBIC)),
            "rescale": float(told.get("rescale_factor", 1 / 255)) if told.get("do_rescale", True) else 1.0,
            "normalize": told.get("do_normalize", True)}


def _edges(size):
    """336, {"shortest_edge": 336} -> 336; {"height": 336, "width": 224}, [336, 224] -> (336, 224)"""
    if isinstance(size, dict):
        known = set(size) in ({"shortest_edge"}, {"height", "width"})
        size = size.get("shortest_edge") or (size["height"], size["width"]) if known else None
    edges = (size,) if isinstance(size, int) else tuple(size or ())
    if len(edges) not in (1, 2) or not all(isinstance(n, int) and n > 0 for n in edges):
        raise ValueError("a size is a number, or shortest_edge, or height and width")
    return edges[0] if len(edges) == 1 else edges


def _three(values):
    values = (values,) * 3 if isinstance(values, (int, float)) else tuple(map(float, values))
    if len(values) != 3:
        raise ValueError("image_mean and image_std are three numbers")
    return values
