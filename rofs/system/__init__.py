# SPDX-License-Identifier: Apache-2.0
"""What the system has to know of rofs and pip cannot tell it: mount helper, units, man pages, completion, defaults.

`content` says what is installed where, `installer` puts it there and takes it away again. Knows nothing of
images and mounts; the command line's parser is given to it.
"""
