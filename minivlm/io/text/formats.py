"""Prompt formats by name: how each family of models writes a conversation.

For checkpoints without a template of their own.
"""

from dataclasses import dataclass, replace

from pruning.base import UserError

IMAGE = "<image>"
ANSWER = "\ue000\ue001\ue000"          # in place of an answer while a conversation is cut at its answers


class Template:
    """How a conversation is written: a subclass has a `name` and `text`, and the rest follows from it."""

    def text(self, turns, images=1):
        """The text of turns (question, answer), the last answer None if the model shall give it.

        See `text.prompt`.
        """
        raise NotImplementedError

    def with_system(self, system):
        """The same template with this system message. Raises UserError if it has no place for one."""
        raise UserError(f"the template {self.name} has no place for a system message: leave --system out, or choose "
                        f"a --template")

    def around(self, turns, images=1):
        """The texts before, between and after the answers of whole turns: one more than there are answers."""
        turns = [(question, None if answer is None else ANSWER) for question, answer in turns]
        texts = self.text(turns, images).split(ANSWER)
        if len(texts) != 1 + sum(answer is not None for _, answer in turns):
            raise UserError(f"{self.name} does not write each answer once, so no chat can go on with it: choose a "
                            f"--template")
        return texts

    def following(self, turns, question):
        """What comes between the last answer of these turns and the answer to one more question. Raises UserError."""
        images = sum(question.count(IMAGE) for question, _ in turns)
        more = question.count(IMAGE)
        *earlier, (last_question, _) = turns
        before = self.text([*earlier, (last_question, None)], images)
        whole = self.text([*earlier, (last_question, ANSWER), (question, None)], images + more)
        read, _, rest = whole.partition(ANSWER)
        if not read.startswith(before) or not rest:
            raise UserError(f"{self.name} writes earlier turns otherwise than they were asked: begin a new chat, or "
                            f"choose a --template")
        return rest

    def __str__(self):
        return self.name


def marked(questions, images):
    """The questions with the marks of `images` pictures, each on its own line before the first one, unless they
    hold them."""
    marks = sum(question.count(IMAGE) for question in questions)
    if images and not marks:
        return [f"{IMAGE}\n" * images + questions[0], *questions[1:]]
    if marks != images:
        raise UserError(f"the text has {marks} {IMAGE} marks for {images} pictures: write one mark per picture, or "
                        "none")
    return questions


@dataclass(frozen=True)
class Format(Template):
    """A template by its parts, with {} where what is said goes."""

    name: str
    question: str
    answer: str
    close: str                                     # after an answer
    between: str = ""                              # before a further question
    system: str = ""
    system_turn: str = ""                          # the system message; "": there is no place for one

    def text(self, turns, images=1):
        """The text of the turns."""
        questions = marked([question for question, _ in turns], images)
        answers = ["" if answer is None else self.answer.format(answer) + self.close for _, answer in turns]
        asked = [self.question.format(question) + answer for question, answer in zip(questions, answers)]
        asked = self.between.join(asked)
        return (self.system_turn.format(self.system) if self.system else "") + asked

    def with_system(self, system):
        """The same format with another system message."""
        if not self.system_turn:
            return super().with_system(system)
        return replace(self, system=system, name=f"{self.name} with the system message {system!r}")


def by_name(*formats):
    """{name: Format}"""
    return {format.name: format for format in formats}


HUMAN = ("A chat between a curious human and an artificial intelligence assistant. "
         "The assistant gives helpful, detailed, and polite answers to the human's questions.")
SEES = ("You are a helpful language and vision assistant. "
        "You are able to understand the visual content that the user provides, "
        "and assist the user with a variety of tasks using natural language.")
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"


def _vicuna(name, system):
    return Format(name, "USER: {} ASSISTANT:", " {}", "</s>", system=system, system_turn="{} ")


def _llama3(name, system):
    question = HEADER.format("user") + "{}<|eot_id|>" + HEADER.format("assistant")
    system_turn = HEADER.format("system") + "{}<|eot_id|>"
    return Format(name, question, "{}", "<|eot_id|>", system=system, system_turn=system_turn)


LLAVA_HF = Format("llava-hf", "USER: {} ASSISTANT:", " {}", " ")       # chat template of llava-1.5-*-hf
LLAVA_V1 = _vicuna("llava_v1", HUMAN)              # LLaVA's own chat, and llava-v1.6-vicuna-*-hf
VICUNA_V1 = _vicuna("vicuna_v1", HUMAN.replace("human", "user"))       # its evaluations
MISTRAL = Format("mistral", "[INST] {} [/INST]", " {}", "</s>", " ")   # llava-v1.6-mistral-7b-hf
INSTRUCT = Format("mistral_instruct", "[INST] {} [/INST]", " {} ", "</s>")         # the same weights in LLaVA's chat
LLAMA_3 = _llama3("llama-3", "")                   # llama3-llava-next-8b-hf
LLAVA_LLAMA_3 = _llama3("llava_llama_3", SEES)     # its original
PHI_3 = Format("phi-3", "<|user|>\n{}<|end|>\n<|assistant|>\n", "{}", "<|end|>\n",
               system_turn="<|system|>\n{}<|end|>\n")
FORMATS = by_name(LLAVA_HF, LLAVA_V1, VICUNA_V1, MISTRAL, INSTRUCT, LLAMA_3, LLAVA_LLAMA_3, PHI_3)
