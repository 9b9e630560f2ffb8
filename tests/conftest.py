"""Nothing is learned in a test unless it says so, and nothing reaches for a network."""

import gc
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MINIVLM_DEBUG", "1")      # an exception that nobody foresaw fails a test: run.py hides none
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
torch.set_grad_enabled(False)
torch.set_num_threads(1)             # the models are tiny: threads would wait for each other
settings.register_profile("quick", max_examples=50, deadline=None)                 # for tests that set no number
settings.register_profile("slow", max_examples=150, deadline=None)


def pytest_configure(config):
    from minivlm import kernels                    # here: the path is set above
    kernels.use(config.getoption("--kernels"))
    settings.load_profile("slow" if config.getoption("--slow") else "quick")
    live = "live: compares with the installed transformers (every test that has the fixture)"
    config.addinivalue_line("markers", live)
    config.addinivalue_line("markers", "internal: holds how something is done (a private name, a buffer's address, the "
                            "calls of torch, the place of a pixel), for a promise that no result shows")
    config.addinivalue_line("markers", "slow: many processes, trainings or random cases; runs with --slow only")


def pytest_collection_modifyitems(config, items):
    """`-m live` runs the tests that compare with transformers, and only those; `--slow` adds those marked slow."""
    for item in items:
        if "transformers" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.live)
    if not config.getoption("--slow"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def pytest_collection_finish():
    """What is imported and collected by now stays: the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def transformers():
    """The installed transformers; see live.py."""
    from live import transformers_or_skip
    return transformers_or_skip()


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow, as .ci/run does")
    parser.addoption("--kernels", choices=("plain", "fast", "auto"), default="plain",
                     help="which forms of minivlm/kernels.py the whole suite runs on (default: the plain ones)")
