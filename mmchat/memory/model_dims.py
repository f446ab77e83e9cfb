"""The sizes of a model on which its memory depends, read without torch.

The shapes in the headers of the weights give most of them exactly. `config.json` has what shapes do not
show: heads, tied embeddings, the tokens of a picture. If the layers of a text block have unknown names,
widths are estimated from the shapes, and `estimated` says so.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmchat.errors import ModelError
from mmchat.model_files import TensorInfo, read_config, tensors

ModelKind = Literal["visual_prefix", "hf_vlm", "text"]

PHOTO = (1024, 768)
"""Width and height of a usual picture, for models whose picture tokens depend on its size."""

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)$")
_PROJECTOR = re.compile(r"multi_modal_projector|connector|merger|projector|resampler")
_VISION = re.compile(r"vision|visual|vit\.|tower|image")
_EMBEDDING = re.compile(r"(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")

# Model types by how they divide a picture.
_ANY_SIZE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
_SHUFFLED_TILES = ("idefics3", "smolvlm")
_TILES = ("llava_next", "llava_onevision")

QUERY = {"q_proj", "query", "wq", "q"}
KEY = {"k_proj", "v_proj", "key", "value", "wk", "wv", "k", "v"}
FUSED = {"qkv_proj", "query_key_value", "c_attn", "Wqkv", "qkv", "in_proj"}
GATE = {"gate_proj", "w1", "gate"}
GATE_UP = {"gate_up_proj"}
UP = {"up_proj", "w3", "fc1", "c_fc", "dense_h_to_4h", "fc_in"} | GATE | GATE_UP
DOWN = {"down_proj", "w2", "fc2", "dense_4h_to_h", "fc_out", "mlp.c_proj"}
OUT = {"o_proj", "wo", "dense", "out_proj", "attn.c_proj"}


class UnknownModelError(ModelError):
    """A model whose parts mmchat does not know, so it cannot estimate its memory."""


@dataclass(frozen=True, slots=True)
class LinearDims:
    """The linear layers of one name in the text blocks: `count` layers, inputs -> outputs."""

    name: str
    inputs: int
    outputs: int
    count: int

    @property
    def parameters(self) -> int:
        """The number of weights of all these layers."""
        return self.inputs * self.outputs * self.count


@dataclass(frozen=True, slots=True)
class VisionDims:
    """The vision encoder. A usual picture is `patches` patches of `patch_size` x `patch_size` pixels.

    `keeps_states`: the states of all layers are kept until the forward ends. `rotary`: queries and keys
    are rotated by position. `masked`: each pixel has a mask, because pictures are cut into tiles.
    """

    parameters: int
    layers: int
    hidden_size: int
    intermediate_size: int
    patches: int
    patch_size: int
    keeps_states: bool
    rotary: bool
    masked: bool

    @property
    def block_parameters(self) -> int:
        """Weights of one block: four matrices of attention and two of the MLP."""
        return 4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size


@dataclass(frozen=True, slots=True)
class ModelDims:
    """The sizes of a model. All counts are of weights, not of bytes.

    `query_size` and `kv_size` are the widths of the queries and of the keys. `norms` is the number of
    norms of width `hidden_size` in a block, `head_norms` whether queries and keys have their own.
    `block_other` counts the weights of the blocks that are not in `linears`; `head` is 0 if it is tied
    to the embedding. `image_tokens` is the number of tokens of a usual picture, 0 for a text
    model. `window` says whether some layers attend to a sliding window only. `context` is the longest
    conversation in tokens, 0 if the configuration does not say. `dtype` is the dtype of most weights in the
    files, as safetensors calls it. `estimated` names the sizes that are not known exactly.
    """

    kind: ModelKind
    model_type: str
    hidden_size: int
    layers: int
    query_size: int
    kv_size: int
    intermediate_size: int
    gated: bool
    norms: int
    head_norms: bool
    vocab_size: int
    linears: tuple[LinearDims, ...]
    block_other: int
    embedding: int
    head: int
    other: int
    projector: int
    projector_matrices: int
    vision: VisionDims | None
    image_tokens: int
    window: bool
    context: int
    dtype: str
    estimated: tuple[str, ...] = ()

    @property
    def block_matrices(self) -> int:
        """Weights of the linear layers of the text blocks, which are what 4-bit packs."""
        return sum(linear.parameters for linear in self.linears)

    @property
    def parameters(self) -> int:
        """All weights."""
        vision = self.vision.parameters if self.vision is not None else 0
        text = self.block_matrices + self.block_other + self.embedding + self.head + self.other
        return text + self.projector + vision


def read_dims(folder: Path) -> ModelDims:
    """The sizes of the model in `folder`.

    Raises ModelError if its files are missing or damaged, UnknownModelError as `model_dims` does.
    """
    return model_dims(read_config(folder), tensors(folder))


def model_dims(config: Mapping[str, Any], found: Iterable[TensorInfo]) -> ModelDims:
    """The sizes of a model, from its config.json and the tensors that its weight files list.

    Raises UnknownModelError if the tensors contain no text model.
    """
    parts = _split(found)
    raw = config.get("text_config")
    text: Mapping[str, Any] = raw if isinstance(raw, dict) else config
    vocab_size, hidden_size = parts.embedding.shape if parts.embedding is not None else (0, 0)
    vocab_size = vocab_size or _number(text, "vocab_size")
    hidden_size = hidden_size or _number(text, "hidden_size", "n_embd", "d_model")
    if not parts.blocks or not hidden_size:
        raise UnknownModelError(
            f"mmchat does not know the text model in these weights ({config.get('model_type')}), so "
            "their memory cannot be estimated: load the model to see."
        )
    linears, norms, head_norms, block_other = _block(parts.blocks, hidden_size)
    estimated: list[str] = []
    named = {linear.name: linear for linear in linears}
    query_size, kv_size = _attention(named, text, hidden_size, estimated)
    intermediate_size, gated = _mlp(named, hidden_size, estimated)
    kind: ModelKind = "text"
    if config["model_type"] == "visual_prefix":
        kind = "visual_prefix"
    elif parts.vision or parts.projector:
        kind = "hf_vlm"
    vision, image_tokens = _vision(config, parts.vision)
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings")) is True
    return ModelDims(
        kind=kind,
        model_type=str(config["model_type"]),
        hidden_size=hidden_size,
        layers=1 + max(number for number, _, _ in parts.blocks),
        query_size=query_size,
        kv_size=kv_size,
        intermediate_size=intermediate_size,
        gated=gated,
        norms=norms,
        head_norms=head_norms,
        vocab_size=vocab_size,
        linears=linears,
        block_other=block_other,
        embedding=parts.embedding.elements if parts.embedding is not None else 0,
        head=0 if parts.head is None or tied else parts.head.elements,
        other=sum(tensor.elements for tensor in parts.other),
        projector=sum(tensor.elements for tensor in parts.projector),
        projector_matrices=sum(t.elements for t in parts.projector if len(t.shape) > 1),
        vision=vision,
        image_tokens=image_tokens,
        window=bool(text.get("sliding_window")) and text.get("use_sliding_window", True) is True,
        context=_number(text, "max_position_embeddings", "n_positions", "n_ctx"),
        dtype=parts.dtypes.most_common(1)[0][0],
        estimated=tuple(estimated),
    )


@dataclass(slots=True)
class _Parts:
    """The tensors of a checkpoint by the part of the model that they belong to."""

    blocks: list[tuple[int, str, TensorInfo]]
    """(number of the block, name in it, tensor)"""
    vision: list[TensorInfo]
    projector: list[TensorInfo]
    other: list[TensorInfo]
    dtypes: Counter[str]
    """Weights by dtype."""
    embedding: TensorInfo | None = None
    head: TensorInfo | None = None


def _split(found: Iterable[TensorInfo]) -> _Parts:
    parts = _Parts([], [], [], [], Counter())
    for tensor in found:
        parts.dtypes[tensor.dtype] += tensor.elements
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
    blocks: Sequence[tuple[int, str, TensorInfo]], hidden_size: int
) -> tuple[tuple[LinearDims, ...], int, bool, int]:
    """(linear layers by name, norms of a block, whether heads have norms, weights of all the rest)"""
    counts: Counter[tuple[str, int, int]] = Counter()
    norms: set[str] = set()
    head_norms = False
    other = 0
    for _, path, tensor in blocks:
        words = path.removesuffix(".weight").split(".")
        if len(tensor.shape) == 2:
            # GPT-2 has two layers called c_proj, and keeps its matrices transposed.
            name = ".".join(words[-2:]) if words[-1] == "c_proj" else words[-1]
            outputs, inputs = tensor.shape
            if words[-1] in {"c_proj", "c_fc", "c_attn"}:
                outputs, inputs = inputs, outputs
            counts[name, inputs, outputs] += 1
            continue
        other += tensor.elements
        if len(tensor.shape) == 1 and path.endswith(".weight"):
            if tensor.shape[0] == hidden_size:
                norms.add(path)
            elif any(word in {"q_norm", "k_norm"} for word in words):
                head_norms = True
    linears = tuple(LinearDims(*key, count) for key, count in sorted(counts.items()))
    return linears, len(norms), head_norms, other


def _attention(
    named: Mapping[str, LinearDims], text: Mapping[str, Any], hidden_size: int, estimated: list[str]
) -> tuple[int, int]:
    """(width of the queries, of the keys)"""
    heads = _number(text, "num_attention_heads", "n_head", "num_heads")
    kv_heads = _number(text, "num_key_value_heads") or heads
    size = _number(text, "head_dim") or (hidden_size // heads if heads else 0)
    query = next((named[name].outputs for name in QUERY if name in named), 0)
    key = next((named[name].outputs for name in KEY if name in named), 0)
    if not query and any(name in FUSED for name in named):
        query, key = heads * size or hidden_size, kv_heads * size or hidden_size
    if not query:
        estimated.append("the width of attention (its layers have names unknown to mmchat)")
        query, key = hidden_size, hidden_size
    return query, key or query


def _mlp(
    named: Mapping[str, LinearDims], hidden_size: int, estimated: list[str]
) -> tuple[int, bool]:
    """(its width, whether it has a gate)"""
    gated = any(name in GATE | GATE_UP for name in named)
    for name in sorted(DOWN):
        if name in named:
            return named[name].inputs, gated
    fused = next((named[name] for name in GATE_UP if name in named), None)
    if fused is not None:
        return fused.outputs // 2, True
    for name in sorted(UP):
        if name in named:
            return named[name].outputs, gated
    estimated.append("the width of the MLP (its layers have names unknown to mmchat)")
    widest = max((max(one.inputs, one.outputs) for one in named.values()), default=4 * hidden_size)
    return widest, True


def _vision(
    config: Mapping[str, Any], found: Sequence[TensorInfo]
) -> tuple[VisionDims | None, int]:
    """(the vision encoder, tokens of a usual picture)"""
    if not found:
        return None, 0
    raw = config.get("vision_config")
    given: Mapping[str, Any] = raw if isinstance(raw, dict) else {}
    blocks = {m[1] for t in found if (m := _BLOCK.search(t.name))}
    squares = Counter(t.shape[0] for t in found if len(t.shape) == 2 and t.shape[0] == t.shape[1])
    usual = squares.most_common(1)[0][0] if squares else 0
    width = _number(given, "embed_dim", "hidden_size") or usual
    if "embed_dim" not in given and squares and width not in squares:
        width = usual
    widest = max((max(t.shape) for t in found if len(t.shape) == 2 and width in t.shape), default=0)
    side = _number(config, "image_size") or _number(given, "image_size")
    stem = given.get("stem_channels")
    patch = _number(given, "patch_size") or (2 ** len(stem) if isinstance(stem, list) else 0)
    # Published configurations leave out values that equal the defaults of CLIP and SigLIP.
    side, patch = side or 224, patch or 16
    image_tokens, patches = _picture(config, given, side, patch)
    vision = VisionDims(
        parameters=sum(tensor.elements for tensor in found),
        layers=_number(given, "num_hidden_layers", "depth") or len(blocks),
        hidden_size=width,
        intermediate_size=_number(given, "intermediate_size") or widest,
        patches=patches,
        patch_size=patch,
        keeps_states="vision_feature_layer" in config and not stem,
        rotary=_is(config, _ANY_SIZE),
        masked=_is(config, _SHUFFLED_TILES),
    )
    return vision, image_tokens


def _picture(
    config: Mapping[str, Any], given: Mapping[str, Any], side: int, patch: int
) -> tuple[int, int]:
    """(tokens, patches) of a usual picture; `given` is the vision encoder's configuration."""
    patches = (side // patch) ** 2
    width, height = PHOTO
    if _is(config, _ANY_SIZE):
        # The patches of the picture as it is, merged by squares.
        merge = _number(given, "spatial_merge_size") or 2
        tokens = round(width / (patch * merge)) * round(height / (patch * merge))
        return tokens, tokens * merge**2
    if _is(config, _SHUFFLED_TILES):
        # Scaled to four tiles along its longer side, plus one tile of the whole picture.
        tiles = 1 + 4 * math.ceil(4 * height / width)
        return tiles * patches // (_number(config, "scale_factor") or 1) ** 2, tiles * patches
    if _is(config, _TILES):
        # As many tiles as cover it, plus one of the whole picture; every patch is a token.
        tiles = 1 + math.ceil(width / side) * math.ceil(height / side)
        return tiles * patches, tiles * patches
    tokens = _number(config, "image_seq_length", "mm_tokens_per_image")
    scale = _number(config, "scale_factor") or 1
    return tokens or max(1, patches // scale**2), patches


def _is(config: Mapping[str, Any], model_types: tuple[str, ...]) -> bool:
    return str(config["model_type"]).startswith(model_types)


def _number(table: Mapping[str, Any], *names: str) -> int:
    """The first of `names` that is a number above 0 in `table`, else 0; tables from outside contain anything."""
    for name in names:
        value = table.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        if isinstance(value, float) and math.isfinite(value) and value >= 1:
            return int(value)
    return 0
