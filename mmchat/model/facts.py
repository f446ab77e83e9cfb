"""What memory depends on: the sizes of a model's parts, read without torch.

The shapes in the headers of the weights say most of it, and exactly; `config.json` says what
shapes cannot (heads, tied words, the tokens of a picture). Where the tensors of a text block are
named in a way that is not known here, its widths are estimated from their shapes, and it is said.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmchat.errors import ModelError
from mmchat.model.checkpoint import TensorInfo, read_config, tensors, weight_files

Kind = Literal["visual_prefix", "stock", "text"]

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)$")
_PROJECTOR = re.compile(r"multi_modal_projector|connector|merger|projector|resampler")
_VISION = re.compile(r"vision|visual|vit\.|tower|image")
_EMBEDDING = re.compile(r"(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")

QUERY = {"q_proj", "query", "wq", "q"}
KEY = {"k_proj", "v_proj", "key", "value", "wk", "wv", "k", "v"}
FUSED = {"qkv_proj", "query_key_value", "c_attn", "Wqkv", "qkv", "in_proj"}
GATE = {"gate_proj", "w1", "gate"}
GATE_UP = {"gate_up_proj"}
WIDEN = {"up_proj", "w3", "fc1", "c_fc", "dense_h_to_4h", "fc_in"} | GATE | GATE_UP
NARROW = {"down_proj", "w2", "fc2", "dense_4h_to_h", "fc_out", "mlp.c_proj"}
OUT = {"o_proj", "wo", "dense", "out_proj", "attn.c_proj"}


@dataclass(frozen=True, slots=True)
class Linear:
    """The linear layers of one name in the text blocks: `count` of them, inputs -> outputs."""

    name: str
    inputs: int
    outputs: int
    count: int

    @property
    def elements(self) -> int:
        """Of all of them."""
        return self.inputs * self.outputs * self.count


@dataclass(frozen=True, slots=True)
class VisionFacts:
    """The vision encoder. `patches` features of size `width` come out for each picture."""

    elements: int
    layers: int
    width: int
    intermediate: int
    patches: int
    image_size: int

    @property
    def block_elements(self) -> int:
        """Of one block: attention's four matrices and the MLP's two."""
        return 4 * self.width**2 + 2 * self.width * self.intermediate


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The sizes of a model. All counts are of weights, not bytes.

    `attention` and `key_value` are the widths of queries and keys, `intermediate` that
    of the MLP, `norms` how many norms of the text's width a block has, `head_norms` whether
    queries and keys have their own. `blocks_other` is what the blocks have beside `linears`;
    `head` is 0 where it is the embedding. `prefix` is how many tokens a picture becomes, 0 where
    its size decides. `estimated` says what is not known but estimated.
    """

    kind: Kind
    model_type: str
    hidden: int
    layers: int
    attention: int
    key_value: int
    intermediate: int
    gated: bool
    norms: int
    head_norms: bool
    vocabulary: int
    linears: tuple[Linear, ...]
    blocks_other: int
    embedding: int
    head: int
    other: int
    projector: int
    projector_matrices: int
    vision: VisionFacts | None
    prefix: int
    largest: int
    """Elements of the largest tensor."""
    file_bytes: int
    window: bool
    """Whether some layers look at a window only."""
    context: int
    """The most tokens of a conversation, as the configuration tells; 0 where it does not."""
    estimated: tuple[str, ...] = ()

    @property
    def block_matrices(self) -> int:
        """Weights of the text blocks' linear layers: what 4-bit packs."""
        return sum(linear.elements for linear in self.linears)

    @property
    def elements(self) -> int:
        """All weights."""
        vision = self.vision.elements if self.vision is not None else 0
        text = self.block_matrices + self.blocks_other + self.embedding + self.head + self.other
        return text + self.projector + vision


def read_facts(folder: Path) -> ModelFacts:
    """The facts of a model folder; raises ModelError where its files are missing or damaged."""
    size = sum(file.stat().st_size for file in weight_files(folder))
    return facts_of(read_config(folder), tensors(folder), size)


