"""From a file to an upright RGB picture: every colour mode by its rule, every bad file one line."""

import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, strategies as st
from PIL import Image, ImageColor

from minivlm.io.image import ImageProcessor, open_image
from pruning.base import UserError


def colour(image):
    return open_image(image).getpixel((0, 0))


def test_transparency_is_laid_over_white(tmp_path):
    """Half-transparent black is grey, a transparent palette entry and a transparent key colour are white."""
    assert colour(Image.new("RGBA", (1, 1), (0, 0, 0, 128))) == (127, 127, 127)
    assert colour(Image.new("LA", (1, 1), (0, 0))) == (255, 255, 255)
    for mode, black in ("P", 0), ("RGB", (0, 0, 0)), ("L", 0):
        Image.new(mode, (1, 1), black).save(tmp_path / "key.png", transparency=black)
        assert colour(tmp_path / "key.png") == (255, 255, 255), mode
    deep = Image.new("I;16", (1, 1), 0)
    deep.info["transparency"] = 0
    assert colour(deep) == (255, 255, 255)


def test_an_opened_picture_is_not_whitened_again():
    """convert("RGB") leaves the key of a palette behind, and the reference library whitens by it."""
    image = Image.new("P", (1, 1), 0)
    image.info["transparency"] = 0
    assert "transparency" not in open_image(image).info


@pytest.mark.parametrize("name", ["16.png", "16.tif", "16.pgm"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, name):
    """Value 257 * v is v; a library that clips would make all but the first white."""
    values = np.array([[0, 257 * 100, 257 * 200, 65535]], dtype=np.uint16)
    if name == "16.pgm":
        (tmp_path / name).write_bytes(b"P5\n4 1\n65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / name)
    opened = open_image(tmp_path / name)
    assert [opened.getpixel((x, 0)) for x in range(4)] == [(0,) * 3, (100,) * 3, (200,) * 3, (255,) * 3]


@pytest.mark.parametrize("values, grey", [
    (np.array([[0, 257 * 3, 257 * 4]], np.uint16), [0, 3, 4]),         # a dark picture stays dark
    (np.array([[0, 65535 * 2, 65535]], np.int32), [0, 255, 128]),      # above 16 bits: the largest is white
    (np.array([[-5, 0, 65535]], np.int32), [0, 0, 255]),
    (np.array([[0, 257, 65535]], ">u2"), [0, 1, 255]),                 # big-endian: I;16B
    (np.array([[0, .5, 1]], np.float32), [0, 128, 255]),               # up to 1: shares of white
    (np.array([[0, 100, 200]], np.float32), [0, 100, 200]),
    (np.array([[0, 510, 255]], np.float32), [0, 255, 128]),
    (np.array([[np.nan, np.inf, 1]], np.float32), [0, 0, 255]),
    (np.zeros((1, 3), np.float32), [0, 0, 0])], ids=str)
def test_grey_of_many_bits(values, grey):
    image = open_image(Image.fromarray(values))
    assert [image.getpixel((x, 0)) for x in range(3)] == [(g,) * 3 for g in grey]


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), name) for name in ("red", "blue")]
    for name in "a.gif", "a.png", "a.webp":
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert colour(tmp_path / name) == (255, 0, 0), name


@pytest.mark.parametrize("tag, columns", [
    (1, "rgb/ykw"), (2, "bgr/wky"), (3, "wky/bgr"), (4, "ykw/rgb"), (5, "ry/gk/bw"), (6, "yr/kg/wb"), (7, "wb/kg/yr"),
    (8, "bw/gk/ry")])
def test_the_exif_orientation_is_applied(tmp_path, tag, columns):
    """Stored: rgb over ykw. 6, a camera held upright, turns it clockwise: the left column (r, y) is the top row y r."""
    letters = {c: ImageColor.getrgb(name) for c, name in zip("rgbykw", "red lime blue yellow black white".split())}
    image = Image.new("RGB", (3, 2))
    image.putdata([letters[c] for c in "rgbykw"])
    exif = Image.Exif()
    exif[0x0112] = tag
    image.save(tmp_path / "turned.png", exif=exif)
    opened, rows = open_image(tmp_path / "turned.png"), columns.split("/")
    assert opened.size == (len(rows[0]), len(rows))
    pixels = [opened.getpixel((x, y)) for y in range(len(rows)) for x in range(len(rows[0]))]
    assert pixels == [letters[c] for c in "".join(rows)]
    assert open_image(opened).size == opened.size                      # once is enough


