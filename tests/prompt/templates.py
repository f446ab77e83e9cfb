"""Chat templates with the structure of published families, written for these tests, with tokenizers.

The templates are in `chat_templates/`; each has the structure of the published one of its name (what
stands around a message, what is trimmed, where rules go, how an answer is asked for and ended),
and says nothing that it says. The tokenizers are trained here on a few sentences: byte-level ones as GPT-2
and Qwen split words, and three in the manner of SentencePiece (Llama, Mistral, Gemma).
"""

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from tests.model.tiny import WORDS

_FOLDER = Path(__file__).parent / "chat_templates"

Kind = Literal["gpt2", "qwen", "llama", "metaspace", "gemma"]


@dataclass(frozen=True)
class Family:
    """A chat template, its tokenizer, and what has to be true of both.

    `specials` are its special tokens, `meaningful` added ones that are none (Qwen's <think>);
    `eos`, `bos` two of the specials. `answer` is what the model has to produce for an earlier
    answer, the answer itself in place of {}, and `last` the same for a last one, where that
    is another; both begin behind the generation prompt. `trims` and `trims_last` say what the
    template takes from the sides of an answer. `image` is what stands for a picture, and
    `native` says that the template writes it. `folds` says that it takes no system role, so that
    the rules stand in the first question. `earlier` says that earlier answers are learned in
    the same sequence. `opened` is what only the generation prompt ends with, `added` the end
    token that the template does not write after a last answer. `eats_blanks` are specials
    that take in the white space behind them.
    """

    name: str
    specials: tuple[str, ...]
    eos: str
    bos: str | None = None
    answer: str = "{}<|im_end|>"
    last: str | None = None
    trims: Literal["", "lines", "all"] = ""
    trims_last: Literal["", "lines", "all"] | None = None
    kind: Kind = "gpt2"
    image: str = "<image>"
    native: bool = False
    folds: bool = False
    earlier: bool = True
    opened: str = ""
    added: str = ""
    meaningful: tuple[str, ...] = ()
    eats_blanks: tuple[str, ...] = ()

    @property
    def template(self) -> str:
        return (_FOLDER / f"{self.name}.jinja").read_text(encoding="utf-8")

    def produced(self, answer: str, *, last: bool) -> str:
        """What the model has to produce for `answer`."""
        trims = self.trims if self.trims_last is None or not last else self.trims_last
        answer = {"": answer, "lines": answer.lstrip("\n"), "all": answer.strip()}[trims]
        return (self.last if last and self.last else self.answer).replace("{}", answer)


