"""Visual-token reduction methods: one file each, over the contract in base.py."""

from pruning.adaptprune import AdaptPrune
from pruning.asap import ASAP
from pruning.bimask import FastVBiMask
from pruning.divprune import DivPrune
from pruning.fastv import FastV
from pruning.hired import HiRED
from pruning.prumerge import PruMerge, PruMergePlus
from pruning.sparsevlm import SparseVLM
from pruning.visionzip import VisionZip
from pruning.vispruner import VisPruner

METHODS = {
    "prumerge": PruMerge,
    "prumerge_plus": PruMergePlus,
    "vispruner": VisPruner,
    "visionzip": VisionZip,
    "hired": HiRED,
    "divprune": DivPrune,
    "fastv": FastV,
    "fastv_bimask": FastVBiMask,
    "sparsevlm": SparseVLM,
    "adaptprune": AdaptPrune,
    "asap": ASAP,
}
