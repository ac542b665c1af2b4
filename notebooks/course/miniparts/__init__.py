"""What drew MiniParts, the bundled set in MVTec AD's layout, and draws other sets of its kind, or a single picture.

Three categories (a cloth, a turned part, scattered caplets), each with 60 + 20 flawless pictures and 40 with one defect
of four kinds, at 256 × 256. Every picture depends on its own name and the seed only, so any one can be drawn alone.

A defect changes the *scene*, before the light falls on it. A mask marks what can be seen of it: the pixels where the
picture differs from its *twin*, the same scene, light and camera without the defect, by more than `VISIBLE` grey levels
(of 255, in any channel, before grain), closed over gaps of a few pixels. The defects share no code with the
pseudo-anomalies of §2.1.
"""

from .drawing import VISIBLE, render
from .files import generate
from .names import COUNTS, difficulty

__all__ = ["COUNTS", "VISIBLE", "difficulty", "generate", "render"]
