# SPDX-License-Identifier: Apache-2.0
"""rofs: signed images, every block verified on every read, every refused write recorded."""

from rofs.errors import RofsError

__all__ = ["RofsError", "__version__"]

__version__ = "0.1.0"
