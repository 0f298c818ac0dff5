"""The report on many runs: tables, comparisons, figures, and one page that opens offline.

options -> study (runs, parts, groups, comparisons) -> sections (tables and figures) -> files.
"""
