"""Reads training and evaluation data: detects its format, checks and splits it. No torch.

    data = read_data(Path("my-photos"))            # any format in docs/data.md
    train, held_out = split(data.examples, 0.15, seed=0)

Importing this package imports neither Pillow nor numpy nor Arrow.
"""

from mmchat.data.holdout import split
from mmchat.data.reader import read_data, read_splits
from mmchat.data.types import Dataset, Example, Picture, Problem

__all__ = [
    "Dataset",
    "Example",
    "Picture",
    "Problem",
    "read_data",
    "read_splits",
    "split",
]
