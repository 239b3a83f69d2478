"""How many calls may wait for the model behind the asynchronous doors, and in which threads.

One model does one thing at a time, so calls queue. An endless queue takes memory and answers too
late to be of use: beyond a limit new calls are refused at once. What this module does not know:
engines, event loops.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Final

from zcontext.errors import ConfigError, OverloadedError

THREADS: Final = 8
DEFAULT_LIMIT: Final = 1024
VARIABLE: Final = "ZCONTEXT_MAX_WAITING"
"""Environment variable that sets the limit of a process when it starts."""

# Our own pool: calls that wait for one model would otherwise fill the event loop's, and keep DNS
# look-ups and file reads of the whole program waiting with them.
POOL: Final = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="zcontext")

_lock: Final = Lock()
_waiting = 0
_limit: int | None = None


def set_max_waiting(limit: int) -> None:
    """Set how many asynchronous calls and streams may run or wait at once in this process.

    Args:
        limit: 1 or more; 1,024 unless set here or by `ZCONTEXT_MAX_WAITING`.

    Raises:
        ConfigError: `limit` is not a positive integer.
    """
    global _limit
    if type(limit) is not int or limit < 1:
        raise ConfigError(
            f"max_waiting={limit!r}: give a whole number of calls, 1 or more.",
            field="max_waiting",
            value=limit,
        )
    _limit = limit


def max_waiting() -> int:
    """The limit that holds now.

    Returns:
        Calls.

    Raises:
        ConfigError: `ZCONTEXT_MAX_WAITING` is no positive integer.
    """  # noqa: DOC502 - raised by `set_max_waiting`
    if _limit is None:
        named = os.environ.get(VARIABLE, "")
        set_max_waiting(int(named) if named.isdecimal() else named or DEFAULT_LIMIT)  # type: ignore[arg-type]
    assert _limit is not None
    return _limit


@contextmanager
def place_in_line() -> Iterator[None]:
    """Hold one of the places for as long as a call runs or waits.

    Yields:
        Nothing.

    Raises:
        OverloadedError: All places are taken.
    """
    global _waiting
    limit = max_waiting()
    with _lock:
        if _waiting >= limit:
            raise OverloadedError(
                f"{_waiting:,} calls run or wait for the model already, the limit is {limit:,}; "
                f"call again later, or raise it with set_max_waiting() or {VARIABLE}."
            )
        _waiting += 1
    try:
        yield
    finally:
        with _lock:
            _waiting -= 1
