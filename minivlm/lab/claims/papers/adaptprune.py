"""What AdaptPrune claims (Luan et al., arXiv:2503.08019)."""

from minivlm.lab.claims import places
from minivlm.lab.claims.claim import LESS, Check, Claim, Pair, Untested, at_least

# rows (b) and (c) of Table 4
CORRECTED = "adaptprune@distance=False@similarity=False"
NEAR = "adaptprune@similarity=False"
FIGURE_3 = (("fastv", "0.1"), ("random", "0.1"))
RATIOS = ("0.5", "0.4", "0.3", "0.2", "0.1", "0.05")

CLAIMS = (
    Claim("Figure 2; Figures 8 and 9", "The end of the image gets more attention.",
          Check(places.late, "the place of a token; compared with no correlation"), "maps of 1000 samples of two tasks"),
    Claim("Figure 2; Figures 8 and 9", "Different tasks have almost the same map: a correlation of 0.9 at least.",
          Check(places.same_maps, "the family of questions", range=at_least(0.9)), "almost identical, by eye"),
    Claim("Figure 3", "The tokens with most attention are more alike than random ones.",
          Check(places.alike, "FastV's 10 % against random ones, before the same layer", methods=FIGURE_3)),
    Claim("Figure 3", "They lie nearer to each other than random ones.",
          Check(places.near, "FastV's 10 % against random ones, before the same layer", range=LESS, methods=FIGURE_3)),
    Claim("Figures 6 and 7", "FastV keeps patches at fixed places, AdaptPrune what matters.",
          Untested("pictures, to be looked at: compare IMAGE QUESTION --method fastv,adaptprune --keep 0.5,0.3,0.1")),
    Claim("Table 4, (a) to (b)", "Correcting attention towards the centre answers more than attention as it is.",
          Pair(CORRECTED, "fastv", "the Gaussian on the attention"),
          "GQA 51.0 to 55.4, TextVQA 38.5 to 37.5, POPE 69.7 to 77.9"),
    Claim("Table 4, (b) to (c)", "Suppressing the neighbours of what is kept, by distance, answers more.",
          Pair(NEAR, CORRECTED, "suppression by distance"), "GQA 55.4 to 56.2, TextVQA 37.5 to 36.9, POPE 77.9 to 78.8"),
    Claim("Table 4, (c) to (d)", "Suppressing by similarity as well answers more.",
          Pair("adaptprune", NEAR, "suppression by similarity"), "GQA 56.2 to 58.0, TextVQA 36.9 to 40.1, POPE 78.8 to "
          "79.3"),
    Claim("Table 4, (a) to (d)", "All three together answer more than FastV.",
          Pair("adaptprune", "fastv", "the three factors"), "GQA 51.0 to 58.0, POPE 69.7 to 79.3"),
    Claim("Tables 6 to 8", "It answers more than FastV in every category; here, in every family of questions.",
          Pair("adaptprune", "fastv", "the three factors", by_family=True)),
    Claim("Figure 5", "At every pruning ratio from 0.5 to 0.95 it answers more than FastV.",
          Pair("adaptprune", "fastv", "the three factors", keep=RATIOS), "above FastV on all eight benchmarks"),
    Claim("Table 1", "At 10 % it answers more than VTW with K = 5 of 32.",
          Pair("adaptprune", "vtw@layer=1", "the method, and where it acts"), "GQA 58.0 and 39.5, POPE 79.3 and 46.0"),
    Claim("Table 5, (a)", "It answers more than FitPrune's score in one layer.",
          Pair("adaptprune", "fitprune_single", "the score"), "GQA 58.0 and 45.9"),
    Claim("Table 5, (b)", "It answers more than every second token by attention (Skip).",
          Pair("adaptprune", "skip", "how tokens are chosen"), "GQA 58.0 and 54.7"),
    Claim("Table 5, (c)", "It answers more than random tokens.",
          Pair("adaptprune", "random", "how tokens are chosen"), "GQA 58.0 and 56.0"),
    Claim("Table 5, (d)", "It answers more than a random token of each 3 x 3 block.",
          Pair("adaptprune", "random3x3", "how tokens are chosen"), "GQA 58.0 and 56.2"),
    Claim("Table 5, (e)", "It answers more than the token with most attention of each 3 x 3 block.",
          Pair("adaptprune", "maxpool3x3", "how tokens are chosen"), "GQA 58.0 and 56.0"),
    Claim("Table 5, (f)", "It answers more than scores averaged over neighbours.",
          Pair("adaptprune", "avgpool_scores", "the score"), "GQA 58.0 and 48.4"),
    Claim("Table 5, (g)", "It answers more than the last tokens.",
          Pair("adaptprune", "last", "how tokens are chosen"), "GQA 58.0 and 41.3"),
    Claim("Table 5, FastV", "FastV answers more than random tokens (in the paper it answers less).",
          Pair("fastv", "random", "how tokens are chosen", range=LESS), "GQA 51.0 and 56.0, TextVQA 38.5 and 20.2"),
    Claim("Section 4.2", "Whether the layer's norm is applied before the keys are compared.",
          Pair("adaptprune_normed_keys", "adaptprune", "the input of the keys", range=None, keep=("0.25", "0.1")),
          "the text has key vectors, the released code keys without the norm"),
    Claim("Section 5.1", "Distances fitted to 24 x 24 patches, halved where there are 12 x 12.",
          Pair("adaptprune@sigma_d=0.75@distance_limit=2.5", "adaptprune", "sigma_d and the neighbourhood, in patches",
               range=None, keep=("0.25", "0.1")), "1.5 and 5 in the released code, for any grid"),
    Claim("Table 2", "It answers more than FastV on InternVL2.",
          Untested("the shipped model is no InternVL: claims adaptprune --model InternVL2-2B --data D runs the pairs "
                   "of Table 4 there"), "GQA 52.1 and 50.9 with 2B, 55.7 and 53.6 with 8B"),
    Claim("Table 3", "It takes 15 % longer than FastV, and 36 % less than no pruning.",
          Untested("a time on a GPU: bench --shape llava-1.5-7b --device cuda --dtype float16 --method "
                   "fastv,adaptprune --keep 0.1 --steps 1"), "0.209, 0.182 and 0.327 s"),
)
