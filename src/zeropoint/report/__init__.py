"""Stage 9, REPORT: results for people, made from the structs of `evaluate.results` alone.

Nothing here reads a model or prints: `terminal` and its like return what rich renders, and cli/console.py prints it.

page          one HTML page, from what `made` finds beside the weights; laid out by templates/
sections      what each part of it says of one model
side_by_side  several models; `difference`: how far two results lie apart, with an interval
layers        the map of errors, and what one layer opens
charts        Vega-Lite by Altair
figures       numbers as texts, tables as data
"""

from __future__ import annotations
