# SPDX-License-Identifier: Apache-2.0
"""Where the tree of a new image comes from. Every source gives a `rofs.tree.Source`."""
