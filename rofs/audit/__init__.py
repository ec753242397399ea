# SPDX-License-Identifier: Apache-2.0
"""The audit log: what an event is, the chain of hashes through a log, its one writer, and who did it.

Nothing here knows what a filesystem is or decides what is worth an event.
"""
