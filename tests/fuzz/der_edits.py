# SPDX-License-Identifier: Apache-2.0
"""Changes DER so that every length stays right, down to what is wrapped in octet strings. No schema."""

from __future__ import annotations

from dataclasses import dataclass, field

from .edits import TOKENS, Edit, interesting

_CONSTRUCTED = 0x20
_INTEGER, _NULL, _OBJECT_IDENTIFIER = 0x02, 0x05, 0x06
_MAX_DEPTH = 12
_MAX_NODES = 2000  # each edit may double them
_TAGS = (0x02, 0x03, 0x04, 0x05, 0x06, 0x0C, 0x13, 0x17, 0x30, 0x31, 0xA0, 0xA1, 0x80, 0x01, 0x1F, 0x00)


@dataclass
class Node:
    """One element: its tag, and either its content or its children."""

    tag: int
    content: bytes = b""
    children: list[Node] = field(default_factory=list)

    def encode(self) -> bytes:
        body = b"".join(child.encode() for child in self.children) if self.children else self.content
        size = len(body)
        if size < 0x80:
            return bytes([self.tag, size]) + body
        length = size.to_bytes((size.bit_length() + 7) // 8, "big")
        return bytes([self.tag, 0x80 | len(length)]) + length + body

    def walk(self) -> list[Node]:
        return [self, *(node for child in self.children for node in child.walk())]


def parse(der: bytes) -> Node:
    """The tree of a valid encoding.

    Raises:
        ValueError: It is none.
    """
    nodes = _parse_all(der, 0)
    if len(nodes) != 1:
        raise ValueError(f"{len(nodes)} elements")
    return nodes[0]


def _parse_all(data: bytes, depth: int) -> list[Node]:
    nodes = []
    while data:
        if len(data) < 2 or data[0] & 0x1F == 0x1F or depth > _MAX_DEPTH:
            raise ValueError("not an element")
        size, start = data[1], 2
        if size & 0x80:
            start += size & 0x7F
            size = int.from_bytes(data[2:start], "big")
        body = data[start : start + size]
        if len(body) != size:
            raise ValueError("cut off")
        if data[0] & _CONSTRUCTED and body:
            nodes.append(Node(data[0], children=_parse_all(body, depth + 1)))
        else:
            nodes.append(Node(data[0], body))
        data = data[start + size :]
    return nodes


def edit_der(root: Node, edit: Edit) -> None:
    """Apply one edit to the tree: usually to the content of a leaf, sometimes to its structure."""
    nodes = root.walk()
    kind = edit.kind % 32
    if kind < 27 or len(nodes) > _MAX_NODES or not root.children:
        leaves = [node for node in nodes if not node.children]
        oids = [node.content for node in leaves if node.tag == _OBJECT_IDENTIFIER] or [b"\x2a"]
        _edit_leaf(leaves[edit.where % len(leaves)], edit, kind, oids)
        return
    parents = [node for node in nodes if node.children]
    parent = parents[edit.where % len(parents)]
    at = edit.value % len(parent.children)
    if kind == 27:
        parent.children.insert(at, parent.children[(edit.value >> 8) % len(parent.children)])
    elif kind == 28:
        del parent.children[at]
    elif kind == 29:
        parent.children[at] = nodes[1 + (edit.value >> 8) % (len(nodes) - 1)] if len(nodes) > 1 else root
        _break_loops(root)
    else:
        parent.children[at].tag = _TAGS[(edit.value >> 8) % len(_TAGS)]


def _break_loops(root: Node) -> None:
    """An element that was put into itself, or too deep, becomes a leaf."""
    stack: list[tuple[Node, tuple[int, ...]]] = [(root, ())]
    steps = 0
    while stack:
        node, above = stack.pop()
        steps += 1
        if id(node) in above or len(above) > _MAX_DEPTH or steps > _MAX_NODES:
            node.children, node.content = [], b"\x00"
            continue
        stack.extend((child, (*above, id(node))) for child in node.children)


def _edit_leaf(leaf: Node, edit: Edit, kind: int, oids: list[bytes]) -> None:
    """Usually what stays valid for its type, sometimes anything."""
    old = leaf.content
    if kind < 24 and leaf.tag == _INTEGER:
        number = interesting(edit.value, 64)
        leaf.content = number.to_bytes(number.bit_length() // 8 + 1, "big")
    elif kind < 24 and leaf.tag == _OBJECT_IDENTIFIER:
        leaf.content = oids[edit.value % len(oids)]
    elif kind < 24 and leaf.tag == _NULL:
        leaf.content = b""
    elif kind < 18 and old:
        at = edit.value % len(old)
        leaf.content = old[:at] + bytes([old[at] ^ 1 << (edit.value >> 16) % 8]) + old[at + 1 :]
    elif kind < 21:
        leaf.content = old[: edit.value % (len(old) + 1)]
    elif kind < 26:
        leaf.content = old + TOKENS[edit.value % len(TOKENS)][:5000]
    else:  # also for an edit of a structure that is too large already
        leaf.content = bytes(edit.value % 300)
