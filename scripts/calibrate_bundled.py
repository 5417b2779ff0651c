"""Calibrate the bundled model's adaptive plans on the synthetic world, as a user would on videos of their own.

    python scripts/calibrate_bundled.py --work work/calibration --out src/everyframe/assets/bundled/calibration.json

Renders a few videos of every split (other seeds than any benchmark's) and calls `everyframe.audit.calibrate`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import everyframe as ef
from everyframe.audit import calibrate
from everyframe.synthetic import SPLITS, synthesize

SEED, SECONDS = 920, 40.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work/calibration"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--videos", type=int, default=3, help="of every split")
    arguments = parser.parse_args()
    folders = []
    for number, style in enumerate(SPLITS):
        folder = arguments.work / style
        if not (folder / "done").exists():
            for _ in synthesize(
                folder,
                videos=arguments.videos,
                seconds=SECONDS,
                seed=SEED + number,
                combinations="unseen",
                style=style,
            ):
                pass
            (folder / "done").touch()
        folders.append(folder)
    calibration, failures = calibrate(folders, ef.load("bundled"), progress=print)
    if failures:
        raise SystemExit("\n".join(failures))
    print(calibration.save(arguments.out))
    for point in calibration.points:
        print(point)
    print("weights", calibration.weights)


if __name__ == "__main__":
    main()
