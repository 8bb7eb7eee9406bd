"""Stage 9, REPORT: results for people, made from the structs of `evaluate.results` alone.

Nothing here computes, reads a model or prints: `terminal` returns what rich renders, and cli/console.py prints it.
"""

from __future__ import annotations
