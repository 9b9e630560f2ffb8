"""Where the recorded checkpoints and results are, and the checkpoint and picture that most commands are run on."""

import os
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
GOLDENS = Path(os.environ.get("MINIVLM_GOLDENS", ROOT / "tests" / "goldens"))
PARITY = ROOT / "tests" / "parity"
IMAGES = PARITY / "images"
CASES = sorted(path.parent.name for path in PARITY.glob("*/expected.json"))

MODEL = PARITY / "llava15_mha"                 # 3 layers, 4 x 4 patches
PICTURE = IMAGES / "land_500x333.png"


@contextmanager
def working_in(folder):
    """Make the folder the current one for a while. Python 3.11 has contextlib.chdir."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
