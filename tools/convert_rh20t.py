"""Convert RH20T, as it is released, into an RLDS dataset with cameras and depth.

    python tools/convert_rh20t.py RH20T_cfg3 --tasks task_description.json --out data

writes data/rh20t/1.0.0 with its card.yaml. See docs/rh20t.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["SPATIALVLA_FT_LIGHT"] = "1"  # TensorFlow writes here, so torch must stay out

import numpy as np

from spatialvla_ft.converters.rh20t import convert, layout
from spatialvla_ft.converters.rh20t.episode import Episode, Options

DEFAULT_CAMERAS = ("primary=front", "wrist=wrist")
REPORT_EVERY = 50


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("root", type=Path, help="RH20T_cfgN, unpacked, or a folder with several of them")
    add("--tasks", type=Path, required=True, help="the release's task_description.json")
    add("--out", type=Path, required=True, help="where datasets lie")
    add("--name", default="rh20t", help="of the dataset; default %(default)s")
    add("--hz", type=float, default=5.0, help="steps per second; default %(default)s")
    add(
        "--camera",
        action="append",
        metavar="SLOT=CAMERA",
        help="front, wrist or a serial number, once per slot; or just: all, for every camera that "
        f"all scenes have; default {' '.join(DEFAULT_CAMERAS)}",
    )
    add("--no-depth", action="store_true", help="do without depth")
    add("--min-rating", type=int, default=2, help="0 and 1 are failures; default %(default)s")
    add(
        "--gripper",
        choices=["gripper_command", "gripper_info"],
        default="gripper_command",
        help="which width tells open from closed; default %(default)s",
    )
    add("--max-gap", type=float, default=200.0, help="milliseconds; default %(default)s")
    add(
        "--tcp",
        choices=["absolute", "difference"],
        help="what tcp_base.npy holds, where the statistic cannot tell",
    )
    return parser.parse_args()


def main() -> int:
    """Convert; 0 if there is a dataset, 1 if there is not."""
    args = parse()
    try:
        return run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace) -> int:
    """Scan, decide, write, report."""
    if (args.out / args.name).exists():
        raise ValueError(f"{args.out / args.name} exists; remove it, or choose another --name")
    scenes = layout.find_scenes(args.root)
    options = Options(
        cameras=convert.parse_cameras(args.camera or DEFAULT_CAMERAS, scenes),
        hz=args.hz,
        depth=not args.no_depth,
        min_rating=args.min_rating,
        gripper=args.gripper,
        max_gap=args.max_gap,
    )
    tally = convert.Tally()
    prepared = convert.prepare_all(scenes, layout.read_tasks(args.tasks), options, tally)
    print(f"{len(scenes)} scenes, {len(prepared)} may be converted")
    path = None
    if prepared:
        print(f"\ntcp_base.npy:\n{convert.statistic(prepared)}\n")
        kind = args.tcp or convert.decide_tcp_kind(prepared)
        print(f"tcp_base.npy is taken as {kind}" + (" because --tcp says so" if args.tcp else ""))
        episodes = reported(convert.convert_all(prepared, kind, options, tally), len(prepared))
        path = convert.write_dataset(episodes, out=args.out, name=args.name, options=options)
    for reason, count in tally.skipped.most_common():
        print(f"skipped {count}: {reason}\n  e.g. {tally.examples[reason]}")
    if path is None:
        print("error: no scene could be converted; nothing was written", file=sys.stderr)
        return 1
    millimetres = 1000 * np.array(tally.position_error)
    print(
        f"{tally.episodes} episodes, {tally.steps} steps in {path}\n"
        f"tool poses through a camera differ by {np.median(millimetres):.2f} mm in the median, "
        f"{millimetres.max():.2f} mm at most"
    )
    return 0


def reported(episodes: Iterator[Episode], count: int) -> Iterator[Episode]:
    """The same episodes, with a line on standard error now and then."""
    for number, episode in enumerate(episodes, start=1):
        yield episode
        if number % REPORT_EVERY == 0:
            print(f"{number} episodes of at most {count}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
