"""What six other papers claim, as far as a world of drawn scenes can test it: a sentence or two of each."""

from minivlm.lab.claims.claim import Claim, at_least
from minivlm.lab.claims.comparisons import Pair

BUDGETS = ("0.25", "0.1")
AVERAGES = (1 / 2, 1 / 3)              # of all tokens in a layer, for methods with several cuts

CLAIMS = (
    Claim("FEATHER (Endo et al., arXiv:2412.13180)",
          "Ranking by attention without the rotary embedding answers more than with it.",
          Pair("fastv_unrotated", "fastv", "the rotary embedding of the queries and keys that rank", keep=BUDGETS)),
    Claim("FEATHER", "With evenly spaced tokens and a second stage it answers more than FastV.",
          Pair("feather", "fastv", "the criterion, the grid, two cuts, and so fewer tokens", keep=BUDGETS)),
    Claim("DART (Wen et al., arXiv:2502.11494)",
          "Tokens that are no duplicates answer more than important ones, those of FastV.",
          Pair("dart", "fastv", "unlike tokens are kept, and not those with most attention", keep=BUDGETS)),
    Claim("CDPruner (Zhang et al., arXiv:2506.10967)",
          "Diversity conditioned on the question answers more than diversity only.",
          Pair("cdpruner", "cdpruner_unconditioned", "relevance in the kernel", keep=BUDGETS)),
    Claim("CDPruner", "It answers more than DivPrune, whose measure of diversity is the nearest pair.",
          Pair("cdpruner", "divprune", "the measure of diversity, and relevance", keep=BUDGETS)),
    Claim("HoloV (Zou et al., arXiv:2510.02912)",
          "A share for each crop answers more than the most attended tokens anywhere.",
          Pair("holov", "fastervlm", "a budget per crop", keep=BUDGETS)),
    Claim("ToMe (Bolya et al., arXiv:2210.09461)",
          "Merging similar tokens inside the tower answers more than dropping as many at random.",
          Pair("tome", "random@site=embed", "similar tokens merged in the tower, or random ones dropped after it",
               keep=BUDGETS)),
    Claim("TransPrune (Li et al., arXiv:2507.20630)",
          "Ranking by how much layers change a token answers as much as by attention; here, at most one point less.",
          Pair("transprune", "fastv", "what ranks, and three cuts in place of one", range=at_least(-1),
               average=AVERAGES)),
)
