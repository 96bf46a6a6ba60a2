"""Folders of the YAML files: beside the package in a checkout, inside it in an installed wheel."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CONF_DIR", "SWEEPS_DIR"]

_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = _PACKAGE.parent
# An editable install may leave a stale copy under _shipped, so the checkout comes first.
_ROOT = _CHECKOUT if (_CHECKOUT / "conf" / "config.yaml").is_file() else _PACKAGE / "_shipped"

CONF_DIR = _ROOT / "conf"
SWEEPS_DIR = _ROOT / "sweeps"
