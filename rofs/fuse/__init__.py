# SPDX-License-Identifier: Apache-2.0
"""The mount: the only code that knows FUSE, pyfuse3 and trio, and the processes that share the work.

keeper      holds the fuse descriptor, forks the others, mounts and unmounts
supervisor  the audit log, who-did-it, the control socket
worker      answers the kernel, without privileges
resolver    turns inodes into paths for events, without privileges
"""