_IM = ("<|im_start|>", "<|im_end|>")
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_INST = ("<s>", "</s>", "[INST]", "[/INST]")
_TURN = ("<bos>", "<start_of_turn>", "<end_of_turn>")
_PHI = ("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
_THINK = ("<think>", "</think>")
_NO_THOUGHT = "<think>\n\n</think>\n\n"
_DEEP = ("<|begin|>", "<|finish|>", "<|User|>", "<|Assistant|>")
_COMMAND = tuple(f"<|{name}_TOKEN|>" for name in ("CHATBOT", "USER", "SYSTEM"))
_COMMAND_TURN = ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>")
_GLM = ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>")
_ROLES = ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>")
_VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")

_ALL = [
    Family("chatml", _IM, "<|im_end|>"),
    Family("qwen2", _IM, "<|im_end|>", kind="qwen"),
    Family(
        "qwen2_vl", (*_IM, *_VISION), "<|im_end|>", kind="qwen", image="<|image_pad|>", native=True
    ),
    Family(
        "qwen3",
        _IM,
        "<|im_end|>",
        last=_NO_THOUGHT + "{}<|im_end|>",
        trims_last="lines",
        kind="qwen",
        earlier=False,
        meaningful=_THINK,
    ),
    Family(
        "qwen3_thinking",
        _IM,
        "<|im_end|>",
        last="\n</think>\n\n{}<|im_end|>",
        trims_last="lines",
        kind="qwen",
        earlier=False,
        meaningful=_THINK,
    ),
    Family(
        "qwq",
        _IM,
        "<|im_end|>",
        last="\n</think>\n\n{}<|im_end|>",
        trims="lines",
        kind="qwen",
        earlier=False,
        opened="<think>\n",
        meaningful=_THINK,
    ),
    Family("llama2", ("<s>", "</s>"), "</s>", "<s>", answer=" {} </s>", trims="all", kind="llama"),
    Family(
        "llama3",
        ("<|begin_of_text|>", *_HEADERS),
        "<|eot_id|>",
        "<|begin_of_text|>",
        answer="{}<|eot_id|>",
        trims="all",
        kind="qwen",
    ),
    Family(
        "llama31",
        ("<|begin_of_text|>", *_HEADERS),
        "<|eot_id|>",
        "<|begin_of_text|>",
        answer="{}<|eot_id|>",
        trims="all",
        kind="qwen",
    ),
    Family(
        "mistral_v1", ("<s>", "</s>"), "</s>", "<s>", answer=" {}</s>", kind="llama", folds=True
    ),
    Family(
        "mistral_v3", _INST, "</s>", "<s>", answer=" {}</s>", trims="all", kind="llama", folds=True
    ),
    Family("mistral_tekken", _INST, "</s>", "<s>", answer="{}</s>", kind="qwen", folds=True),
    Family(
        "mistral_v7",
        (*_INST, "[IMG]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        "</s>",
        "<s>",
        answer="{}</s>",
        kind="qwen",
        image="[IMG]",
        native=True,
    ),
    Family(
        "gemma2",
        _TURN,
        "<end_of_turn>",
        "<bos>",
        answer="{}<end_of_turn>",
        trims="all",
        kind="gemma",
        folds=True,
    ),
    Family(
        "gemma3",
        (*_TURN, "<start_of_image>"),
        "<end_of_turn>",
        "<bos>",
        answer="{}<end_of_turn>",
        trims="all",
        kind="gemma",
        image="<start_of_image>",
        native=True,
    ),
    Family(
        "phi3",
        ("<s>", *_PHI),
        "<|endoftext|>",
        "<s>",
        answer="{}<|end|>",
        kind="llama",
        folds=True,
        eats_blanks=_PHI[1:],
    ),
    Family(
        "phi35", _PHI, "<|endoftext|>", answer="{}<|end|>", kind="metaspace", eats_blanks=_PHI[1:]
    ),
    Family("phi4", (*_IM, "<|im_sep|>"), "<|im_end|>", kind="qwen"),
    Family("phi4_mini", _PHI, "<|endoftext|>", answer="{}<|end|>", kind="qwen"),
    Family("vicuna", ("<s>", "</s>"), "</s>", answer=" {}</s>", kind="llama"),
    Family("zephyr", ("<s>", "</s>"), "</s>", answer="{}</s>", kind="llama"),
    Family("smollm2", _IM, "<|im_end|>"),
    Family(
        "deepseek_v2", _DEEP[:2], "<|finish|>", "<|begin|>", answer=" {}<|finish|>", kind="qwen"
    ),
    Family("deepseek_v3", _DEEP, "<|finish|>", "<|begin|>", answer="{}<|finish|>", kind="qwen"),
    Family(
        "deepseek_v31",
        _DEEP,
        "<|finish|>",
        "<|begin|>",
        answer="{}<|finish|>",
        kind="qwen",
        meaningful=_THINK,
    ),
    Family(
        "deepseek_r1",
        _DEEP,
        "<|finish|>",
        "<|begin|>",
        answer="{}<|finish|>",
        last="\n</think>\n\n{}<|finish|>",
        kind="qwen",
        earlier=False,
        opened="<think>\n",
        meaningful=_THINK,
    ),
    Family(
        "deepseek_coder",
        ("<|begin|>", "<|finish|>", "<|EOT|>"),
        "<|EOT|>",
        "<|begin|>",
        answer="\n{}\n<|EOT|>",
    ),
    Family("granite", _ROLES, "<|end_of_text|>", answer="{}<|end_of_text|>"),
    Family(
        "command_r",
        (*_COMMAND_TURN, *_COMMAND),
        "<|END_OF_TURN_TOKEN|>",
        "<BOS_TOKEN>",
        answer="{}<|END_OF_TURN_TOKEN|>",
        trims="all",
    ),
    Family("glm4", _GLM, "<|endoftext|>", answer="{}<|user|>", kind="qwen", added="<|user|>"),
    Family(
        "glm45",
        _GLM,
        "<|endoftext|>",
        answer="\n<think></think>\n{}<|user|>",
        trims="all",
        kind="qwen",
        added="<|user|>",
        meaningful=_THINK,
    ),
    Family(
        "openchat",
        ("<s>", "<|end_of_turn|>"),
        "<|end_of_turn|>",
        "<s>",
        answer=" {}<|end_of_turn|>",
        kind="metaspace",
    ),
    Family("orion", ("<s>", "</s>"), "</s>", "<s>", answer="{}</s>", kind="metaspace", folds=True),
    Family("alpaca", ("<s>", "</s>"), "</s>", answer="{}</s>", earlier=False, added="</s>"),
    Family("ling", ("<|end|>",), "<|end|>", answer="{}<|end|>", earlier=False, added="<|end|>"),
    Family("llava", ("<s>", "</s>"), "</s>", answer=" {}</s>", kind="llama", native=True),
    Family(
        "smolvlm",
        ("<|im_start|>", "<end_of_utterance>"),
        "<end_of_utterance>",
        answer=" {}<end_of_utterance>",
        native=True,
    ),
]
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}

# Enough for a few merges that extend over the end of a template's header.
_SENTENCES = [
    WORDS,
    "It is red.\n\nAnd this?\n\n\n  It is blue, too.\n \n",
    '</b>\n</a>"...\n\n### (see: "no") --- ?!\n',
]
# How Qwen and Llama 3 split text before the merges: a newline may join what comes before it.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def tokenizer_of(family: Family) -> PreTrainedTokenizerFast:
    """The tokenizer of `family` with its template. It must not be changed."""
    backend = _bytes(family.kind) if family.kind in {"gpt2", "qwen"} else _pieces(family.kind)
    # Padding and the picture are special in all, so that people can try to write them.
    specials = dict.fromkeys(["<pad>", *family.specials, family.image])
    backend.add_special_tokens(
        [
            AddedToken(word, normalized=False, special=True, rstrip=word in family.eats_blanks)
            for word in specials
        ]
    )
    backend.add_tokens([AddedToken(word, normalized=False) for word in family.meaningful])
    if family.kind == "gemma":
        # Runs of white space are added tokens there, and ordinary text all the same.
        runs = ["\n" * n for n in range(2, 5)] + ["\u2581" * n for n in range(2, 5)]
        backend.add_tokens([AddedToken(word, normalized=False) for word in runs])
    built = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=family.eos, bos_token=family.bos, pad_token="<pad>"
    )
    built.chat_template = family.template
    return built


def _bytes(kind: Kind) -> Tokenizer:
    """A byte-level BPE."""
    backend = Tokenizer(models.BPE())
    if kind == "gpt2":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(_SENTENCES * 3, trainer)
    return backend


def _pieces(kind: Kind) -> Tokenizer:
    """A BPE with blanks as \u2581 and bytes for what it does not know."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, show_progress=False)
    learned.train_from_iterator(_SENTENCES * 3, trainer)
    model = json.loads(learned.to_str())["model"]
    # A newline is a byte in Llama's vocabulary.
    words = [word for word in model["vocab"] if "\n" not in word]
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    backend = Tokenizer(
        models.BPE(
            vocab={name: number for number, name in enumerate(names)},
            merges=[tuple(pair) for pair in model["merges"] if "\n" not in "".join(pair)],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    blanks = normalizers.Replace(" ", "\u2581")
    if kind == "llama":
        # It puts a blank before the first word of each stretch between special tokens.
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), blanks])
    elif kind == "metaspace":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        backend.normalizer = blanks
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    # The published ones also remove a blank at the beginning; here decoding loses nothing.
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return backend


def spoken(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """The text of `ids`, with every character and every special token."""
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return unicodedata.normalize("NFC", text)
