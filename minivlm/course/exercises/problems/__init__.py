"""The exercises, in the order in which they are to be done."""

from minivlm.course.exercises.problems import bimask, cached, costs, diverse, merging, network
from minivlm.course.exercises.problems import own, ranking, thresholds

IN_ORDER = (
    *network.PROBLEMS,
    *cached.PROBLEMS,
    *ranking.PROBLEMS,
    *diverse.PROBLEMS,
    *bimask.PROBLEMS,
    *merging.PROBLEMS,
    *thresholds.PROBLEMS,
    *costs.PROBLEMS,
    *own.PROBLEMS,
)
PROBLEMS = {problem.name: problem for problem in IN_ORDER}