def facts_of(
    config: dict[str, Any], found: Iterable[TensorInfo], file_bytes: int = 0
) -> ModelFacts:
    """The facts of a model from its config.json and the shapes of its weights.

    Raises ModelError where there is no text model among them.
    """
    parts = _sorted(found)
    raw = config.get("text_config")
    text: dict[str, Any] = raw if isinstance(raw, dict) else config
    if parts.embedding is None or not parts.blocks:
        raise ModelError(
            f"The weights hold no text model that mmchat knows ({config.get('model_type')}), so their "
            "memory cannot be told: load the model to see."
        )
    vocabulary, hidden = parts.embedding.shape
    linears, norms, head_norms, other = _block(parts.blocks, hidden)
    layers = 1 + max(number for number, _, _ in parts.blocks)
    estimated: list[str] = []
    named = {linear.name: linear for linear in linears}
    attention, key_value = _attention(named, text, hidden, estimated)
    intermediate, gated = _mlp(named, hidden, estimated)
    tied = _tied(config, text, parts.head is not None)
    kind: Kind = "text"
    if config["model_type"] == "visual_prefix":
        kind = "visual_prefix"
    elif parts.vision or parts.projector:
        kind = "stock"
    vision = _vision(config, parts.vision)
    return ModelFacts(
        kind=kind,
        model_type=str(config["model_type"]),
        hidden=hidden,
        layers=layers,
        attention=attention,
        key_value=key_value,
        intermediate=intermediate,
        gated=gated,
        norms=norms,
        head_norms=head_norms,
        vocabulary=vocabulary,
        linears=linears,
        blocks_other=other,
        embedding=parts.embedding.elements,
        head=0 if tied or parts.head is None else parts.head.elements,
        other=sum(tensor.elements for tensor in parts.other),
        projector=sum(tensor.elements for tensor in parts.projector),
        projector_matrices=sum(t.elements for t in parts.projector if len(t.shape) > 1),
        vision=vision,
        prefix=_prefix(config, vision),
        largest=parts.largest,
        file_bytes=file_bytes,
        context=_number(text, "max_position_embeddings", "n_positions", "n_ctx"),
        window=bool(text.get("sliding_window")) and text.get("use_sliding_window", True) is True,
        estimated=tuple(estimated),
    )


@dataclass(slots=True)
class _Parts:
    blocks: list[tuple[int, str, TensorInfo]]
    vision: list[TensorInfo]
    projector: list[TensorInfo]
    other: list[TensorInfo]
    embedding: TensorInfo | None = None
    head: TensorInfo | None = None
    largest: int = 0


def _sorted(found: Iterable[TensorInfo]) -> _Parts:
    parts = _Parts([], [], [], [])
    for tensor in found:
        parts.largest = max(parts.largest, tensor.elements)
        block = _BLOCK.search(tensor.name)
        if _PROJECTOR.search(tensor.name):
            parts.projector.append(tensor)
        elif _VISION.search(tensor.name):
            parts.vision.append(tensor)
        elif block is not None:
            parts.blocks.append((int(block[1]), block[2], tensor))
        elif _EMBEDDING.search(tensor.name) and len(tensor.shape) == 2:
            parts.embedding = tensor
        elif _HEAD.search(tensor.name):
            parts.head = tensor
        else:
            parts.other.append(tensor)
    return parts


def _block(
    blocks: Sequence[tuple[int, str, TensorInfo]], hidden: int
) -> tuple[tuple[Linear, ...], int, bool, int]:
    """(linear layers by name, norms of a block, whether heads have norms, all other weights)"""
    counts: Counter[tuple[str, int, int]] = Counter()
    norms: Counter[str] = Counter()
    head_norms = False
    other = 0
    for _, path, tensor in blocks:
        words = path.removesuffix(".weight").split(".")
        if len(tensor.shape) == 2:
            # GPT-2 calls two layers c_proj, and keeps its matrices the other way round.
            name = ".".join(words[-2:]) if words[-1] == "c_proj" else words[-1]
            outputs, inputs = tensor.shape
            if words[-1] in {"c_proj", "c_fc", "c_attn"}:
                outputs, inputs = inputs, outputs
            counts[name, inputs, outputs] += 1
            continue
        other += tensor.elements
        if len(tensor.shape) == 1 and path.endswith(".weight"):
            if tensor.shape[0] == hidden:
                norms[path] += 1
            elif any(word in {"q_norm", "k_norm"} for word in words):
                head_norms = True
    linears = tuple(Linear(*key, count) for key, count in sorted(counts.items()))
    return linears, len(norms), head_norms, other


