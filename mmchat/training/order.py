"""In which order samples are seen."""

import numpy as np


class Order:
    """Which sample stands at a position: each once within every pass, in an order of its own."""

    def __init__(self, length: int, seed: int, salt: tuple[int, ...] = ()) -> None:
        """`salt` tells orders of one seed apart."""
        self.length = length
        self._seed = seed
        self._salt = salt
        self._epoch = -1
        self._order = np.arange(length)

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self.length)
        if epoch != self._epoch:
            self._epoch = epoch
            rng = np.random.default_rng((self._seed, epoch, *self._salt))
            self._order = rng.permutation(self.length)
        return int(self._order[index])
