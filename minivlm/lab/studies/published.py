"""The figures of cost that three papers print, each with the schedule it is recomputed from: ASAP (arXiv:2603.14549),
ATP-LLaVA (arXiv:2412.00447), AdaptPrune (arXiv:2503.08019). Nothing is computed here; tables.py does that.

A schedule is text: "2x576 30x167" is 576 image tokens entering each of two layers, then 167 each of thirty.
"""

from typing import NamedTuple


class Shape(NamedTuple):
    """What the formula needs of a decoder, and the image tokens of its prompt."""

    name: str
    width: int
    intermediate: int
    layers: int
    tokens: int


SEVEN = Shape("LLaVA-1.5-7B", 4096, 11008, 32, 576)
THIRTEEN = Shape("LLaVA-1.5-13B", 5120, 13824, 40, 576)
NEXT = Shape("LLaVA-NeXT-7B", 4096, 11008, 32, 2880)
INTERN = Shape("InternVL2.5-8B", 4096, 14336, 32, 1536)        # 6 tiles of 256; all keys counted, though it groups them
INTERN_TILES = Shape("InternVL2-8B", 4096, 14336, 32, 13 * 256)        # 12 tiles and the thumbnail
INTERN_MANY = Shape("InternVL2-8B", 4096, 14336, 32, 20 * 256)

