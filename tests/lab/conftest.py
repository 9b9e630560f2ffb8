"""What several files of this folder look at."""

import contextlib
import io

import pytest
from PIL import Image

import run
from paths import working_in


@pytest.fixture(scope="session")
def first_look(tmp_path_factory):
    """What `python run.py` prints, and the sheet that it draws."""
    with working_in(tmp_path_factory.mktemp("first")), contextlib.redirect_stdout(io.StringIO()) as out:
        assert run.main([]) == 0
        return out.getvalue(), Image.open("pruned.png").copy()
