# SPDX-License-Identifier: Apache-2.0
"""Hostile input: valid inputs, changed and with their checksums made right again. See docs/fuzzing.md."""
