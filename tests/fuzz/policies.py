# SPDX-License-Identifier: Apache-2.0
"""Image policies for fuzzing: valid ones, whose words and separators are changed. Knows nothing of what they mean."""

from __future__ import annotations

import re

from .edits import TEXT_FLAGS, TEXT_KIND, TOKENS, Program, edit_text

_VALID = (
    b"root=signed",
    b"root=signed:usr=signed",
    b"root=verity+signed:root-verity=signed+absent:=unused+absent",
    b"usr=signed+read-only-on+growfs-off:root=ignore:home=open:=absent",
    b"root=encrypted+unprotected:swap=unused:esp=absent:usr=verity",
    b"*",
    b"-",
    b"~",
)
_WORDS = (
    *(b"root", b"usr", b"home", b"root-verity", b"usr-verity-sig", b"tmp", b""),
    *(b"signed", b"verity", b"encrypted", b"unprotected", b"unused", b"absent", b"open", b"ignore"),
    *(b"read-only-on", b"read-only-off", b"growfs-on", b"growfs-off", b"*", b"-", b"~", b"Signed", b" signed"),
    *(b"=", b":", b"+", b"\xff", b"s" * 5000),
)


def hostile_policy(program: Program) -> bytes:
    """A policy after all edits of its words; of its bytes only when the flags say so."""
    words = re.findall(rb"[^=:+]+|[=:+]", _VALID[program.seed % len(_VALID)])
    text_edits = []
    for edit in program.edits:
        at = edit.where % (len(words) + 1)
        if program.flags & TEXT_FLAGS == TEXT_FLAGS and edit.kind & TEXT_KIND:
            text_edits.append(edit)
        elif edit.kind % 8 < 3 and at < len(words) and words[at] not in b"=:+":
            words[at] = _WORDS[edit.value % len(_WORDS)]
        elif edit.kind % 8 < 5:
            words[at:at] = [b"+", _WORDS[edit.value % len(_WORDS)]] if edit.value & 0x100 else []
        elif edit.kind % 8 < 7:
            name, word = _WORDS[edit.value % len(_WORDS)], _WORDS[(edit.value >> 8) % len(_WORDS)]
            words += [b":", name, b"=", word]
        elif at < len(words):
            words[at] = TOKENS[edit.value % len(TOKENS)] if edit.value & 0x100 else b""
    text = b"".join(words)
    for edit in text_edits:
        text = edit_text(text, edit)
    return text
