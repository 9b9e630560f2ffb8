"""From a picture to pixels: equal to the reference library's, whatever preprocessor_config.json says,
and back by box."""

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given, strategies as st
from PIL import Image
from safetensors import safe_open

from build import close
from live import live
from minivlm.families.internvl_config import InternVLConfig
from minivlm.families.internvl_image import InternVLProcessor
from minivlm.io.image import MEAN, STD, ImageProcessor
from minivlm.parts.config import LlavaConfig, VisionConfig
from paths import PARITY
from pruning.base import UserError

SIZES = [(1, 1), (3, 1), (7, 5), (28, 28), (29, 27), (250, 170), (333, 500), (500, 333), (100, 2000), (2000, 100)]
EIGHT_BITS = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"]


def noise(width, height, bands=3, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)
    return Image.fromarray(pixels)


def config(side, **fields):
    return LlavaConfig(vision=VisionConfig(image_size=side, patch_size=14), **fields)


def hugging_face(settings, image):
    """(1, 3, S, S) of the reference library's Pillow processor with the same keys."""
    from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil
    cls = LlavaImageProcessorPil if "Llava" in settings.get("image_processor_type", "") else CLIPImageProcessorPil
    return torch.as_tensor(np.array(cls(**settings)(image)["pixel_values"]), dtype=torch.float32)


@live
@pytest.mark.parametrize("width, height", SIZES)
@pytest.mark.parametrize("side", [28, 336])
@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_pixels_equal_the_reference_library(width, height, side, mode):
    """Bit by bit, not only to 1e-5."""
    settings = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    settings |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True} if mode == "pad" else {}
    image = noise(width, height)
    assert ImageProcessor(side, mode).pixels(image).equal(hugging_face(settings, image))


@live
@pytest.mark.parametrize("mode", EIGHT_BITS)
def test_every_mode_of_eight_bits_equals_the_reference_library(mode):
    rgba = noise(40, 30, 4)
    image = rgba.convert("LA").convert("La") if mode == "La" else _converted(rgba, mode)
    reference = image.convert("LA") if mode == "La" else image.convert("RGBA") if mode == "RGBa" else image
    assert image.mode == mode
    settings = {"size": {"shortest_edge": 28}, "crop_size": 28}
    assert ImageProcessor(28).pixels(image).equal(hugging_face(settings, reference))


def _converted(rgba, mode):
    if mode == "LAB":
        from PIL import ImageCms
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(rgba.convert("RGB"), srgb, lab, outputMode="LAB")
    through = {"PA": "P", "HSV": "RGB", "YCbCr": "RGB", "P": "RGB"}.get(mode)
    return (rgba.convert(through) if through else rgba).convert(mode)


@live
@pytest.mark.parametrize("settings", [
    {}, {"size": 28, "crop_size": 28}, {"size": [28, 28]}, {"size": {"height": 40, "width": 31}},
    {"size": {"height": 28, "width": 28}, "do_center_crop": False}, {"size": {"shortest_edge": 60}},
    {"size": {"shortest_edge": 17}}, {"size": {"height": 19, "width": 50}}, {"do_resize": False}, {"resample": 2},
    {"do_rescale": False}, {"do_normalize": False}, {"rescale_factor": 0.01}, {"image_mean": [.5, .4, .3]},
    {"image_std": .5}, {"image_processor_type": "LlavaImageProcessorFast", "do_pad": True, "image_mean": [.1, .5, .9]},
    {"image_processor_type": "CLIPImageProcessor", "do_pad": True}, {"feature_extractor_type": "CLIPFeatureExtractor"}],
    ids=str)
@pytest.mark.parametrize("size", [(50, 33), (20, 31)])
@pytest.mark.parametrize("nested", [False, True])
def test_preprocessor_config_is_followed(tmp_path, settings, size, nested):
    """Each key means what it means to the reference library; transformers 5 writes them into processor_config.json."""
    given = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}} | settings
    name, content = "preprocessor_config.json", given
    if nested:
        name, content = "processor_config.json", {"image_processor": given}
    (tmp_path / name).write_text(json.dumps(content))
    image = noise(*size)
    pixels = ImageProcessor.from_folder(tmp_path, config(28)).pixels(image)
    assert pixels.equal(hugging_face(given, image))


