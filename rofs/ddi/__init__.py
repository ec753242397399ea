# SPDX-License-Identifier: Apache-2.0
"""Discoverable Disk Images (UAPI.3): a GPT, a data partition, its hash tree and its signature.

`gpt_format`, `signature_format` and `roles` are pure, `gpt` reads and plans partition tables, `parts`
selects the partitions that belong together. This package does not decide what is trusted, does not
verify a signature and does not know what a partition contains.
"""
