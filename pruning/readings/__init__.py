"""Other readings of the papers, what released codes do differently, and weaker variants that a paper compares with.

A paper that leaves something open has several readings, of which the method's own file takes one. Here each other one
is a subclass that changes one step, with a name of its own, so that tables can compare them. `run.py methods
--readings` lists them.
"""

from pruning.readings.adaptprune import AdaptPruneKeepNewlines, AdaptPruneNormedKeys
from pruning.readings.asap import (
    ASAPDedup, ASAPMaskLast, ASAPMaskLastSimilar, ASAPMeanMerge, ASAPPrunePast, ASAPRenumbered, ASAPSaliencyRank,
    ASAPSimilarRoute, ASAPUniformMask, FastVBiMaskLast,
)
from pruning.readings.atp import (
    ATP2D, ATPCentres, ATPDetached, ATPFixedRatio, ATPFixedRatioMax, ATPFixedRatioRedundant, ATPGiven, ATPMaskedSelf,
    ATPMoreRates, ATPPooled, ATPProbs, ATPRankedScores, ATPRawScores, ATPRenumbered, ATPSoftmaxScores, ATPUnnormalised,
)
from pruning.readings.cdpruner import CDPrunerTheta, CDPrunerTiles, CDPrunerUnconditioned
from pruning.readings.dart import DARTReleased
from pruning.readings.fastv import FastVAllRows, FastVMask, FastVRerank, FastVUnrotated
from pruning.readings.feather import FEATHERRow
from pruning.readings.fitprune import SingleFitPruneMean
from pruning.readings.hired import HiREDGrid, HiREDReceived, HiREDSum
from pruning.readings.holov import HoloVReceived, HoloVReleased
from pruning.readings.prumerge import (
    PruMergeAverage, PruMergePaper, PruMergePlusReceived, PruMergePlusReleased, PruMergeReceived,
)
from pruning.readings.pyramiddrop import PyramidDropKept
from pruning.readings.sparsevlm import SparseVLMPaper, SparseVLMPlus, SparseVLMRank
from pruning.readings.transprune import TransPruneReleased, TransPruneTTV
from pruning.readings.visionzip import VisionZipAverage, VisionZipReceived
from pruning.readings.vispruner import FasterVLM, VisPrunerReceived
from pruning.readings.vtw import VTWRandom, VTWRenumbered

READINGS = {
    "fastv_all": FastVAllRows,
    "fastv_mask": FastVMask,
    "fastv_rerank": FastVRerank,
    "fastv_bimask_last": FastVBiMaskLast,
    "fastv_unrotated": FastVUnrotated,
    "asap_mask_last": ASAPMaskLast,
    "asap_mask_last_similar": ASAPMaskLastSimilar,
    "asap_saliency_rank": ASAPSaliencyRank,
    "asap_uniform_mask": ASAPUniformMask,
    "asap_mean_merge": ASAPMeanMerge,
    "asap_similar_route": ASAPSimilarRoute,
    "asap_dedup": ASAPDedup,
    "asap_prune_past": ASAPPrunePast,
    "asap_renumbered": ASAPRenumbered,
    "adaptprune_normed_keys": AdaptPruneNormedKeys,
    "adaptprune_newlines": AdaptPruneKeepNewlines,
    "atp_given": ATPGiven,
    "atp_probs": ATPProbs,
    "atp_raw_scores": ATPRawScores,
    "atp_unnormalised": ATPUnnormalised,
    "atp_softmax_scores": ATPSoftmaxScores,
    "atp_ranked_scores": ATPRankedScores,
    "atp_pooled": ATPPooled,
    "atp_detached": ATPDetached,
    "atp_masked_self": ATPMaskedSelf,
    "atp_more_rates": ATPMoreRates,
    "atp_centres": ATPCentres,
    "atp_fixed_ratio": ATPFixedRatio,
    "atp_fixed_ratio_max": ATPFixedRatioMax,
    "atp_fixed_ratio_redundant": ATPFixedRatioRedundant,
    "atp_renumbered": ATPRenumbered,
    "atp_2d": ATP2D,
    "feather_row": FEATHERRow,
    "dart_released": DARTReleased,
    "transprune_released": TransPruneReleased,
    "transprune_ttv": TransPruneTTV,
    "cdpruner_unconditioned": CDPrunerUnconditioned,
    "cdpruner_tiles": CDPrunerTiles,
    "cdpruner_theta": CDPrunerTheta,
    "fastervlm": FasterVLM,
    "holov_released": HoloVReleased,
    "prumerge_average": PruMergeAverage,
    "prumerge_paper": PruMergePaper,
    "prumerge_plus_released": PruMergePlusReleased,
    "hired_sum": HiREDSum,
    "hired_grid": HiREDGrid,
    "pyramiddrop_kept": PyramidDropKept,
    "fitprune_single_mean": SingleFitPruneMean,
    "vtw_renumbered": VTWRenumbered,
    "vtw_random": VTWRandom,
    "visionzip_average": VisionZipAverage,
    "vispruner_received": VisPrunerReceived,
    "visionzip_received": VisionZipReceived,
    "hired_received": HiREDReceived,
    "holov_received": HoloVReceived,
    "prumerge_received": PruMergeReceived,
    "prumerge_plus_received": PruMergePlusReceived,
    "sparsevlm_rank": SparseVLMRank,
    "sparsevlm_paper": SparseVLMPaper,
    "sparsevlm_plus": SparseVLMPlus,
}