@pytest.mark.parametrize("case", sorted(p.parent.name for p in PARITY.glob("llava15*/expected.json")) or ["none"])
def test_recorded_pixels(case):
    if case == "none":
        pytest.skip("no recorded case under tests/parity")
    from minivlm.families.registry import read_config
    processor = ImageProcessor.from_folder(PARITY / case, read_config(PARITY / case))
    prompts = json.loads((PARITY / case / "expected.json").read_text())["prompts"]
    with safe_open(PARITY / case / "expected.safetensors", "pt") as expected:
        recorded = [n for n in range(len(prompts)) if f"p{n}.pixel_values" in expected.keys()]
        assert recorded
        for n in recorded:
            pixels = torch.cat([processor.pixels(PARITY / "images" / name) for name in prompts[n]["images"]])
            close(pixels, expected.get_tensor(f"p{n}.pixel_values"))


def test_crop_keeps_the_middle():
    """6 x 2, columns 0 .. 5, S = 2: no resizing, columns 2 and 3 stay; CLIP's numbers make 51 * 2 / 255 = 0.4 of it."""
    image = Image.fromarray(np.repeat(np.arange(6, dtype=np.uint8)[None] * 51, 2, axis=0))
    pixels = ImageProcessor(2).pixels(image)
    assert pixels.shape == (1, 3, 2, 2) and pixels.dtype == torch.float32
    raw = pixels[0] * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    close(raw, torch.tensor([.4, .6]).expand(3, 2, 2), 1e-6)


def test_pad_keeps_all_of_it_between_bands_of_the_mean_colour():
    """4 x 1 red on a 4 x 4 square: floor(3 / 2) = 1 row above, 2 below, of the colour (122, 116, 104)."""
    processor = ImageProcessor(4, "pad", mean=MEAN, rescale=1.0, normalize=False)
    pixels = processor.pixels(Image.new("RGB", (4, 1), "red"))[0]
    assert pixels[:, :, 0].T.tolist() == [[122, 116, 104], [255, 0, 0], [122, 116, 104], [122, 116, 104]]


def test_a_picture_smaller_than_the_crop_gets_black_edges():
    """2 x 1 on 4 x 4 without resizing: of 3 missing rows two are above, as in the reference library, and one below."""
    pixels = ImageProcessor(4, resize=None, rescale=1.0, normalize=False).pixels(Image.new("RGB", (2, 1), "white"))
    assert pixels[0, 0].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 0]]


def test_original_checkpoints_pad_and_silent_folders_get_clips_numbers(tmp_path):
    padded = ImageProcessor.from_folder(tmp_path, config(28, image_aspect_ratio="pad"))
    assert padded == ImageProcessor(28, "pad", resize=28)
    usual = ImageProcessor.from_folder(tmp_path, config(336))
    assert usual.pixels(noise(9, 9)).equal(ImageProcessor().pixels(noise(9, 9)))


def test_an_original_checkpoint_takes_its_towers_numbers(tmp_path):
    """The original code reads the processor of the CLIP repository, which config.json only names."""
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    assert ImageProcessor.from_folder(tmp_path, config(28, vision_tower="clip")).mean == (.5, .5, .5)


@pytest.mark.parametrize("processor, size, box", [
    (ImageProcessor(336), (500, 336), (82, 0, 418, 336)),              # the middle of a landscape, as it is
    (ImageProcessor(336), (100, 400), (0, 150, 100, 250)),             # 3.36 times larger, and cut to a square of 100
    (ImageProcessor(336), (1, 1), (0, 0, 1, 1)),
    (ImageProcessor(336, "pad"), (500, 336), (0, -82, 500, 418)),      # 82 rows of padding above
    (ImageProcessor(336, "pad"), (5, 10), (-2, 0, 8, 10)),             # 2 columns of padding left, 3 right
    (ImageProcessor(4, resize=None), (2, 1), (-1, -2, 3, 2)),          # smaller than the crop
    (ImageProcessor(10, resize=(20, 10)), (5, 4), (0, 1, 5, 3)),       # squashed to 10 x 20, rows 5 .. 15 kept
    (ImageProcessor(10, resize=(10, 10), crop=False), (30, 7), (0, 0, 30, 7))])
def test_box_by_hand(processor, size, box):
    assert processor.box(*size) == pytest.approx(box)


