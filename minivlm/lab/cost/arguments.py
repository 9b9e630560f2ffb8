"""What the commands that need only a shape take: the shape, and the variants of the formula."""

from minivlm.lab.cli.arguments import within
from minivlm.lab.cost.shapes import SHAPES


def add_shape(parser, default):
    """A named shape, or a checkpoint's; see shapes.shape_of."""
    group = parser.add_argument_group("shape")
    group.add_argument("--shape", choices=SHAPES, help=f"of the model (default: {default})")
    group.add_argument("--model", metavar="DIR", help="in place of --shape: that of a checkpoint folder or hub id")
    group.add_argument("--layers", type=within(int), metavar="N", help="only the first N layers of its decoder")



def add_formula(parser):
    """The variants of the papers' formula; see flops.Formula."""
    parser.add_argument("--ffn", type=int, choices=(2, 3),
                        help="matrices of the MLP that the formula counts (default: as the paper's own)")
    parser.add_argument("--cut", choices=("before", "after"),
                        help="count a layer before a cut with what enters it (default), or after, with what leaves it")
