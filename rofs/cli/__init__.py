# SPDX-License-Identifier: Apache-2.0
"""The command line: words, flags, exit codes and rendering; one module per verb."""
