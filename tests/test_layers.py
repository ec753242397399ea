# SPDX-License-Identifier: Apache-2.0
"""The layers of docs/architecture.md hold, also when only pytest is run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY


def test_a_module_imports_only_from_layers_below_it() -> None:
    checker = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([checker, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "2 kept, 0 broken" in done.stdout