@given(
    st.integers(30, 250), st.integers(30, 250), st.sampled_from(["crop", "pad"]), st.integers(14, 60), st.integers(0, 2)
)
def test_box_says_where_each_pixel_came_from(width, height, mode, side, more):
    """A picture whose red is the column and whose green is the row: a pixel's colour is its place in the picture."""
    column, row = np.meshgrid(np.arange(width), np.arange(height))
    image = Image.fromarray(np.stack([column, row, row * 0], axis=-1).astype(np.uint8))
    processor = ImageProcessor(side, mode, resize=side + more, rescale=1.0, normalize=False)
    pixels = processor.pixels(image)[0]
    left, top, right, bottom = processor.box(width, height)
    x = left + (torch.arange(side) + .5) * (right - left) / side - .5
    y = top + (torch.arange(side) + .5) * (bottom - top) / side - .5
    scale = max(1., (right - left) / side)
    inner = lambda at, end: (at > 3 * scale) & (at < end - 1 - 3 * scale)              # the resampler's reach
    inside = inner(y, height)[:, None] & inner(x, width)[None]
    assume(inside.any())
    assert (pixels[0] - x[None])[inside].abs().max() <= 1 and (pixels[1] - y[:, None])[inside].abs().max() <= 1


@pytest.mark.parametrize("text, message", [
    ('{"image_processor_type": "BitImageProcessor"}',
     "BitImageProcessor is not known; known are CLIPImageProcessor"),
    ('{"feature_extractor_type": "ViTFeatureExtractor"}', "ViTFeatureExtractor is not known"),
    ('{"crop_size": 224}', "side 224"),
    ('{"crop_size": {"height": 28, "width": 14}}', "square"),
    ('{"size": {"longest_edge": 28}}', "shortest_edge"),
    ('{"size": "big"}', "shortest_edge"),
    ('{"size": 0}', "shortest_edge"),
    ('{"image_mean": [0.5]}', "three"),
    ('{"image_std": ["a", 1, 1]}', "image_std|float"),
    ('{"resample": 99}', "99"),
    ('{"do_resize": false, "do_center_crop": false}', "square"),
    ("{", "JSON"),
    ("[]", "list"),
])
def test_a_preprocessor_config_that_cannot_be_followed(tmp_path, text, message):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        ImageProcessor.from_folder(tmp_path, config(28))
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("key, value", [
    *(("image_mean", v) for v in ([1e308, 0, 0], [True, 0, 0], {"r": 1}, "0.5", [[0], 0, 0], [0] * 4, 1e4)),
    *(("image_std", v) for v in ([0, 1, 1], 0, -1, [1e308, 1, 1], [None] * 3, [])),
    *(("rescale_factor", v) for v in (0, True, "1/255", [1], 1e300, -1)),
    *(("resample", v) for v in (6, -1, "3", True, 3.5, [3])),
    *((key, v) for key in ("size", "crop_size") for v in (
        True, 10 ** 20, 28.0, [28, 28, 28], [], [[28]], {"shortest_edge": True}, {"height": 28},
        {"height": 10 ** 9, "width": 28}, {"shortest_edge": None}, {})),
    *((key, v) for key in ("do_resize", "do_rescale", "do_normalize", "do_center_crop") for v in (1, "no", [], 0.5)),
    *((key, v) for key in ("image_processor_type", "feature_extractor_type") for v in (1, ["CLIPImageProcessor"], {})),
], ids=str)
def test_values_of_a_wrong_kind_are_refused_by_name(tmp_path, key, value, nested):
    """And without a warning of numpy or Pillow."""
    content = {"image_processor": {key: value}} if nested else {key: value}
    name = "processor_config.json" if nested else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps(content))
    with warnings.catch_warnings(), pytest.raises(UserError, match=f": {key} must be") as error:
        warnings.simplefilter("error")
        ImageProcessor.from_folder(tmp_path, config(28))
    assert f"{name}: " in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("settings, words", [
    ({"image_processor": [1]}, "processor_config.json: image_processor must be an object or null"),
    ({"image_processor": "CLIP"}, "image_processor must be an object")])
def test_a_processor_config_of_a_wrong_kind(tmp_path, settings, words):
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=words):
        ImageProcessor.from_folder(tmp_path, config(28))


@pytest.mark.parametrize("settings, words", [
    ({"max_patches": 10 ** 6}, "max_patches must be a positive number"), ({"max_patches": "12"}, "max_patches must be"),
    ({"min_patches": True}, "min_patches must be"),
    ({"min_patches": 9, "max_patches": 8}, "min_patches 9 is more than max_patches 8"),
    ({"image_std": 0}, "image_std must be"), ({"size": "448"}, "size must be")])
def test_tiles_of_a_wrong_kind(tmp_path, settings, words):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=f"preprocessor_config.json: {words}"):
        InternVLProcessor.from_folder(tmp_path, InternVLConfig())


def test_pixels_that_are_no_square_are_refused():
    with pytest.raises(UserError, match="do_center_crop"):
        ImageProcessor(28, crop=False).pixels(noise(40, 30))
    with pytest.raises(UserError, match="mode"):
        ImageProcessor(28, mode="squash")
