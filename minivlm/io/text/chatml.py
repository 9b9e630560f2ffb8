"""The prompts of InternVL and Qwen2: each turn between <|im_start|> and <|im_end|>, first the speaker's name."""

from minivlm.io.text.formats import Format, by_name

CONTEXT = "<IMG_CONTEXT>"                          # InternVL's token whose place a visual token takes
END = "<|im_end|>"
# System messages of InternVL's training, in Chinese: that it is called InternVL, and whose it is.
INTERNVL2 = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
INTERNVL2_5 = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"


def _chatml(name, system, close):
    """`close` ends each turn."""
    question = f"<|im_start|>user\n{{}}{close}<|im_start|>assistant\n"
    return Format(name, question, "{}", close, system=system, system_turn=f"<|im_start|>system\n{{}}{close}")


CHATML = by_name(                                  # the name that config.json gives the template
    _chatml("internlm2-chat", INTERNVL2, END),
    _chatml("Hermes-2", INTERNVL2, END),
    _chatml("internvl2_5", INTERNVL2_5, END + "\n"),
    _chatml("internvl-hf", "", END + "\n"),        # chat template of the InternVL*-hf checkpoints
)
QWEN = by_name(
    # TRAP: the card of llava-v1.6-34b-hf shows the first of these, the template in its folder is "chatml"
    _chatml("chatml_direct", "Answer the questions.", END),            # the original llava-v1.6-34b
    _chatml("qwen_1_5", "You are a helpful assistant.", END + "\n"),   # the original llava-next-72b
    _chatml("chatml", "", END + "\n"),                                 # their -hf checkpoints
)
