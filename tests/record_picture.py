"""Draw the picture of README.md: python tests/record_picture.py writes minivlm/toy/samples/six_methods.png.

It is the command's sheet in 48 colours, so that it is small in the repository.
"""

import re
import shlex
import sys
import tempfile

from PIL import Image

from paths import ROOT, working_in

PICTURE = ROOT / "minivlm" / "toy" / "samples" / "six_methods.png"
COLOURS = 48


def drawn():
    """The picture that the command of README.md draws, in 48 colours."""
    import run
    command = re.search(r"^    python run\.py (.* --out six_methods\.png)$", (ROOT / "README.md").read_text(), re.M)
    words = [str(ROOT / word) if word.startswith("minivlm/") else word for word in shlex.split(command[1])]
    with tempfile.TemporaryDirectory() as folder, working_in(folder):
        assert run.main(words) == 0
        page = Image.open("six_methods.png").convert("RGB")
    return page.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    drawn().save(PICTURE, optimize=True)
    print(f"wrote {PICTURE}, {PICTURE.stat().st_size} bytes")
