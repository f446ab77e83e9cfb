"""What a process that tests are forked from has imported."""

import tests.training.runner  # noqa: F401
from mmchat.training.trainable import import_bitsandbytes_quietly

import_bitsandbytes_quietly()
