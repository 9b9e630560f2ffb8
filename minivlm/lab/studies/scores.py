"""The accuracies that three papers print, and the averages, percentages and differences that they make of them.

ASAP (arXiv:2603.14549), ATP-LLaVA (arXiv:2412.00447), AdaptPrune (arXiv:2503.08019). Nothing is computed here;
recomputed.py does that. AdaptPrune prints no average of its accuracies, but one of its times.
"""

# of the unpruned model; of each row, and the printed average of score / unpruned score, in percent
ASAP_SCORES = {
    "ASAP Table 1": ("80.0 63.25 71.6 61.19 1529.93 67.71 63.60", (
        ("FastV 192", "75.42 58.67 70.64 57.23 1442.31 66.43 61.05", "95.37"),
        ("PruMerge+ 192", "76.97 59.72 71.10 57.12 1451.31 66.32 62.54", "95.94"),
        ("SparseVLM 192", "78.31 57.80 73.08 51.93 1485.27 67.61 61.77", "95.75"),
        ("DivPrune 192", "78.42 59.12 73.08 58.84 1482.01 65.95 59.02", "96.68"),
        ("ASAP 192", "79.46 62.43 72.89 60.69 1546.40 68.29 63.40", "98.68"),
        ("FastV 128", "74.34 57.19 70.32 56.66 1411.30 64.15 60.37", "93.72"),
        ("PruMerge+ 128", "75.78 57.32 71.89 56.50 1440.38 64.63 61.51", "94.91"),
        ("SparseVLM 128", "76.18 57.85 73.97 53.15 1470.43 66.09 61.51", "95.55"),
        ("DivPrune 128", "76.12 58.82 72.78 57.95 1460.01 65.81 60.43", "96.02"),
        ("ASAP 128", "76.26 58.76 72.89 58.88 1481.80 66.18 62.46", "97.10"),
    )),
    "ASAP Table 2": ("81.2 62.9 59.6 65.8 40.0", (
        ("FastV 960", "80.33 61.98 59.32 65.12 39.4", "98.89"),
        ("VisPruner 960", "80.0 62.20 58.81 65.29 38.4", "98.26"),
        ("ASAP 960", "81.19 62.29 59.67 66.41 40.1", "100.06"),
        ("FastV 640", "77.81 61.04 58.08 64.37 37.6", "96.43"),
        ("VisPruner 640", "79.82 61.22 58.34 65.29 36.3", "96.70"),
        ("ASAP 640", "79.91 61.17 58.98 65.35 40.48", "99.02"),
    )),
    "ASAP Table 3": ("63.40 97.81 90.59 1696.26 82.60", (
        ("FastV 510", "61.44 96.03 89.10 1614.42 80.32", "97.17"),
        ("ASAP 510", "62.31 97.07 90.08 1645.32 82.47", "98.76"),
        ("FastV 340", "59.17 91.51 88.47 1603.51 79.33", "95.02"),
        ("ASAP 340", "60.00 92.36 89.00 1596.91 80.15", "95.69"),
    )),
}
ATP_BENCHMARKS = "GQA MMB MME POPE SEED SQA VQAv2"
ATP_UNPRUNED = "62.0 64.3 1510.7 85.8 58.6 71.6 78.5"
# row of Table 1, scores, the percentages below them, their average; "-": not printed
ATP_SCORES = (
    ("PruMerge+ 144", "- 64.9 1462.4 84.0 - 68.3 76.8", "- 100.9 96.8 97.9 - 95.4 97.8", "97.8"),
    ("FastV 192", "52.7 61.2 1312.4 64.8 50.8 65.4 67.1", "83.8 95.2 86.9 75.5 86.7 91.3 85.5", "86.4"),
    ("FastV 128", "49.6 56.1 1187.9 59.6 48.1 59.7 61.8", "80.0 87.2 78.6 69.5 82.1 83.4 78.7", "79.9"),
    ("SparseVLM 192", "57.6 62.5 1382.8 83.6 53.0 67.2 75.6", "92.9 97.2 91.5 97.4 90.4 93.9 96.3", "94.2"),
    ("SparseVLM 128", "56.0 60.0 1296.7 80.5 50.2 65.5 73.8", "90.3 93.3 85.8 96.3 85.7 91.5 94.0", "91.0"),
    ("ATP-LLaVA 144", "59.5 66.0 1473.9 84.2 57.3 69.1 76.4", "96.0 102.6 97.6 98.1 97.8 96.5 97.3", "98.1"),
    ("ATP-LLaVA 88", "56.8 64.7 1401.5 82.6 55.7 67.2 73.3", "91.6 100.6 92.8 96.3 95.1 93.9 91.8", "94.6"),
)
ATP_FULL = "66.0 59.5 76.4 57.3"           # MMB, GQA, VQAv2, SEED
# table, what the text of section 4.3 says, points printed, the two rows whose means differ by that, a remark
ATP_DIFFERENCES = (
    ("Table 2", "MMB, above the best fixed ratio", "2.8", "66.0", "63.2", ""),
    ("Table 2", "VQAv2, above the best fixed ratio", "1.6", "76.4", "74.6", ""),
    ("Table 2", "SEED, above the best fixed ratio", "1.6", "57.3", "55.7", ""),
    ("Table 4", "drop without RP", "1.05", ATP_FULL, "64.3 57.1 74.2 55.1",
     "by the check marks the row without RP has no PP either; 1.05 is the drop of the row without PP"),
    ("Table 4", "drop without SP", "1.0", ATP_FULL, "65.3 58.3 75.1 56.5",
     "by the check marks the row without SP has no PP either"),
    ("Table 4", "gain of PP with SP", "0.9", ATP_FULL, "65.2 58.6 74.9 56.3", "0.9 is the gain on GQA"),
    ("Table 5", "drop with the self score only", "0.43", ATP_FULL, "66.1 58.7 75.8 56.9", ""),
    ("Table 5", "drop with the cross score only", "0.55", ATP_FULL, "65.4 59.2 76.1 56.3", ""),
)
POPE = 9000                                # questions, which the paper does not print
# row of Table 3, minutes and seconds on POPE, seconds a question
ADAPTPRUNE_LATENCY = (
    ("LLaVA-1.5-7B", "49:05", "0.327"),
    ("FastV", "27:30", "0.182"),
    ("AdaptPrune", "31:25", "0.209"),
)
