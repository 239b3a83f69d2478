"""Bits and bytes: integers packed at a fixed width, and a checked binary reader.

Floor 0, standard library only. It knows about integers and bytes; what they mean is known to
the modules above (`vocabulary` packs codes with it, `spans` lays out documents with it).
Every failure to read is a plain `ValueError`: the caller knows which of our errors it is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

_FLOAT64 = struct.Struct(">d")
_MAX_VARINT_BYTES = 10


def code_width(size: int) -> int:
    """Bits that hold one code below `size`."""
    return max(1, (size - 1).bit_length())


@lru_cache(maxsize=32)
def _spellings(width: int) -> tuple[list[str], dict[str, int]]:
    spelled = [format(value, f"0{width}b") for value in range(1 << width)]
    return spelled, {text: value for value, text in enumerate(spelled)}


def pack_codes(codes: Iterable[int], *, width: int) -> bytes:
    """Integers of `width` bits each, most significant bit first, padded with zero bits.

    Goes through one binary literal, whose conversion is linear in CPython: 400,000 codes take
    some 60 ms where shifting code by code takes seconds.
    """
    spelled, _ = _spellings(width)
    bits = "".join(map(spelled.__getitem__, codes))
    if not bits:
        return b""
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def unpack_codes(data: bytes, *, n_codes: int, width: int) -> list[int]:
    """The inverse of `pack_codes`.

    Args:
        data: What `pack_codes` returned.
        n_codes: How many codes it packed.
        width: Bits per code.

    Returns:
        The codes.

    Raises:
        ValueError: if the length is not that of `n_codes` codes, or the padding is not zero.
    """
    expected = (n_codes * width + 7) // 8
    if len(data) != expected:
        raise ValueError(f"{n_codes} codes of {width} bits are {expected} bytes, got {len(data)}")
    if not data:
        return []
    bits = format(int.from_bytes(data, "big"), f"0{8 * len(data)}b")
    if "1" in bits[n_codes * width :]:
        raise ValueError("the padding after the last code is not zero")
    _, values = _spellings(width)
    return [values[bits[at : at + width]] for at in range(0, n_codes * width, width)]


@dataclass(slots=True)
class ByteWriter:
    """Grows a byte string field by field."""

    _parts: list[bytes] = field(default_factory=list)

    def raw(self, data: bytes) -> None:
        """Append bytes whose length the reader knows."""
        self._parts.append(data)

    def varint(self, value: int) -> None:
        """Append a non-negative integer, seven bits per byte (LEB128)."""
        out = bytearray()
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
        self._parts.append(bytes(out))

    def float64(self, value: float) -> None:
        """Append a float, exactly."""
        self._parts.append(_FLOAT64.pack(value))

    def blob(self, data: bytes) -> None:
        """Append bytes behind their length."""
        self.varint(len(data))
        self._parts.append(data)

    def getvalue(self) -> bytes:
        """All that was appended."""
        return b"".join(self._parts)


@dataclass(slots=True)
class ByteReader:
    """Reads back what `ByteWriter` wrote; never past the end."""

    data: bytes
    at: int = 0

    def raw(self, n_bytes: int) -> bytes:
        """The next `n_bytes` bytes.

        Args:
            n_bytes: How many.

        Returns:
            The bytes.

        Raises:
            ValueError: if fewer are left.
        """
        if n_bytes > len(self.data) - self.at:
            raise ValueError(
                f"the data end at byte {len(self.data)}, {n_bytes} more needed at {self.at}"
            )
        piece = self.data[self.at : self.at + n_bytes]
        self.at += n_bytes
        return piece

    def varint(self) -> int:
        """The next integer.

        Returns:
            Its value.

        Raises:
            ValueError: if the data end inside it or it is over-long.
        """
        value = 0
        for k in range(_MAX_VARINT_BYTES):
            byte = self.raw(1)[0]
            value |= (byte & 0x7F) << (7 * k)
            if byte < 0x80:
                return value
        raise ValueError(f"an integer of more than {_MAX_VARINT_BYTES} bytes at byte {self.at}")

    def float64(self) -> float:
        """The next float."""
        value: float = _FLOAT64.unpack(self.raw(_FLOAT64.size))[0]
        return value

    def blob(self) -> bytes:
        """The next length-prefixed bytes."""
        return self.raw(self.varint())

    def finish(self) -> None:
        """Check that everything was read.

        Raises:
            ValueError: if bytes are left over.
        """
        if self.at != len(self.data):
            raise ValueError(f"{len(self.data) - self.at} bytes left over after the last field")
