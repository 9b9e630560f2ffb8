"""A picture in: any file that Pillow reads -> RGB -> the (1, 3, S, S) pixels that CLIP looks at.

Two ways to make a square. "crop" (Hugging Face): the shorter edge is resized to S and the centre is kept. "pad" (the
original LLaVA): the picture is laid on a square of the mean colour, and the square is resized. Resizing is Pillow's
bicubic on 8-bit values, as in training: another resampler, torch's too, differs by several grey levels.

Colour. Transparency is laid over white, as transformers 5 does (transformers 4 and the original LLaVA let it drop).
Grey of 16 or 32 bits is scaled to 8 (transformers and Pillow clip it: nearly all turns white). An animation gives its
first frame. The orientation in the EXIF tags is applied.
"""

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from PIL import Image, ImageOps

from minivlm.io.config_json import tower_folder
from minivlm.io.files import check_file, read_json
from minivlm.io.limits import LIMITS, check
from pruning.base import UserError

MEAN = (0.48145466, 0.4578275, 0.40821073)         # of the pictures CLIP was trained on: red, green, blue
STD = (0.26862954, 0.26130258, 0.27577711)
BYTES = 2 ** 28                                    # no file is opened that has more
PIXELS = 2 ** 28                                   # no picture is padded or resized to more than this
ADDRESS = re.compile(r"(file|data):|([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
KINDS = ("CLIPImageProcessor", "CLIPFeatureExtractor", "LlavaImageProcessor", "LlavaNextImageProcessor")


def open_image(image):
    """The upright RGB picture of a path or of a PIL image. Raises UserError where there is none that can be read."""
    image = local_file(image) if isinstance(image, (str, os.PathLike)) else image
    name = "the picture" if isinstance(image, Image.Image) else image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")        # Pillow's remarks on odd but readable files
            if isinstance(image, Image.Image):
                return _rgb(image)
            if isinstance(image, (str, os.PathLike)):
                check_file(image, BYTES)
            with Image.open(image) as opened:
                return _rgb(opened)
    except Exception as error:                     # a damaged file can raise anything in a decoder
        told = getattr(error, "strerror", None) or str(error) or type(error).__name__
        bomb = isinstance(error, Image.DecompressionBombError)
        remedy = "scale it down first" if bomb else "give a PNG or JPEG file"
        raise UserError(f"{name}: no picture that can be read ({told.splitlines()[0]}); {remedy}") from error


def local_file(name):
    """The path that a picture's name means: itself, or that of a file:// address. UserError for what is no picture's file."""
    path = os.fspath(name)
    if isinstance(path, str) and ADDRESS.match(path):
        path = _path_of(path)
    if not path:
        raise UserError("the name of a picture is empty: give a PNG or JPEG file")
    if os.path.splitext(os.fsdecode(path))[1].lower() in VIDEOS:
        raise UserError(f"{name} is a video: give one of its frames as a PNG or JPEG file")
    return path


def _path_of(address):
    """The path of a file:// address of this machine. UserError for any other."""
    try:
        parts = urlsplit(address)
    except ValueError:                             # brackets, as of an IPv6 address, that are not closed
        parts = None
    if parts and parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return url2pathname(parts.path)
    shown = address if len(address) <= 80 else address[:77] + "..."
    raise UserError(f"{shown}: addresses are not read: download the picture and give its file")


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
        path, told = _told(Path(folder))
        tower = config.vision_tower and tower_folder(folder, config.vision_tower)
        if tower and not told:
            path, told = _told(tower)
        kind = _kind(path, told)
        pad = config.image_aspect_ratio == "pad" or kind == "LlavaImageProcessor" and _flag(path, told, "do_pad", False)
        processor = cls(mode="pad" if pad else "crop", **_fields(path, told, config.vision.image_size))
        if processor.size != config.vision.image_size:
            raise UserError(f"{path} makes pixels of side {processor.size}, "
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
    """The file of a folder that speaks of images, and what it says: {} if there is none."""
    preprocessor, processor = folder / "preprocessor_config.json", folder / "processor_config.json"
    if preprocessor.exists():
        return preprocessor, read_json(preprocessor)
    raw = read_json(processor) if processor.exists() else {}
    return processor, check(processor, "image_processor", raw.get("image_processor"), dict | None) or {}


def _kind(path, told):
    names = [check(path, key, told.get(key), str | None) for key in ("image_processor_type", "feature_extractor_type")]
    kind = (names[0] or names[1] or KINDS[0]).removesuffix("Fast").removesuffix("Pil")
    if kind not in KINDS:
        raise UserError(f"{path}: image_processor_type {kind} is not known; known are {', '.join(KINDS)}")
    return kind


def _fields(path, told, side):
    """ImageProcessor's fields from Hugging Face's keys; `side` where they name no size."""
    told = {key: value for key, value in told.items() if value is not None}
    crops = _flag(path, told, "do_center_crop", True)
    resize = _edges(path, "size", told.get("size", side)) if _flag(path, told, "do_resize", True) else None
    crop = _edges(path, "crop_size", told.get("crop_size", side)) if crops else resize
    if crop is None or not isinstance(crop, int) and crop[0] != crop[1]:
        raise UserError(f"{path}: {crop} is not the side of a square")
    rescale = check(path, "rescale_factor", told.get("rescale_factor", 1 / 255), float)
    resample = check(path, "resample", told.get("resample", int(Image.Resampling.BICUBIC)), int)
    return {"size": crop if isinstance(crop, int) else crop[0], "resize": resize, "crop": crops,
            "mean": _three(path, "image_mean", told.get("image_mean", MEAN)),
            "std": _three(path, "image_std", told.get("image_std", STD)),
            "resample": Image.Resampling(resample),
            "rescale": float(rescale) if _flag(path, told, "do_rescale", True) else 1.0,
            "normalize": _flag(path, told, "do_normalize", True)}


def _flag(path, told, name, default):
    return check(path, name, default if told.get(name) is None else told[name], bool)


def _edges(path, name, size):
    """336, {"shortest_edge": 336} -> 336; {"height": 336, "width": 224}, [336, 224] -> (336, 224)"""
    edges = size if isinstance(size, list) else [size]
    if isinstance(size, dict):
        keys = ["shortest_edge"] if set(size) == {"shortest_edge"} else ["height", "width"]
        edges = [size[key] for key in keys] if set(size) == set(keys) else []
    least, most = LIMITS["size"]
    if len(edges) not in (1, 2) or not all(type(n) is int and least <= n <= most for n in edges):
        raise UserError(f"{path}: {name} must be a number from {least} to {most}, or shortest_edge, or height and width, "
                        f"and is {size!r}")
    return edges[0] if len(edges) == 1 else tuple(edges)


def _three(path, name, values):
    values = values if isinstance(values, (list, tuple)) else [values] * 3
    if len(values) != 3:
        raise UserError(f"{path}: {name} must be three numbers, and is {values!r}")
    return tuple(float(check(path, name, value, float)) for value in values)
