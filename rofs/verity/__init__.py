# SPDX-License-Identifier: Apache-2.0
"""dm-verity hash trees: the on-disk format, building one, and a device that verifies by one.

Nothing here knows where a root hash comes from or why it is trusted, nor what the blocks mean.
"""
