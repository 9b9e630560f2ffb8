"""What a method is worth: its cost on LLaVA-1.5 7B, its own time on this machine, and its answers (answering.py)."""

from functools import partial

from minivlm.lab.cli.output import size
from minivlm.lab.cost import cost
from minivlm.lab.cost.count import able
from minivlm.lab.cost.shapes import shape_of
from minivlm.lab.lineup.lineup import fitted, lineup
from minivlm.lab.named.file import RAISED
from minivlm.lab.named.kind import kind_of
from minivlm.lab.own import answering
from minivlm.lab.own.promises.contract import said
from minivlm.lab.own.promises.finding import BROKEN, Finding, broken
from minivlm.lab.speed.measure import measure
from minivlm.trace import runs
from pruning.base import UserError

SHAPE = "llava-1.5-7b"
TIMED = "small"                        # the shape whose prefill is measured
LAYERS = 4                             # of its decoder, or as many as the method needs
MOST = 12
ROUNDS = 3
TEXT = 64                              # text tokens of a prompt
HARMLESS = {"scale", "needle", "shift", "disjoint"}    # broken, a method can be measured all the same


def measured(args, result):
    """{"cost", "time", "accuracy", "picture"}, each with "lines", and all promises, an error on the way among them."""
    wrong = [row.name for row in broken(result["promises"]) if row.name not in HARMLESS]
    if wrong:
        return dict(cost=dict(lines=[f"cost, time and accuracy are measured once {wrong[0]} holds"]))
    promises = list(result["promises"])
    found = dict(promises=promises)
    for name, part in parts(args).items():
        try:
            found[name] = part(args)
        except UserError as error:     # such as a layer that this model does not have
            found[name] = dict(lines=[f"{name}: it does not run here: {error}"])
        except RAISED as error:
            promises.append(failed(name, error))
            found[name] = dict(lines=[f"{name}: it ends with an error: {said(error)}"])
    return found


def parts(args):
    """{name: what measures it}"""
    names = args.own if args.own == "fastv" else f"{args.own},fastv"
    chosen = dict(
        cost=partial(cost_of, names=names),
        time=partial(time_of, names=names),
        accuracy=partial(answering.accuracy_of, names=names),
    )
    if args.out:
        chosen["picture"] = answering.drawn
    return chosen


def failed(name, error):
    """The Finding of an error that comes only when the method is measured."""
    return Finding(
        name,
        f"it runs when its {name} is measured",
        BROKEN,
        case="a whole model",
        seen=f"it ends with an error: {said(error)}",
        cause="read the line that is named",
    )


# --- cost -------------------------------------------------------------------------------------------------------------

def cost_of(args, names):
    """FLOPs, cache and speed-up by count."""
    shape = shape_of(SHAPE)
    running, why_not = contestants(shape, names, args.keep, counted=True)
    rows = cost.facts(shape, running, TEXT)["rows"]
    return dict(shape=SHAPE, rows=rows, why_not=why_not, lines=list(cost_lines(rows, why_not)))


def contestants(shape, names, keep, counted):
    """{label: pruner} of those that run on the shape, and {label: why not} of the others."""
    entrants = lineup(names, keep, None, (), shape)
    return able(shape, fitted(entrants, shape), counted)


def cost_lines(rows, why_not):
    """As text."""
    width = widest(rows, why_not)
    whole = sum(rows[0]["counted_flops"].values())
    yield f"cost, counted on {SHAPE} with 576 image and {TEXT} text tokens (run.py cost says more)"
    for row in rows:
        flops = sum(row["counted_flops"].values())
        cache = size(row["kv_bytes"])
        name = f"{row['method']:{width}}"
        entering = runs(row["image_tokens"])
        first_token = f"first token {row['first_token_speedup']:5.2f} x as fast"
        yield f"  {name}  {cost.tera(flops)} FLOPs {flops / whole:4.0%}  cache {cache:>8}  {first_token}  {entering}"
    for label, reason in why_not.items():
        yield f"  {label:{width}}  {reason}"


def widest(rows, why_not):
    """Letters of the longest name."""
    names = [row["method"] for row in rows]
    return max(map(len, [*names, *why_not]))


# --- time -------------------------------------------------------------------------------------------------------------

def time_of(args, names):
    """The method's own time, and that of the prefill, measured on this machine."""
    shape = shape_of(TIMED, layers=depth(args.own))
    running, why_not = contestants(shape, names, args.keep, counted=False)
    table = measure(shape, running, text=TEXT, steps=1, repeat=ROUNDS)
    rows = []
    for row in table["rows"]:
        median = row["median"]
        rows.append(dict(method=row["method"], own=median["method"], prefill=median["prefill"]))
    return dict(shape=shape.name, rows=rows, why_not=why_not, lines=list(time_lines(shape, rows, why_not)))


def depth(name):
    """How many decoder layers there must be for the method to act in all its places, at most those of the shape."""
    kind = kind_of(name)
    cuts = kind().reduce_at(MOST) if kind.site == "decoder" else ()
    deepest = max(cuts, default=0)
    return min(MOST, max(LAYERS, deepest + 1))


def time_lines(shape, rows, why_not):
    """As text."""
    width = widest(rows, why_not)
    yield (f"time on this machine, {shape.name} with {shape.n} image tokens, milliseconds, medians of {ROUNDS} rounds "
           "(run.py bench says more)")
    for row in rows:
        own = row["own"] * 1e3
        prefill = row["prefill"] * 1e3
        yield f"  {row['method']:{width}}  its own {own:7.1f}  prefill {prefill:7.1f}"
    for label, reason in why_not.items():
        yield f"  {label:{width}}  {reason}"
