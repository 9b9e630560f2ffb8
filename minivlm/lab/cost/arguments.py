"""What the commands that need only a shape take: the shape, methods with their budgets, the variants of the formula."""

from minivlm.lab.cli.arguments import add_settings, within
from minivlm.lab.cost.shapes import SHAPES
from pruning import METHODS


def add_shape(parser, default):
    """A named shape, or a checkpoint's; see shapes.shape_of."""
    group = parser.add_argument_group("shape")
    group.add_argument("--shape", choices=SHAPES, help=f"of the model (default: {default})")
    group.add_argument("--model", metavar="DIR", help="in place of --shape: that of a checkpoint folder or hub id")
    group.add_argument("--layers", type=within(int), metavar="N", help="only the first N layers of its decoder")


def add_lineup(parser):
    """Methods, each at several budgets; see shapes.lineup."""
    group = parser.add_argument_group("methods")
    group.add_argument("--method", metavar="A,B,..",
                       help=f"of {', '.join(METHODS)}; a file that `fit` wrote; A+B; or all")
    group.add_argument("--keep", metavar="K,K,..",
                       help="image tokens left of the whole prompt: numbers (192,128) or shares (0.25)")
    group.add_argument("--average", metavar="A,A,..",
                       help="in place of --keep: image tokens entering a layer on average")
    group.add_argument("--schedule", metavar="LAYER:KEEP,..", help="act before several layers, like 4:136,14:68,24:34")
    add_settings(group, "another option; of several methods, METHOD.OPTION=VALUE")


def add_formula(parser):
    """The variants of the papers' formula; see flops.Formula."""
    parser.add_argument("--ffn", type=int, choices=(2, 3),
                        help="matrices of the MLP that the formula counts (default: as the paper's own)")
    parser.add_argument("--cut", choices=("before", "after"),
                        help="count a layer before a cut with what enters it (default), or after, with what leaves it")
