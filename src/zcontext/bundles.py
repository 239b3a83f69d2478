"""Where bundles are: a name or a folder in, the folder of a bundle out.

What it does not know: what is in a bundle (`bundle.py` reads and checks it). Standard library only.
"""

from __future__ import annotations

import os
from pathlib import Path

from zcontext.errors import BundleError

DEFAULT_BUNDLE = "smollm2-135m"
ENVIRONMENT = "ZCONTEXT_BUNDLE"
_MANIFEST = "manifest.json"


def bundle_folders() -> tuple[Path, ...]:
    """Folders that bundles are looked for in by name: beside the source tree, in the package."""
    here = Path(__file__).resolve().parent
    return here.parent.parent / "bundles", here / "_bundles"


def find_bundle(name_or_path: str | os.PathLike[str] = DEFAULT_BUNDLE) -> Path:
    """The folder of a bundle.

    Args:
        name_or_path: A folder, or the name of a bundle that ships. The default name stands for
            `$ZCONTEXT_BUNDLE` where that is set.

    Returns:
        A folder that holds a manifest.

    Raises:
        BundleError: There is no such bundle.
    """
    asked = os.fspath(name_or_path)
    named = os.environ.get(ENVIRONMENT) if asked == DEFAULT_BUNDLE else None
    wanted = named or asked
    places = [Path(wanted).expanduser()]
    if Path(wanted).name == wanted != "..":
        places += [folder / wanted for folder in bundle_folders()]
    for place in places:
        if (place / _MANIFEST).is_file():
            return place
    origin = f" (from {ENVIRONMENT})" if named else ""
    shipped = sorted(
        {
            child.name
            for folder in bundle_folders()
            if folder.is_dir()
            for child in folder.iterdir()
            if (child / _MANIFEST).is_file()
        }
    )
    raise BundleError(
        f"no bundle {wanted!r}{origin}: no {_MANIFEST} in {', '.join(map(str, places))}. Give the "
        f"folder that `zcontext train` wrote or one of the bundles that ship "
        f"({', '.join(shipped) or 'none here'}), or set {ENVIRONMENT} to a folder"
    )