# table, row, shape, schedule, T FLOPs, % of the unpruned FLOPs, a remark
ASAP_FLOPS = (
    ("Table 1", "LLaVA-1.5-13B", THIRTEEN, "40x576", "3.817", "100",
     "3.817 is the 7B decoder's, in a table headed 13B"),
    ("Table 1", "FastV 192", SEVEN, "2x576 30x167", "1.259", "32.99",
     ""),
    ("Table 1", "PruMerge+, SparseVLM, DivPrune 192", SEVEN, "32x192", "1.253", "32.83", ""),
    ("Table 1", "ASAP 192", SEVEN, "32x192", "1.253", "31.88", "31.88 % of 3.817 T would be 1.217 T"),
    ("Table 1", "FastV 128", SEVEN, "2x576 30x98", "0.836", "21.898", ""),
    ("Table 1", "PruMerge+, SparseVLM, DivPrune 128", SEVEN, "32x128", "0.833", "21.801", "0.833 of 3.817 is 21.823 %"),
    ("Table 1", "ASAP 128, and C.1", SEVEN, "2x576 30x92", "0.797", "20.901",
     "20.901 % is 0.7978 T: 91.7 tokens after two layers"),
    ("Table 2", "LLaVA-NeXT-7B", NEXT, "32x2880", "20.825", None,
     "the 2304 tokens of the introduction would be 16.312"),
    ("Table 2", "FastV 960", NEXT, "2x2880 30x825", "6.477", None, ""),
    ("Table 2", "VisPruner 960", NEXT, "32x960", "6.458", None, ""),
    ("Table 2", "ASAP 960", NEXT, "2x2880 30x791", "6.258", None, ""),
    ("Table 2", "FastV 640", NEXT, "2x2880 30x478", "4.260", None, ""),
    ("Table 2", "VisPruner 640", NEXT, "32x640", "4.252", None, ""),
    ("Table 2", "ASAP 640", NEXT, "3x2880 29x368", "4.144", None,
     "no whole number of tokens with two full layers, as 960 has"),
    ("Introduction", "ASAP 640", NEXT, "3x2880 29x368", None, "21.19", "Table 2: 4.144 of 20.825"),
    ("Table 3", "InternVL 2.5 8B", INTERN, "32x1536", "12.575", "100.0", ""),
    ("Table 3", "FastV, ASAP 510", INTERN, "2x1536 30x430", "3.969", "31.56",
     "on average 499 tokens enter a layer, not 510"),
    ("Table 3", "FastV, ASAP 340", INTERN, "2x1536 30x255", "2.663", "21.17",
     "on average 335 tokens enter a layer, not 340"),
    ("Table 4", "LLaVA-1.5-7B", SEVEN, "32x576", "3.817", None, ""),
    ("Table 4", "FastV, ASAP 192", SEVEN, "2x576 30x167", "1.259", None, "Table 1 has 1.253 for ASAP"),
    ("Table 4", "FastV, ASAP 128", SEVEN, "2x576 30x98", "0.836", None, "Table 1 has 0.797 for ASAP"),
)
# row of Table 1, share kept in 30 layers, T FLOPs, a remark
WITH_CEILING = (
    ("FastV 192, Eq. 7", 0.29, "1.259", "0.29 x 576 = 167.04: the nearest number, 167, gives 1.259"),
    ("FastV 128, Eq. 7", 0.17, "0.836", "0.17 x 576 = 97.92: the nearest number gives 0.836, too; 97 does not"),
)
ASAP_TEXT = 66.78                      # text tokens per sample: they solve the first row of Table 4
# row, schedule, MB printed, a remark. 2 * 32 * 4096 values of 2 bytes are half a MiB a token
ASAP_STORAGE = (
    ("LLaVA-1.5-7B", "32x576", "321.39", "MiB, not MB; it solves for the text: 66.78 tokens a sample"),
    ("FastV 192", "2x576 30x167", "129.73", "off by the bytes of an eighth of a token"),
    ("FastV 128", "2x576 30x98", "97.33", ""),
    ("ASAP 192", "2x576 30x167", "116.64", "166.5 tokens in every layer would: the first two dropped theirs too"),
    ("ASAP 128", "2x576 30x98", "82.14", "97.5 tokens in every layer would: the first two dropped theirs too"),
)
# paper and table, row, schedule, average printed, a remark
AVERAGES = (
    ("ASAP Table 1", "FastV 192", "2x576 30x167", "192", ""),
    ("ASAP Table 1", "FastV 128", "2x576 30x98", "128", ""),
    ("ASAP Table 2", "FastV 960", "2x2880 30x825", "960",
     "the schedule of its FLOPs, which are matched to VisPruner's"),
    ("ASAP Table 2", "FastV 640", "2x2880 30x478", "640",
     "the schedule of its FLOPs, which are matched to VisPruner's"),
    ("ASAP Table 2", "ASAP 960", "2x2880 30x791", "960", "the schedule of its FLOPs"),
    ("ASAP Table 2", "ASAP 640", "3x2880 29x368", "640", "the schedule of its FLOPs"),
    ("ASAP Table 3", "FastV, ASAP 510", "2x1536 30x430", "510", "the schedule of its FLOPs"),
    ("ASAP Table 3", "FastV, ASAP 340", "2x1536 30x255", "340", "the schedule of its FLOPs"),
    ("ATP Table 1", "PruMerge+", "32x144", "144", ""),
    ("ATP Table 1", "FastV", "2x576 30x167", "192", "no schedule is printed; this is the one that solves"),
    ("ATP Table 1", "FastV", "2x576 30x98", "128", "no schedule is printed; this is the one that solves"),
    ("ATP Table 1", "SparseVLM", "3x576 4x309 9x204 16x113", "192",
     "none is printed; this is its released v1.5 table (in v1.0 the prompt decides)"),
    ("ATP Table 1", "SparseVLM", "3x576 4x312 9x117 16x39", "128",
     "none is printed; this is its released v1.5 table (in v1.0 the prompt decides)"),
    ("ATP Table 2", "3/4 [1]", "1x576 31x130", "144", ""),
    ("ATP Table 2", "2/3 [4, 14, 24]", "4x576 10x162 10x54 8x18", "144", ""),
    ("ATP Table 2", "1/2 [4, 14, 24]", "4x576 10x136 10x68 8x34", "144", ""),
    ("ATP Table 2", "ATP-LLaVA [4, 14, 24]", "4x576 10x126 10x88 8x20", "144", ""),
    ("ATP Table 2", "ATP-LLaVA [1, 13, 25]", "1x576 12x98 12x79 7x16", "88", ""),
)
# row, schedule, T FLOPs (Eq. 15), % fewer FLOPs, MB, % fewer MB, a remark on the FLOPs
ATP_TABLE_6 = (
    ("Upper Bound", "32x576", "9.6", None, "302.4", None, "Eq. 15 needs 1740 tokens for it"),
    ("FastV 144", "2x576 30x115", "2.0", "79.2", "75.6", "75",
     "Eq. 15 is convex: no schedule with an average of 144 saves more than 75.5 %"),
    ("ATP-LLaVA 144", "4x576 10x126 10x88 8x20", "2.1", "78.1", "75.6", "75",
     "no schedule with an average of 144 saves more than 75.5 %"),
    ("ATP-LLaVA 88", "1x576 12x98 12x79 7x16", "1.5", "84.4", "46.2", "84.7",
     "the share of the printed 1.5 T in the printed 9.6 T"),
)
# shape, % fewer FLOPs when 10 % of the tokens are kept
ADAPTPRUNE = (
    (SEVEN, "81", "Table 1"),
    (NEXT, "87", "Table 1"),
    (INTERN_TILES, "88", "Table 2"),
    (INTERN_MANY, "88", "Table 2"),
)
# the first layer that runs on the kept tokens, text tokens counted, whose reading that is
READINGS = (
    (2, 0, "K = 2, the released code"),
    (3, 0, 'K = 3, "the pruning layer is set to 3"'),
    (1, 45, "K = 1, the one boundary that can give all three figures: with 40 to 51 text tokens"),
)