def _attention(
    named: dict[str, Linear], text: dict[str, Any], hidden: int, estimated: list[str]
) -> tuple[int, int]:
    """(width of the queries, of the keys)"""
    heads = _number(text, "num_attention_heads", "n_head", "num_heads")
    kv_heads = _number(text, "num_key_value_heads") or heads
    size = _number(text, "head_dim") or (hidden // heads if heads else 0)
    query = next((named[name].outputs for name in QUERY if name in named), 0)
    key = next((named[name].outputs for name in KEY if name in named), 0)
    if not query and any(name in FUSED for name in named):
        query, key = heads * size or hidden, kv_heads * size or hidden
    if not query:
        estimated.append("the width of attention (its layers have names unknown to mmchat)")
        query, key = hidden, hidden
    return query, key or query


def _mlp(named: dict[str, Linear], hidden: int, estimated: list[str]) -> tuple[int, bool]:
    """(its width, whether it has a gate)"""
    gated = any(name in GATE | GATE_UP for name in named)
    for name in NARROW:
        if name in named:
            return named[name].inputs, gated
    fused = next((named[name] for name in GATE_UP if name in named), None)
    if fused is not None:
        return fused.outputs // 2, True
    for name in sorted(WIDEN):
        if name in named:
            return named[name].outputs, gated
    estimated.append("the width of the MLP (its layers have names unknown to mmchat)")
    widest = max((max(one.inputs, one.outputs) for one in named.values()), default=4 * hidden)
    return widest, True


def _tied(config: dict[str, Any], text: dict[str, Any], has_head: bool) -> bool:
    said = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    return not has_head or said is True


def _vision(config: dict[str, Any], found: Sequence[TensorInfo]) -> VisionFacts | None:
    if not found:
        return None
    raw = config.get("vision_config")
    said: dict[str, Any] = raw if isinstance(raw, dict) else {}
    blocks = {m[1] for t in found if (m := _BLOCK.search(t.name))}
    squares = Counter(t.shape[0] for t in found if len(t.shape) == 2 and t.shape[0] == t.shape[1])
    width = _number(said, "embed_dim", "hidden_size") or (
        squares.most_common(1)[0][0] if squares else 0
    )
    if "embed_dim" not in said and squares and width not in squares:
        width = squares.most_common(1)[0][0]
    wide = max((max(t.shape) for t in found if len(t.shape) == 2 and width in t.shape), default=0)
    side = _number(config, "image_size") or _number(said, "image_size")
    stem = said.get("stem_channels")
    patch = _number(said, "patch_size") or (2 ** len(stem) if isinstance(stem, list) else 0)
    # Published configurations leave out what equals the default of CLIP and SigLIP.
    side, patch = side or 224, patch or 16
    return VisionFacts(
        elements=sum(tensor.elements for tensor in found),
        layers=_number(said, "num_hidden_layers", "depth") or len(blocks),
        width=width,
        intermediate=_number(said, "intermediate_size") or wide,
        patches=(side // patch) ** 2,
        image_size=side,
    )


def _prefix(config: dict[str, Any], vision: VisionFacts | None) -> int:
    """Tokens of a picture; 0 where its size decides."""
    if vision is None or str(config["model_type"]).startswith(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
    ):
        return 0
    said = _number(config, "image_seq_length", "mm_tokens_per_image")
    if said:
        return said
    scale = _number(config, "scale_factor") or 1
    return max(1, vision.patches // scale**2)


def _number(table: dict[str, Any], *names: str) -> int:
    """The first of `names` that is a number above 0 there; foreign tables may hold anything."""
    for name in names:
        value = table.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        if isinstance(value, float) and math.isfinite(value) and value >= 1:
            return int(value)
    return 0
