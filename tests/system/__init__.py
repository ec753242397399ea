# SPDX-License-Identifier: Apache-2.0
"""Tests of `rofs.system`, with the system's own tools."""
