"""Methods at their budgets, as a command compares them: each has a label, the same in tables, files and pictures."""

from dataclasses import dataclass, replace

from minivlm.lab.cli.options import averaged, build, own_settings
from minivlm.lab.lineup.variants import variants, words
from pruning.base import Pruner, UserError
from pruning.fields import Positive, fault


@dataclass(frozen=True)
class Prompt:
    """A model, and the pictures of a prompt: what budgets are counted in. A Shape has the same properties."""

    model: object
    pictures: list                     # of pixels

    @property
    def n(self):
        """Visual tokens of the unpruned prompt."""
        return sum(self.model.visual_tokens(pixels) for pixels in self.pictures)

    @property
    def layers(self):
        """Of the decoder."""
        return self.model.config.text.num_hidden_layers

    @property
    def parts(self):
        """The tiles and images that a budget may count."""
        return self.model.parts(self.pictures)

    @property
    def own(self):
        """The model's settings in place of the methods' defaults; see own_settings."""
        return own_settings(self.model.folder)


@dataclass(frozen=True)
class Budget:
    """What the user wrote for --keep, --average and --schedule."""

    keep: str | None = None
    average: str | None = None
    schedule: str | None = None

    def __str__(self):
        average = f"average {self.average}" if self.average else None
        return " ".join(filter(None, (self.schedule, average, self.keep)))


@dataclass(frozen=True)
class Entrant:
    """A method at a budget."""

    method: str                        # its name: "asap@threshold=.8"
    budget: str | None = None          # as in its label: "0.1", "average 72"; None if the method has its own
    pruner: Pruner | UserError | None = None       # None: no pruning; an error: why it cannot be built
    average: float | None = None       # visual tokens that enter a layer on average, to be solved for on each prompt

    @property
    def label(self):
        """Its name in tables: "fastv 0.1"."""
        return f"{self.method} {self.budget}" if self.budget else self.method

    def on(self, prompt):
        """The pruner for a prompt or shape, with the keep that the average needs there; or the error that forbids it.
        """
        if isinstance(self.pruner, UserError):
            return self.pruner
        return averaged(self.pruner, self.average, prompt.n, prompt.layers, prompt.parts)


def lineup(names, keep, average, settings, prompt, schedule=None, others=()):
    """[Entrant]: each variant of the methods "a,b@layer=3", or of "all", at each budget.

    Budgets are the words of keep "192,128", or of average "192,128"; a number counts the whole prompt (Pruner.divided).
    `schedule` "4:136,14:68,24:34" is for each method. A method that takes no keep has its own schedule; among several
    it is there once. prompt: a Prompt or Shape; others: see variants. UserError if a method cannot be built, or is
    there twice. With "all", a method that cannot be built is an Entrant whose pruner is the error.
    """
    if names is None:
        if settings or {keep, average, schedule} != {None}:
            raise UserError("--keep, --average, --schedule and --set are for a method: name one with --method")
        return []
    every = variants(names, settings, others)
    given = budgets(keep, average, schedule)
    # a single method gets its keep in any case, so that one that takes none refuses it
    is_only = len(every) == 1 and not others
    own = prompt.own
    entrants = []
    for variant in every:
        of_variant = given if is_only else budgets_for(variant, given)
        for budget in of_variant:
            entrants.append(built(variant, budget, prompt, own, names == "all"))
    refuse_twins(entrants)
    return entrants


def budgets(keep, average, schedule=None):
    """[Budget]: one for each word of --keep "192,128", or of --average; each has the schedule."""
    if keep is not None and average is not None:
        raise UserError("give --keep or --average, not both: each says how many tokens are left")
    if keep is not None:
        return [Budget(word, schedule=schedule) for word in words("--keep", keep)]
    if average is not None:
        return [Budget(average=word, schedule=schedule) for word in words("--average", average)]
    return [Budget(schedule=schedule)]


def budgets_for(variant, given):
    """The given budgets; of a variant that takes no keep, what remains without the keeps, each once."""
    if variant.takes_keep:
        return given
    without = [replace(budget, keep=None) for budget in given]
    return list(dict.fromkeys(without))


def built(variant, budget, prompt, own, may_fail):
    """The Entrant. If the prompt forbids it, that is a UserError, or, if it may fail, an Entrant with the error."""
    try:
        entrant = entrant_of(variant, budget, own)
        entrant.on(prompt)
    except UserError as error:
        if not may_fail:
            raise
        entrant = Entrant(variant.name, str(budget) or None, error)
    return entrant


def entrant_of(variant, budget, own):
    """The Entrant of a variant, not yet tried on a prompt. own: see `build`."""
    if budget.average is not None and variant.has_keep:
        raise UserError(f"{variant.name} has a keep of its own, which --average would replace: leave one out")
    pruner = build(variant.name, budget.keep, variant.settings, budget.schedule, own)
    average = None if budget.average is None else number(budget.average)
    return Entrant(variant.name, str(budget) or None, pruner, average)


def number(text):
    """A word of --average as a number of tokens."""
    try:
        average = float(text)
    except ValueError:
        raise UserError(f"--average {text}: give a number of tokens, or several with commas") from None
    wrong = fault(Positive, average)
    if wrong:
        raise UserError(f"--average {text}: {wrong}")
    return average


def refuse_twins(entrants):
    """UserError for two names of one method at one budget, like asap@layer=2 where 2 is the default."""
    first_with = {}
    for entrant in entrants:
        first = first_with.setdefault((entrant.average, repr(entrant.pruner)), entrant)
        if first is not entrant and first.pruner == entrant.pruner:
            raise UserError(f"{first.label} and {entrant.label} are the same: give it once")


def fitted(entrants, prompt):
    """{label: the pruner for a prompt or shape, or the error that forbids it}"""
    return {entrant.label: entrant.on(prompt) for entrant in entrants}
