# SPDX-License-Identifier: Apache-2.0
"""Salted digests of blocks, one or a whole run at a time: the inner loop of building and verifying.

It does not compare digests with anything and does not know of trees.
"""

from __future__ import annotations

import hashlib

_CONSTRUCTORS = {"sha256": hashlib.sha256, "sha512": hashlib.sha512}


class BlockHasher:
    """H(salt || block) for one algorithm and one salt.

    Args:
        algorithm: `sha256` or `sha512`.
        salt: Hashed before every block; may be empty.
    """

    def __init__(self, algorithm: str, salt: bytes) -> None:
        self._new = _CONSTRUCTORS[algorithm]
        # The salt is hashed once; every block starts from a copy of that state.
        self._salted = self._new(salt) if salt else None

    def digest(self, block: bytes | memoryview) -> bytes:
        """Digest of one block."""
        if self._salted is None:
            return self._new(block).digest()
        state = self._salted.copy()
        state.update(block)
        return state.digest()

    def digests(self, run: bytes | memoryview, block_size: int) -> list[bytes]:
        """Digests of consecutive blocks.

        Args:
            run: Bytes whose length is a multiple of `block_size`.
            block_size: Bytes of one block.

        Returns:
            One digest per block.
        """
        view = memoryview(run)
        starts = range(0, len(view), block_size)
        if self._salted is None:
            new = self._new  # inlined: at 4 KiB a call more per block costs 3 %
            return [new(view[i : i + block_size]).digest() for i in starts]
        return [self.digest(view[i : i + block_size]) for i in starts]