def test_damaged_exif_turns_nothing(tmp_path):
    Image.new("RGB", (3, 2), "red").save(tmp_path / "tags.png", exif=b"garbage")
    assert open_image(tmp_path / "tags.png").size == (3, 2)


def test_the_given_picture_is_not_changed():
    image = Image.new("RGB", (2, 2), "red")
    open_image(image).putpixel((0, 0), (0, 0, 0))
    assert image.getpixel((0, 0)) == (255, 0, 0)


def png(width, height, data=zlib.compress(b"")):
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def encoded(kind):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("content, message", [
    (None, "No such file"), ("folder", "Is a directory"), (b"", "cannot identify"), (b"hello", "cannot identify"),
    (encoded("PNG")[:900], "truncated"), (encoded("JPEG")[:700], "truncated"), (encoded("GIF")[:900], "truncated"),
    (encoded("EPS"), "Ghostscript on it); give a PNG or JPEG file"),
    (png(30000, 30000), "scale it down"), (png(0, 5), ""), (png(9, 9, b"garbage"), "broken data")], ids=str)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, content, message):
    path = tmp_path / "photo.jpg"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        open_image(path)
    assert str(error.value).count(path.name) in (1, 2) and str(error.value).startswith(str(path))
    assert message in str(error.value) and "Errno" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("kind, message", [("pipe", "a pipe or a device"), ("device", "a pipe or a device"),
                                           ("large", "larger than 256 MiB")])
def test_what_is_no_file_is_not_opened(tmp_path, monkeypatch, kind, message):
    """A pipe that nobody writes to would be waited for, and /dev/zero never ends."""
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("it was opened"))
    path = tmp_path / "photo.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with open(path, "wb") as file:
            file.truncate(2 ** 28 + 1)
    for name in path, str(path):
        with pytest.raises(UserError, match=f"photo.png: no picture that can be read .*{message}"):
            open_image(name)


@pytest.mark.parametrize("name", ["a\0b.png", "a\nb.png", "\udcff.png", "x" * 5000, f"{__file__}/photo.png"],
                         ids=range(5))
def test_names_that_no_picture_can_have(name):
    with pytest.raises(UserError, match="no picture that can be read") as error:
        open_image(name)
    assert str(error.value).isprintable() and len(str(error.value)) < 500


@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"]), st.integers(0, 10 ** 6), st.binary(max_size=6),
       st.integers(0, 9999))
@example("BMP", 18, b"\xff\xff\xff\x0f", 9999)                         # a width of 268 million
def test_a_damaged_file_is_a_picture_or_a_user_error(kind, at, patch, length):
    data = bytearray(encoded(kind))
    at %= len(data)
    data[at:at + len(patch)] = patch
    try:
        assert open_image(io.BytesIO(data[:length])).mode == "RGB"
    except UserError as error:
        assert "\n" not in str(error)


def test_a_file_address_is_the_local_file(tmp_path):
    """Spaces and other letters are escaped in it; the machine may be named, if it is this one."""
    path = tmp_path / "a b\u00fc#1.png"
    Image.new("RGB", (2, 3), "red").save(path)
    uri = path.as_uri()
    assert "%20" in uri and "%23" in uri
    for name in (uri, uri.replace("file://", "FILE://"), uri.replace("file://", "file://localhost"), str(path), path):
        assert open_image(name).size == (2, 3)


@pytest.mark.parametrize("name, message", [
    ("https://a.b/c.png", "https://a.b/c.png: addresses are not read: download"),
    ("s3://a/b.png", "addresses are not read"),
    ("file://far/c.png", "addresses are not read"),
    ("http://[a/b.png", "addresses are not read"),
    ("data:image/png;base64," + "A" * 999, "addresses are not read"),
    ("", "is empty"),
    (".", "Is a directory"),
    ("a.mov", "a.mov is a video"),
    ("file:///no/such/d%20e.png", "/no/such/d e.png"),
    (Path("no/e.png"), "no/e.png"),
])
def test_what_is_no_pictures_file(name, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        open_image(name)
    assert len(str(caught.value)) < 200


def test_pictures_without_pixels_or_too_long_are_refused():
    with pytest.raises(UserError, match="empty"):
        open_image(Image.new("RGB", (0, 5)))
    for mode, size in ("crop", (1, 3000)), ("pad", (20000, 1)):
        with pytest.raises(UserError, match="too long"):
            ImageProcessor(336, mode).pixels(Image.new("RGB", size))
