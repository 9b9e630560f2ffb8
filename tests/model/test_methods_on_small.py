"""Methods on the families of small checkpoints: each runs, or one line says why it does not fit."""

import pytest

from minivlm.generate import Conversation
from minivlm.io.image import open_image
from minivlm.lab.cli.options import check
from minivlm.trace import Trace
from paths import IMAGES, PARITY
from pruning import EVERY, METHODS
from pruning.base import UserError
from weights import load

FAMILIES = ("llava_siglip", "onevision", "smolvlm", "vipllava")
READINGS = ("vispruner_received", "visionzip_received", "hired_received", "holov_received", "prumerge_received")
NEED_CLASS = {"vispruner", "visionzip", "hired", "holov", "prumerge", "prumerge_plus", "tome"}
LAYERS = {                             # of a decoder of two layers
    "pyramiddrop": dict(layers=(1,), ratios=(0.25,)),
    "sparsevlm": dict(layers=(0,), table=(4,)),
    "transprune": dict(layers=(1,), ratios=(0.25,), since=0),
    "vtw": dict(layer=1),
}
NOT_HERE = {"atp", "fitprune", "feather", "random3x3", "maxpool3x3"}   # trained, fitted, two cuts, a 3 x 3 grid


def built(name):
    """The method, for two layers and a quarter of the tokens."""
    kind = EVERY[name]
    known = kind.__dataclass_fields__
    options = {"layer": 1, "keep": 0.25} | LAYERS.get(name, {})
    return kind(**{option: value for option, value in options.items() if option in known})


def visual(model, pruner):
    """Visual tokens that enter each layer of the decoder, for a picture and a question."""
    talk = Conversation(model, check(pruner, model))
    mark = model.config.image_token_index
    trace = Trace()
    talk.read([5, mark, 6, 7], model.processor.pixels_of([open_image(IMAGES / "land_500x333.png")]), trace)
    return trace.visual


@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_that_fits_runs(family):
    """Fewer tokens enter the last layer than without it. Those that need a class token say so where there is none, and
    ToMe where the projector reads several layers of the tower."""
    model = load(PARITY / family)
    unpruned = visual(model, None)[-1]
    has_class_token = "cls" not in model.lacks
    ran = set()
    for name in [*METHODS.keys() - NOT_HERE, *READINGS]:
        try:
            left = visual(model, built(name))[-1]
        except UserError as error:
            fits_not = name == "tome" if has_class_token else name in NEED_CLASS
            reason = str(error)
            assert fits_not, (name, reason)
            assert "class token" in reason or "several of its layers" in reason, (name, reason)
            continue
        assert left < unpruned or name in ("none",), name
        ran.add(name)
    assert len(ran) > 20
    assert has_class_token == bool(NEED_CLASS & ran)
