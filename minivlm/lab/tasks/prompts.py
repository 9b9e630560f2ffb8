"""The text that a model reads with a picture: what LLaVA-1.5's evaluations ask, and what lmms-eval asks.

Each function takes a Question as the file has it and gives the text; the template of the conversation comes around it.
LLaVA-1.5 has no evaluation for DocVQA, ChartQA and captions: both rules have lmms-eval's.
"""

SHORT = "\nAnswer the question using a single word or phrase."
ONE_WORD = "\nAnswer the question with a single word."
LETTER = "\nAnswer with the option's letter from the given choices directly."
CAPTION = "Provide a one-sentence caption for the provided image."
YES_OR_NO = " Please answer yes or no."                    # the end of MME's questions
LETTERS = "ABCDEFGH"


def short(question):
    """POPE, GQA, VQAv2, DocVQA: a word or a phrase."""
    return question.question + SHORT


def text_vqa(question):
    """The question, and the words that were read in the picture, if there are such hints."""
    return question.question + ocr(question.hint) + SHORT


def text_vqa_lmms(question):
    """The same with one capital, at the front: a trap of lmms-eval, where names lose theirs."""
    return question.question.capitalize() + ocr(question.hint) + SHORT


def ocr(hint):
    """The line of hints; "" without any."""
    return f"\nReference OCR token: {hint}" if hint else ""


def mme(question):
    """Without its own end."""
    return question.question.replace(YES_OR_NO, "") + SHORT


def science_qa(question):
    """The context, if there is one, the question and the choices."""
    context = f"Context: {question.hint}\n" if question.hint else ""
    return f"{context}{question.question}\n{choices(question)}{LETTER}"


def mm_bench(question):
    """The hint, if there is one, on a line of its own."""
    hint = f"{question.hint}\n" if question.hint else ""
    return f"{hint}{question.question}\n{choices(question)}{LETTER}"


def mm_bench_lmms(question):
    """All in one line but for the choices."""
    hint = f"{question.hint} " if question.hint else ""
    return f"{hint}{question.question} There are several options:\n{choices(question)}\n{LETTER}"


def choices(question):
    """"A. cat", "B. dog", one per line."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices))


def one_word(question):
    """ChartQA."""
    return question.question + ONE_WORD


def caption(question):
    """COCO captions."""
    return CAPTION
