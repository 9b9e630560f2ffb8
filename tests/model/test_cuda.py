"""On a GPU: the shipped model under every method keeps the same tokens there and gives the same logits.

Skipped where there is no CUDA device.
"""

import pytest
import torch

from minivlm.generate import Conversation
from minivlm.io.text.tokenizer import prompt
from minivlm.lab.cli import shipped
from minivlm.lab.cli.options import build, check, own_settings
from minivlm.toy.benchmark import items
from pruning import METHODS, READINGS
from tiny import has_keep
from weights import load

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
NAMES = [*METHODS, *READINGS]
FIXED = ("atp_fixed_ratio", "atp_fixed_ratio_max", "atp_fixed_ratio_redundant")
SETTINGS = dict.fromkeys(FIXED, ("layers=1,3,6", "counts=72,36,18"))        # their own layers are those of the 7B


@pytest.fixture(scope="module")
def models():
    """{(device, dtype): the shipped model}"""
    kinds = ("cpu", torch.float32), ("cuda", torch.float32), ("cuda", torch.float16), ("cuda", torch.bfloat16)
    return {(device, dtype): load(shipped.FOLDER, dtype, device) for device, dtype in kinds}


@pytest.fixture(scope="module")
def item():
    return items("heldout", 1)[0]


def read(model, pruner, item):
    """A conversation that has read the question."""
    talk = Conversation(model, pruner)
    ids = model.tokenizer.encode(prompt([(item.question, None)]))
    talk.read(ids, [model.processor.pixels(item.picture)])
    return talk


def fitted(name, model):
    """The method with the settings of the shipped model, at a budget of 36 tokens if it has one."""
    keep = "36" if has_keep(name) else None
    return check(build(name, keep, SETTINGS.get(name, ()), own=own_settings(shipped.FOLDER)), model)


@pytest.mark.parametrize("name", NAMES)
def test_same_tokens_and_logits_as_on_the_cpu(name, models, item):
    cpu, gpu = models["cpu", torch.float32], models["cuda", torch.float32]
    expected = read(cpu, fitted(name, cpu), item)
    talk = read(gpu, fitted(name, gpu), item)
    assert talk.trace.kept.tolist() == expected.trace.kept.tolist()
    assert talk.trace.visual == expected.trace.visual
    torch.testing.assert_close(talk.logits.cpu(), expected.logits, rtol=1e-4, atol=1e-4)
    assert list(talk.generate(3)) == list(expected.generate(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name, dtype, models, item):
    model = models["cuda", dtype]
    talk = read(model, fitted(name, model), item)
    assert talk.logits.isfinite().all() and talk.logits.dtype == dtype
    first, *_ = talk.generate(3)
    assert model.tokenizer.fast.id_to_token(first) is not None


def test_unpruned(models, item):
    expected = read(models["cpu", torch.float32], None, item)
    talk = read(models["cuda", torch.float32], None, item)
    torch.testing.assert_close(talk.logits.cpu(), expected.logits, rtol=1e-4, atol=1e-4)
