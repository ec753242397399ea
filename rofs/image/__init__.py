# SPDX-License-Identifier: Apache-2.0
"""Whole images: the one place that stacks file, partition, verity and EROFS, and the way back."""
