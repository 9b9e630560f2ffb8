"""The options with which a command takes several methods, each at several budgets."""

from minivlm.lab.cli.arguments import add_settings
from pruning import METHODS


def add_lineup(parser):
    """Methods, each at several budgets; see lineup.lineup."""
    group = parser.add_argument_group("methods")
    group.add_argument("--method", metavar="A,B,..",
                       help=f"of {', '.join(METHODS)}; a file that `fit` wrote; A+B; or all")
    group.add_argument("--keep", metavar="K,K,..",
                       help="image tokens left of the whole prompt: numbers (192,128) or shares (0.25)")
    group.add_argument("--average", metavar="A,A,..",
                       help="in place of --keep: image tokens entering a layer on average")
    group.add_argument("--schedule", metavar="LAYER:KEEP,..", help="act before several layers, like 4:136,14:68,24:34")
    add_settings(group, "another option; of several methods, METHOD.OPTION=VALUE")
