"""What six other papers claim, as far as a world of drawn scenes can test it: one sentence each, or two."""

from minivlm.lab.claims.claim import Claim, Pair, at_least

BUDGETS = ("0.25", "0.1")

CLAIMS = (
    Claim("FEATHER (Endo et al., arXiv:2412.13180)", "Attention without the rotary embedding ranks better than with it.",
          Pair("fastv_unrotated", "fastv", "the rotary embedding of the queries and keys that rank", keep=BUDGETS)),
    Claim("FEATHER", "With a grid of evenly spaced tokens and a second stage it answers more than FastV.",
          Pair("feather", "fastv", "the criterion, the grid, and two cuts", keep=BUDGETS)),
    Claim("DART (Wen et al., arXiv:2502.11494)", "Duplication matters more than importance: it answers more than FastV.",
          Pair("dart", "fastv", "unlike tokens are kept, and not those with most attention", keep=BUDGETS)),
    Claim("CDPruner (Zhang et al., arXiv:2506.10967)", "Diversity conditioned on the question answers more than diversity "
          "only.", Pair("cdpruner", "cdpruner_unconditioned", "relevance in the kernel", keep=BUDGETS)),
    Claim("CDPruner", "It answers more than DivPrune, which measures diversity by the nearest pair.",
          Pair("cdpruner", "divprune", "the measure of diversity, and relevance", keep=BUDGETS)),
    Claim("HoloV (Zou et al., arXiv:2510.02912)", "A share for each crop answers more than the most attended tokens "
          "anywhere.", Pair("holov", "fastervlm", "a budget per crop", keep=BUDGETS)),
    Claim("ToMe (Bolya et al., arXiv:2210.09461)", "Merging similar tokens inside the tower answers more than dropping as "
          "many at random.", Pair("tome", "random@site=embed", "merged in the tower, or dropped after it", keep=BUDGETS)),
    Claim("TransPrune (Li et al., arXiv:2507.20630)", "How much a token changes in the layers ranks at least as well as "
          "attention.", Pair("transprune", "fastv", "what ranks, and where", range=at_least(-1), keep=BUDGETS)),
)
