# SPDX-License-Identifier: Apache-2.0
"""System calls by name, to be made on a mount in processes of their own, and the tree that they are made on."""
