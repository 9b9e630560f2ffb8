"""Methods that reduce the visual tokens: one file each, over the contract in base.py.

    from pruning import FastV, LayerView, Tokens

    attention = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.1, 0.7, 0.2]]         # two visual tokens, then one of text
    tokens = Tokens.start(hidden=[[0.0]] * 3, visual=[0, 1], before=LayerView.of(attention=attention))
    FastV(keep=1).reduce(tokens)                                            # Reduction(selects 1: [1])

The classes of the papers' methods and the contract are imported from here; METHODS has every method by its name on the
command line, the controls among them, and READINGS has other readings of the papers.
"""

from pruning import controls
from pruning.adaptprune import AdaptPrune
from pruning.asap import ASAP, FastVBiMask
from pruning.atp import ATP
from pruning.base import LayerView, Pruner, Reduction, Tokens, UserError
from pruning.cdpruner import CDPruner
from pruning.compose import Both, Schedule
from pruning.dart import DART
from pruning.divprune import DivPrune
from pruning.fastv import FastV
from pruning.feather import FEATHER
from pruning.fitprune import FitPrune, SingleFitPrune
from pruning.hired import HiRED
from pruning.holov import HoloV
from pruning.prumerge import PruMerge, PruMergePlus
from pruning.pyramiddrop import PyramidDrop
from pruning.ranked import Ranked
from pruning.readings import READINGS
from pruning.sparsevlm import SparseVLM
from pruning.tome import ToMe
from pruning.transprune import TransPrune
from pruning.visionzip import VisionZip
from pruning.vispruner import VisPruner
from pruning.vtw import VTW

METHODS = {
    "prumerge": PruMerge,
    "prumerge_plus": PruMergePlus,
    "vispruner": VisPruner,
    "visionzip": VisionZip,
    "tome": ToMe,
    "hired": HiRED,
    "holov": HoloV,
    "divprune": DivPrune,
    "cdpruner": CDPruner,
    "fastv": FastV,
    "fastv_bimask": FastVBiMask,
    "sparsevlm": SparseVLM,
    "vtw": VTW,
    "fitprune": FitPrune,
    "fitprune_single": SingleFitPrune,
    "pyramiddrop": PyramidDrop,
    "feather": FEATHER,
    "dart": DART,
    "transprune": TransPrune,
    "adaptprune": AdaptPrune,
    "asap": ASAP,
    "atp": ATP,
    "none": controls.Unpruned,
    "blind": controls.Blind,
    "random": controls.Random,
    "last": controls.Last,
    "uniform": controls.Uniform,
    "downsample": controls.DownSample,
    "downsample_image": controls.DownSampleImage,
    "avgpool": controls.AveragePool,
    "skip": controls.Skip,
    "random3x3": controls.Random3x3,
    "maxpool3x3": controls.MaxPool3x3,
    "avgpool_scores": controls.AverageScores,
}

EVERY = {**METHODS, **READINGS}         # what may be named on the command line

__all__ = ["Both", "EVERY", "LayerView", "METHODS", "Pruner", "READINGS", "Ranked", "Reduction", "Schedule", "Tokens"]
__all__ += ["UserError", *sorted({method.__name__ for method in METHODS.values()} & set(globals()))]
