# SPDX-License-Identifier: Apache-2.0
"""Where the tree of an image is unpacked to: entries in `tree`, what they have besides content in `attributes`."""
