# SPDX-License-Identifier: Apache-2.0
"""Image policies: what protection a partition must have, in the grammar of systemd.image-policy(7).

    root=signed                     a signature by a trusted certificate, or a pinned root hash
    root=verity+signed:usr=signed   clauses are joined by `:`, what each allows by `+`
    root=signed:=absent             one without a name is for all partitions that none names

rofs uses one set of partitions, and the clause of its designator (`root` or `usr`) decides about it. The
other partitions of an image are never touched, so clauses about them hold whatever is there. Pure: this
module parses; `verify` decides.

Two differences to systemd, both towards the closed side: a clause that names nothing (`root=`), which
systemd takes as `open`, is an error, and so are flags that ask for writing.
"""

from __future__ import annotations

from dataclasses import dataclass

from rofs.errors import InputError

# systemd.image-policy(7), "Description".
DESIGNATORS = (
    *("root", "usr", "home", "srv", "esp", "xbootldr", "swap"),
    *("root-verity", "root-verity-sig", "usr-verity", "usr-verity-sig", "tmp", "var"),
)
_USES = frozenset({"verity", "signed", "encrypted", "unprotected", "unused", "absent"})
_IGNORE = frozenset({"unused", "absent"})
_WORDS: dict[str, frozenset[str]] = {
    **{word: frozenset({word}) for word in _USES},
    "open": _USES,
    "ignore": _IGNORE,
    # True of every rofs mount.
    "read-only-on": frozenset(),
    "growfs-off": frozenset(),
}
_WRITING = frozenset({"read-only-off", "growfs-on"})
_SHORTHANDS = {"*": _USES, "-": _IGNORE, "~": frozenset({"absent"})}
_MAX_CHARS = 4096  # of a command line; each partition is named once, so a real one has under 1000


@dataclass(frozen=True, slots=True)
class Clause:
    """What a policy says about one partition.

    Attributes:
        text: As written, or how the rule that applied is called when nothing was written.
        allows: Words of systemd.image-policy(7), `open` and `ignore` resolved.
    """

    text: str
    allows: frozenset[str]

    @property
    def allows_use(self) -> bool:
        """Whether a partition with a hash tree, without encryption, may be used at all."""
        return bool(self.allows & {"signed", "verity", "unprotected"})

    @property
    def allows_unsigned(self) -> bool:
        """Whether the root hash may come from the image alone."""
        return bool(self.allows & {"verity", "unprotected"})


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """A parsed policy.

    Attributes:
        text: As written.
        clauses: By designator; the empty one is the default.
    """

    text: str
    clauses: tuple[tuple[str, Clause], ...]

    def clause_of(self, designator: str) -> Clause:
        """The clause that decides about `root` or `usr`."""
        clauses = dict(self.clauses)
        # What no clause names is ignored, says systemd.image-policy(7).
        unlisted = Clause(f"{designator} is not listed, so it is ignored", _IGNORE)
        return clauses.get(designator) or clauses.get("") or unlisted


def parse_image_policy(text: str) -> ImagePolicy:
    """Parse a policy.

    Args:
        text: `designator=word+word` joined by `:`, the default as `=word`, or one of `*` (all is
            allowed), `-` (all is ignored) and `~` (all must be absent).

    Raises:
        InputError: Names the clause, what was expected and what was found.
    """
    if len(text) > _MAX_CHARS:
        raise InputError(f"image policy has {len(text)} characters; expected at most {_MAX_CHARS}")
    if text in _SHORTHANDS:
        return ImagePolicy(text, (("", Clause(text, _SHORTHANDS[text])),))
    clauses: dict[str, Clause] = {}
    for written in text.split(":"):
        designator, clause = _parse_clause(text, written)
        if designator in clauses:
            raise InputError(
                f"image policy {text!r}: clause {written!r} is the second one for {designator or 'the default'}"
            )
        clauses[designator] = clause
    return ImagePolicy(text, tuple(clauses.items()))


def _parse_clause(text: str, written: str) -> tuple[str, Clause]:
    designator, equals, words = written.partition("=")
    where = f"image policy {text!r}: clause {written!r}"
    if not equals:
        raise InputError(f"{where} has no '='; expected PARTITION=WORD+WORD, such as root=signed")
    if designator and designator not in DESIGNATORS:
        raise InputError(f"{where}: unknown partition {designator!r}; expected one of {', '.join(DESIGNATORS)}")
    allows: frozenset[str] = frozenset()
    for word in words.split("+"):
        if word in _WRITING:
            raise InputError(f"{where}: {word!r} asks for writing, which rofs never does")
        if word not in _WORDS:
            raise InputError(f"{where}: unknown word {word!r}; expected {', '.join(sorted(_WORDS))}")
        allows |= _WORDS[word]
    if not allows:
        raise InputError(f"{where} allows nothing; expected at least one of {', '.join(sorted(_USES))}")
    return designator, Clause(written, allows)


DEFAULT_IMAGE_POLICY = parse_image_policy("root=signed:usr=signed")
