"""What ATP-LLaVA claims (Ye et al., arXiv:2412.00447)."""

from minivlm.lab.claims.claim import Claim, Pair, Untested

CLAIMS = (
    Claim("Table 6", "Pruning to 144 of 576 tokens takes 38.4 % less time than no pruning.",
          Untested("a time on a GPU: bench --shape llava-1.5-7b --device cuda --dtype float16 --method "
                   "atp_fixed_ratio --set counts=126,88,20"), "266.4 and 432.7 ms"),
)
