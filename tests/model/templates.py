"""Chat templates in the manner of the families that people load: their shapes, not their text.

Each row: template, special tokens, the token that ends an answer, the BOS token
if any, and what the model has to produce for the answer "It is red.".
"""

from typing import NamedTuple

from tests.model import tiny


class Family(NamedTuple):
    template: str
    specials: list[str]
    eos: str
    bos: str | None
    produced: str


_LOOP = "{% for m in messages %}"
_IM = ["<|im_start|>", "<|im_end|>"]

_COMMAND_ROLES = ["<|CHATBOT_TOKEN|>", "<|USER_TOKEN|>", "<|SYSTEM_TOKEN|>"]

FAMILIES: dict[str, Family] = {
    "chatml": Family(tiny.CHATML, [*_IM, "<image>"], "<|im_end|>", None, "It is red.<|im_end|>"),
    "llama3": Family(
        tiny.LLAMA3,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|eot_id|>",
        "<|begin_of_text|>",
        "It is red.<|eot_id|>",
    ),
    "gemma": Family(
        tiny.GEMMA,
        ["<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>"],
        "<end_of_turn>",
        "<bos>",
        "It is red.<end_of_turn>",
    ),
    "vicuna": Family(tiny.LLAVA, ["<s>", "</s>", "<image>"], "</s>", None, " It is red.</s>"),
    "smolvlm": Family(
        tiny.SMOLVLM,
        ["<|im_start|>", "<end_of_utterance>", "<image>"],
        "<end_of_utterance>",
        None,
        " It is red.<end_of_utterance>",
    ),
    "mistral": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% else %}"
        "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
        ["<s>", "</s>", "[INST]", "[/INST]"],
        "</s>",
        "<s>",
        " It is red.</s>",
    ),
    "zephyr": Family(
        _LOOP + "<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ["</s>", "<|user|>", "<|assistant|>", "<|system|>"],
        "</s>",
        None,
        "It is red.</s>",
    ),
    "phi3": Family(
        _LOOP + "{{ '<|' + m.role + '|>' + '\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        ["<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
        "<|endoftext|>",
        None,
        "It is red.<|end|>",
    ),
    "glm4": Family(
        "[gMASK]<sop>" + _LOOP + "<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>"],
        "<|endoftext|>",
        None,
        "It is red.<|user|>",
    ),
    "llama2": Family(
        "{% if messages[0].role == 'system' %}{% set s = '<<SYS>>\n' + messages[0].content + "
        "'\n<</SYS>>\n\n' %}{% set rest = messages[1:] %}{% else %}{% set s = '' %}"
        "{% set rest = messages %}{% endif %}{% for m in rest %}"
        "{% set c = s + m.content if loop.first else m.content %}{% if m.role == 'user' %}"
        "{{ bos_token + '[INST] ' + c | trim + ' [/INST]' }}{% else %}"
        "{{ ' ' + c | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
        ["<s>", "</s>"],
        "</s>",
        "<s>",
        " It is red. </s>",
    ),
    "qwen3": Family(
        _LOOP + "{% set last = loop.last %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' and last %}<think>\n\n</think>\n\n{% endif %}"
        "{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        [*_IM, "<think>", "</think>"],
        "<|im_end|>",
        None,
        "It is red.<|im_end|>",
    ),
    "deepseek": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
        "{% elif m.role == 'assistant' %}<|Assistant|>{{ m.content }}{{ eos_token }}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|Assistant|>{% endif %}",
        ["<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>"],
        "<|end|>",
        "<|begin|>",
        "It is red.<|end|>",
    ),
    "granite": Family(
        _LOOP + "<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>"
        "{% endif %}",
        ["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"],
        "<|end_of_text|>",
        None,
        "It is red.<|end_of_text|>",
    ),
    "command": Family(
        "{{ bos_token }}{% for m in messages %}<|START_OF_TURN_TOKEN|>"
        "<|{{ 'CHATBOT' if m.role == 'assistant' else m.role | upper }}_TOKEN|>"
        "{{ m.content | trim }}<|END_OF_TURN_TOKEN|>{% endfor %}"
        "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
        ["<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", *_COMMAND_ROLES],
        "<|END_OF_TURN_TOKEN|>",
        "<BOS_TOKEN>",
        "It is red.<|END_OF_TURN_TOKEN|>",
    ),
    "pixtral": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]"
        "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
        "{% if p.type == 'image' %}[IMG]{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
        "[/INST]{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
        ["<s>", "</s>", "[INST]", "[/INST]", "[IMG]"],
        "</s>",
        "<s>",
        "It is red.</s>",
    ),
}
