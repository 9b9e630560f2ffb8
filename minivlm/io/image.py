"""A picture in: any file that Pillow reads -> RGB -> the (1, 3, S, S) pixels that CLIP looks at.

Three ways to make a square. "crop" (Hugging Face): the shorter edge is resized to S and the centre is kept. "pad" (the
original LLaVA): the picture is laid on a square of the mean colour, and the square is resized. SigLIP's pictures are
resized to the square whatever their shape. Resizing is Pillow's
bicubic on 8-bit values, as in training: another resampler, torch's too, differs by several grey levels.

Colour. Transparency is laid over white, as transformers 5 does (transformers 4 and the original LLaVA let it drop).
Grey of 16 or 32 bits is scaled to 8 (transformers and Pillow clip it: nearly all turns white). An animation gives its
first frame. The orientation in the EXIF tags is applied.
"""

import math
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

from minivlm.io.files import check_file, read_json, reason_of, tower_folder
from minivlm.io.limits import LIMITS, check
from minivlm.parts.config import SiglipConfig
from pruning.base import UserError

MEAN = (0.48145466, 0.4578275, 0.40821073)         # of the pictures CLIP was trained on: red, green, blue
STD = (0.26862954, 0.26130258, 0.27577711)
BYTES = 2 ** 28                                    # no file is opened that has more
PIXELS = 2 ** 28                                   # no picture is padded or resized to more than this
ADDRESS = re.compile(r"(file|data):|([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
SIGLIP = "SiglipImageProcessor"
SQUEEZED = dict(image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])             # its values; it never crops
KINDS = ("CLIPImageProcessor", "CLIPFeatureExtractor", "LlavaImageProcessor", "LlavaNextImageProcessor",
         "LlavaOnevisionImageProcessor", SIGLIP)


def open_image(image):
    """The upright RGB picture of a path or of a PIL image. Raises UserError if there is none that can be read."""
    is_path = isinstance(image, (str, os.PathLike))
    if is_path:
        image = local_file(image)
    is_open = isinstance(image, Image.Image)
    name = "the picture" if is_open else image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")        # Pillow's remarks on odd but readable files
            if is_open:
                return _rgb(image)
            if is_path:
                check_file(image, BYTES)
            with Image.open(image) as opened:
                if opened.format == "EPS":
                    raise ValueError("Pillow would run Ghostscript on it")
                return _rgb(opened)
    except Exception as error:                     # a damaged file can raise anything in a decoder
        reason = reason_of(error).splitlines()[0]
        is_bomb = isinstance(error, Image.DecompressionBombError)
        remedy = "scale it down first" if is_bomb else "give a PNG or JPEG file"
        raise UserError(f"{name}: no picture that can be read ({reason}); {remedy}") from error


def local_file(name):
    """The path that a picture's name means: itself, or that of a file:// address. UserError for what is no picture's
    file."""
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
    white = max(white, value.max())
    grey = np.rint(value.clip(0) * 255 / white).astype(np.uint8)
    if "transparency" in image.info:
        # one value is see-through
        is_clear = value == image.info["transparency"]
        grey[is_clear] = 255
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
        path, settings = preprocessor_settings(Path(folder))
        tower = config.vision_tower and tower_folder(folder, config.vision_tower)
        if tower and not settings:
            path, settings = preprocessor_settings(tower)
        pads = config.image_aspect_ratio == "pad"
        is_siglip = isinstance(config.vision, SiglipConfig)
        kind = _kind(path, settings, SIGLIP if is_siglip else KINDS[0])
        if kind == "LlavaImageProcessor" and not pads:
            pads = _flag(path, settings, "do_pad", False)
        side = config.vision.image_size
        if kind == SIGLIP:
            settings = dict(SQUEEZED, size=[side, side]) | settings | dict(do_center_crop=False)
        processor = cls(mode="pad" if pads else "crop", **processor_fields(path, settings, side))
        if processor.size != side:
            raise UserError(f"{path} makes pixels of side {processor.size}, but config.json's image_size is {side}")
        return processor

    def pixels(self, image):
        """(1, 3, S, S) float32 pixels of a PIL image (or a path)."""
        return self.normalized(self._square(open_image(image)))[None]                  # (1, 3, S, S)

    def pixels_of(self, images):
        """[pixels] of all pictures of one prompt, from the first on."""
        return [self.pixels(image) for image in images]

    def boxes_of(self, images):
        """[box] of all pictures of one prompt."""
        return [self.box(*image.size) for image in images]

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
        margin = self._margin(width, height)
        padded = self._padded(width, height)
        resized = self._resized(*padded)
        side = (self.size, self.size) if self.crop else resized
        edges = [_edges_on_axis(*axis) for axis in zip(padded, resized, side, margin)]
        (left, right), (top, bottom) = edges
        return left, top, right, bottom

    def _square(self, image):
        padded = self._padded(*image.size)
        resized = self._resized(*padded)
        if max(math.prod(padded), math.prod(resized)) > PIXELS:
            raise UserError(f"a picture of {image.width} x {image.height} is too long to be padded: crop it first")
        if padded != image.size:
            mean_color = tuple(int(255 * m) for m in self.mean)
            square = Image.new("RGB", padded, mean_color)
            square.paste(image, self._margin(*image.size))
            image = square
        if self.resize is not None:
            image = image.resize(resized, self.resample)
        if self.crop:
            # outside the picture PIL's crop is black
            left = (image.width - self.size) // 2
            top = (image.height - self.size) // 2
            image = image.crop((left, top, left + self.size, top + self.size))
        if image.size != (self.size, self.size):
            raise UserError(f"the pixels are {image.width} x {image.height}, the model reads a square of {self.size}: "
                            "set do_center_crop in preprocessor_config.json")
        return image

    def _padded(self, width, height):
        if self.mode != "pad":
            return width, height
        side = max(width, height)
        return side, side

    def _margin(self, width, height):
        """(left, top) of the picture on its padded square; an odd pixel goes to the right and the bottom."""
        padded_width, padded_height = self._padded(width, height)
        return (padded_width - width) // 2, (padded_height - height) // 2

    def _resized(self, width, height):
        if self.resize is None:
            return width, height
        if isinstance(self.resize, tuple):
            resized_height, resized_width = self.resize
            return resized_width, resized_height
        shorter = min(width, height)
        edge = self.resize or self.size
        return int(edge * width / shorter), int(edge * height / shorter)   # rounds down, as Hugging Face does


