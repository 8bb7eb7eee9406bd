"""One file per format that a quantized weight can be written in, and `bits`, the only packer that they share.

Codes are signed int8 everywhere in memory (zeropoint.types); a format turns them into the tensors and the
configuration of a file, and back. `zeropoint.find.names("formats")` lists the formats.
docs/how-to-add-a-format.md says what a file here provides and what the conformance suite checks.
"""

from __future__ import annotations

NOT_CAPABILITIES = ("bits",)
