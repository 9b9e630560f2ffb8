"""The options with which a command takes several methods, each at several budgets."""

from minivlm.lab.cli.arguments import add_settings
from minivlm.lab.lineup.lineup import number
from minivlm.lab.lineup.variants import words


def add_lineup(parser, method=None, keep=None):
    """Methods and their budgets, see lineup.lineup. method, keep: what the command takes if none is named."""
    group = parser.add_argument_group("methods")
    group.add_argument("--method", metavar="A,B,..", default=method,
                       help="names that `methods` lists, readings among them; files that `fit` wrote; A+B; variants, "
                            "like asap@layer=3; your own, FILE.py:NAME, a class or a function (the file is executed); "
                            f"or all{said(method)}")
    group.add_argument("--keep", metavar="K,K,..",
                       help="visual tokens left after the reduction: numbers, of the whole prompt, (192,128) or shares "
                            f"(0.25){said(keep)}")
    group.add_argument("--average", metavar="A,A,..", type=averages,
                       help="in place of --keep: visual tokens entering a layer on average, for which each method "
                            "solves")
    group.add_argument("--schedule", metavar="LAYER:KEEP,..", help="act before several layers, like 4:136,14:68,24:34")
    add_settings(group, "another option; of several methods, METHOD.OPTION=VALUE, which is for its variants too; "
                        "VALUE,VALUE,.. makes a variant of each")


def said(default):
    """How a help text ends."""
    return f" (default: {default})" if default else ""


def averages(text):
    """The text itself, if it is numbers with commas between them: the `type` of --average."""
    for word in words("--average", text):
        number(word)
    return text
