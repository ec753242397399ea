# SPDX-License-Identifier: Apache-2.0
"""rofs: signed images, every block verified on every read, every refused write recorded.

For programs: `open_image` what `open_file` gives under a `TrustPolicy` and read the result's
`filesystem`; `build_image` of a `DirectorySource`. The rest is for rofs itself and may change.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rofs.errors import RofsError

if TYPE_CHECKING:
    from rofs.image.build import build_image
    from rofs.image.open import VerifiedImage, open_file, open_image
    from rofs.source.directory import DirectorySource
    from rofs.trust.store import load_trust
    from rofs.trust.verify import TrustPolicy

__all__ = [
    "DirectorySource",
    "RofsError",
    "TrustPolicy",
    "VerifiedImage",
    "__version__",
    "build_image",
    "load_trust",
    "open_file",
    "open_image",
]

__version__ = "0.1.0"

# Loaded when first used: `rofs status` needs none of them.
_MODULES = {
    "DirectorySource": "rofs.source.directory",
    "TrustPolicy": "rofs.trust.verify",
    "VerifiedImage": "rofs.image.open",
    "build_image": "rofs.image.build",
    "load_trust": "rofs.trust.store",
    "open_file": "rofs.image.open",
    "open_image": "rofs.image.open",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
