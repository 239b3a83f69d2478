"""Profiles: settings for kinds of tasks, by name.

What this module does not know: how any of them is carried out.
"""

from __future__ import annotations

from typing import Literal

from zcontext.config import DEFAULT_RATIO, CompressSettings
from zcontext.errors import ConfigError

Profile = Literal["legal", "default", "summary", "sliding"]

PROFILES: dict[Profile, CompressSettings] = {
    "legal": CompressSettings(ratio=2.0, exact=True, min_fidelity=0.98, on_low_fidelity="finer"),
    "default": CompressSettings(ratio=DEFAULT_RATIO),
    "summary": CompressSettings(ratio=16.0),
    "sliding": CompressSettings(
        ratio=DEFAULT_RATIO, window=1024, context=768, placement="anchored"
    ),
}


def profile(name: Profile) -> CompressSettings:
    """Settings for a kind of task; change single ones with `replace`.

    "legal" loses nothing: low ratio, exact decompression, and the text instead of symbols wherever
    less than 98 in 100 tokens read back right. "default" is what compression does unless told
    otherwise. "summary" is for the gist of much text: ratio 16, nothing measured. "sliding" reads
    windows of 1,024 tokens at a stride of 256, the setting of arXiv 2603.25340: each writes the
    last 256 tokens and reads the 768 before them again (`WindowPlan.paper`). The text decides where
    segments end, not the window.

    Args:
        name: One of them.

    Returns:
        The settings.

    Raises:
        ConfigError: There is no such profile.
    """
    if name not in PROFILES:
        raise ConfigError(
            f"profile must be one of {', '.join(PROFILES)}, got {name!r}",
            field="profile",
            value=name,
        )
    return PROFILES[name]
