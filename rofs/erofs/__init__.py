# SPDX-License-Identifier: Apache-2.0
"""EROFS, the kernel's read-only filesystem: its on-disk format, a reader and a writer.

Knows nothing of verity, partitions or FUSE: a reader works on any `BlockDevice`.
"""
