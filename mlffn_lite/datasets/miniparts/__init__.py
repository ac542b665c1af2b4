"""MiniParts: a small synthetic set in MVTec AD's layout, drawn by this package and bundled with the repository."""

from .files import CATEGORIES, COUNTS, VISIBLE, difficulty, generate, miniparts_path, render, verify_manifest

__all__ = ["CATEGORIES", "COUNTS", "VISIBLE", "difficulty", "generate", "miniparts_path", "render", "verify_manifest"]
