"""The one gate of every test that compares with the installed transformers: `@live`, or the fixture `transformers`.

It skips, with the reason, where transformers is missing, older than the range in minivlm.lab.check.hf.TESTED, or newer.
MINIVLM_ANY_TRANSFORMERS=1 runs the tests with a newer one all the same.
"""

import os

import pytest

from minivlm.lab.check import hf
from pruning.base import UserError

live = pytest.mark.usefixtures("transformers")


def transformers_or_skip():
    """The module; skips the test that needs it, with the reason, unless the tests are known to run with this
    version."""
    try:
        module = hf.library("this test")
    except UserError as error:
        pytest.skip(str(error))
    newer = hf.untested(module.__version__)
    if newer and not os.environ.get("MINIVLM_ANY_TRANSFORMERS"):
        pytest.skip(f"{newer}: MINIVLM_ANY_TRANSFORMERS=1 runs this test all the same")
    return module
