# SPDX-License-Identifier: Apache-2.0
"""Trouble that users of other programs had, as whole cases: built, signed, mounted, looked at."""
