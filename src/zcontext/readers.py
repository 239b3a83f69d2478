"""The two readers under one name: ZDecompressor says symbols again, Inferencer answers from them.

Both end in the decoding loop of `generation.py`; what they put into it is theirs.
"""

from __future__ import annotations

from zcontext.decompressor import Restorable, ZDecompressor
from zcontext.inferencer import Inferencer

__all__ = ["Inferencer", "Restorable", "ZDecompressor"]
