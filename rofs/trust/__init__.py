# SPDX-License-Identifier: Apache-2.0
"""Trust in a root hash: keys, PKCS#7 signatures, pinned certificates and the decision.

`verify` decides, `store` loads what it decides with, `pkcs7` signs and checks, `keys` makes and loads
key pairs. This package does not read images: a root hash and a signature come in as bytes.
"""
