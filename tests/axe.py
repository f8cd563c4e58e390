"""axe-core, which finds what is hard to use with a disability, for the tests in a browser."""

from pathlib import Path

import axe_playwright_python

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
"""what a page evaluates once"""
VIOLATIONS = "(where) => axe.run(where ?? document, {resultTypes: ['violations']}).then((found) => found.violations)"
"""what it evaluates then, with a selector or for the whole page; no record of every element that passes is kept"""