def _edges_on_axis(padded, resized, side, margin):
    """Where the middle `side` pixels of a resized axis begin and end on the picture itself."""
    first = (resized - side) // 2
    last = first + side
    return first * padded / resized - margin, last * padded / resized - margin


def preprocessor_settings(folder):
    """The file of a folder that says how pictures become pixels, and what it says: {} if there is none."""
    preprocessor = folder / "preprocessor_config.json"
    if preprocessor.exists():
        return preprocessor, read_json(preprocessor)
    processor = folder / "processor_config.json"
    raw = read_json(processor) if processor.exists() else {}
    settings = check(processor, "image_processor", raw.get("image_processor"), dict | None)
    return processor, settings or {}


def _kind(path, settings, default):
    """The class that reads these settings in transformers, or in the original LLaVA; `default` if they name none."""
    new = check(path, "image_processor_type", settings.get("image_processor_type"), str | None)
    old = check(path, "feature_extractor_type", settings.get("feature_extractor_type"), str | None)
    kind = new or old or default
    kind = kind.removesuffix("Fast").removesuffix("Pil")
    if kind not in KINDS:
        raise UserError(f"{path}: image_processor_type {kind} is not known; known are {', '.join(KINDS)}")
    return kind


def processor_fields(path, settings, side):
    """ImageProcessor's fields from Hugging Face's keys; `side` if they name no size."""
    settings = {key: value for key, value in settings.items() if value is not None}
    crops = _flag(path, settings, "do_center_crop", True)
    resizes = _flag(path, settings, "do_resize", True)
    rescales = _flag(path, settings, "do_rescale", True)
    resize = _edges(path, "size", settings.get("size", side)) if resizes else None
    crop = _edges(path, "crop_size", settings.get("crop_size", side)) if crops else resize
    if isinstance(crop, tuple):
        height, width = crop
        crop = height if height == width else crop
    if not isinstance(crop, int):
        raise UserError(f"{path}: {crop} is not the side of a square")
    rescale = check(path, "rescale_factor", settings.get("rescale_factor", 1 / 255), float)
    resample = check(path, "resample", settings.get("resample", int(Image.Resampling.BICUBIC)), int)
    values = dict(size=crop, resize=resize, crop=crops, resample=Image.Resampling(resample))
    values["rescale"] = float(rescale) if rescales else 1.0
    values["mean"] = _three(path, "image_mean", settings.get("image_mean", MEAN))
    values["std"] = _three(path, "image_std", settings.get("image_std", STD))
    values["normalize"] = _flag(path, settings, "do_normalize", True)
    return values


def _flag(path, settings, name, default):
    value = settings.get(name)
    if value is None:
        value = default
    return check(path, name, value, bool)


def _edges(path, name, size):
    """336, {"shortest_edge": 336} -> 336; {"height": 336, "width": 224}, [336, 224] -> (336, 224)"""
    edges = size if isinstance(size, list) else [size]
    if isinstance(size, dict):
        keys = ["shortest_edge"] if set(size) == {"shortest_edge"} else ["height", "width"]
        edges = [size[key] for key in keys] if set(size) == set(keys) else []
    least, most = LIMITS["size"]
    are_sizes = all(type(n) is int and least <= n <= most for n in edges)
    if len(edges) not in (1, 2) or not are_sizes:
        raise UserError(f"{path}: {name} must be a number from {least} to {most}, or shortest_edge, or height and "
                        f"width, and is {size!r}")
    return edges[0] if len(edges) == 1 else tuple(edges)


def _three(path, name, values):
    if not isinstance(values, (list, tuple)):
        values = [values] * 3
    if len(values) != 3:
        raise UserError(f"{path}: {name} must be three numbers, and is {values!r}")
    return tuple(float(check(path, name, value, float)) for value in values)
