"""The prompts of InternVL: each turn between <|im_start|> and <|im_end|>, the speaker's name on its first line."""

END = "<|im_end|>"
# What the assistant is told to be: the sentences of training, in Chinese, that it is called InternVL, and by whom it was made.
INTERNVL2 = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
INTERNVL2_5 = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"


def _chatml(system, close):
    """(what stands before all, a question, the answer after it); `close` ends each turn."""
    start = f"<|im_start|>system\n{system}{close}" if system else ""
    return start, f"<|im_start|>user\n{{}}{close}<|im_start|>assistant\n", f"{{}}{close}"


CHATML = {                                         # by the name that config.json gives the template
    "internlm2-chat": _chatml(INTERNVL2, END),
    "Hermes-2": _chatml(INTERNVL2, END),
    "internvl2_5": _chatml(INTERNVL2_5, END + "\n"),
    "internvl-hf": _chatml("", END + "\n"),        # chat template of the InternVL*-hf checkpoints
}
