"""The benchmarks by name: file, reader, metric, prompts and lengths of answers, official and lmms-eval's."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from minivlm.lab.tasks import prompts
from minivlm.lab.tasks.formats.captions import read_captions
from minivlm.lab.tasks.formats.choices import read_mmbench, read_scienceqa
from minivlm.lab.tasks.formats.words import read_chartqa, read_docvqa, read_gqa, read_hints, read_textvqa, read_vqav2
from minivlm.lab.tasks.formats.yes_no import read_mme, read_pope
from minivlm.lab.tasks.metrics.anls import Anls
from minivlm.lab.tasks.metrics.base import RULES
from minivlm.lab.tasks.metrics.choice import MmBench, ScienceQa
from minivlm.lab.tasks.metrics.cider import Cider
from minivlm.lab.tasks.metrics.exact import Exact
from minivlm.lab.tasks.metrics.mme import Mme
from minivlm.lab.tasks.metrics.pope import Pope
from minivlm.lab.tasks.metrics.relaxed import Relaxed
from minivlm.lab.tasks.metrics.vqa import TextVqa, VqaV2
from pruning.base import UserError


@dataclass(frozen=True)
class Task:
    """One benchmark. prompts and lengths (tokens of an answer at most) have one entry for each of RULES."""

    file: str
    read: Callable
    metric: type
    prompts: tuple
    lengths: tuple


SHORT = (prompts.short, prompts.short)
TEXT_VQA = (prompts.text_vqa, prompts.text_vqa_lmms)
MM_BENCH = (prompts.mm_bench, prompts.mm_bench_lmms)
PROBLEMS = "problems.json, with pid_splits.json next to it"
CHARTS = "test_human.json or test_augmented.json, or their folder"
CAPTIONS = "captions_val2014.json, or Karpathy's dataset_coco.json"
TASKS = {
    "pope": Task("coco_pope_random.json, or a folder of the three", read_pope, Pope, SHORT, (128, 128)),
    "gqa": Task("testdev_balanced_questions.json", read_gqa, Exact, SHORT, (128, 16)),
    "vqav2": Task("v2_mscoco_val2014_annotations.json", read_vqav2, VqaV2, SHORT, (128, 16)),
    "textvqa": Task("TextVQA_0.5.1_val.json", read_textvqa, TextVqa, TEXT_VQA, (128, 1024)),
    "scienceqa": Task(PROBLEMS, read_scienceqa, ScienceQa, (prompts.science_qa,) * 2, (1024, 16)),
    "mme": Task("the folder of the release", read_mme, Mme, (prompts.mme,) * 2, (128, 16)),
    "mmbench": Task("mmbench_dev_20230712.tsv", read_mmbench, MmBench, MM_BENCH, (1024, 1024)),
    "docvqa": Task("val_v1.0.json", read_docvqa, Anls, SHORT, (32, 32)),
    "chartqa": Task(CHARTS, read_chartqa, Relaxed, (prompts.one_word,) * 2, (16, 16)),
    "coco-caption": Task(CAPTIONS, read_captions, Cider, (prompts.caption,) * 2, (64, 64)),
}


@dataclass(frozen=True)
class Benchmark:
    """The questions of a task, as the file has them, and how they are asked and scored."""

    name: str
    questions: list
    metric: object
    rules: str = RULES[0]

    def prompts(self):
        """The questions with their prompts."""
        prompt = TASKS[self.name].prompts[RULES.index(self.rules)]
        return [replace(question, question=prompt(question)) for question in self.questions]

    @property
    def length(self):
        """The most tokens of an answer."""
        return TASKS[self.name].lengths[RULES.index(self.rules)]

    def of(self, questions):
        """The same task with these of its questions."""
        metric = TASKS[self.name].metric(questions, self.rules)
        return replace(self, questions=questions, metric=metric)

    def first(self, count):
        """With its first `count` questions, and those that count together with one of them; all without a count."""
        if count is None or count >= len(self.questions):
            return self
        kept = {i for unit in self.metric.units() if unit[0] < count for i in unit}
        return self.of([self.questions[i] for i in sorted(kept)])


def opened(name, data, rules=RULES[0], hints=None):
    """The Benchmark of that name whose file, or folder of files, is `data`.

    hints: a file of words that were read in TextVQA's pictures.
    """
    if hints and name != "textvqa":
        raise UserError(f"--ocr is for textvqa, whose prompt may have hints: leave it out for {name}")
    task = TASKS[name]
    questions = task.read(data)
    if hints:
        questions = hinted(questions, hints)
    return Benchmark(name, questions, task.metric(questions, rules), rules)


def hinted(questions, path):
    """TextVQA's questions with the words of their pictures, "" for a picture without any. UserError if none has words.
    """
    hint_of = read_hints(path)
    with_hints = []
    for question in questions:
        name = question.image.removesuffix(".jpg")
        with_hints.append(replace(question, hint=hint_of.get(name, "")))
    if not any(question.hint for question in with_hints):
        raise UserError(f"{path} has no words of the task's pictures: is it of another split?")
    return with_hints
