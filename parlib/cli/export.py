"""A run's model as open_clip's folder with a card: python -m parlib.cli.export RUN [FOLDER]."""

import argparse
import sys
from pathlib import Path

from parlib.cache import check_surroundings
from parlib.model.export import export_model
from parlib.records.store import outputs, read


def main(arguments: list[str] | None = None) -> int:
    """The command line; FOLDER is outputs/<scale>/<run>_model where it isn't named."""
    parser = argparse.ArgumentParser(prog="python -m parlib.cli.export", description=__doc__)
    parser.add_argument("run", help="a run id, such as 02_clean/par_badnet_stripes_s0")
    parser.add_argument("folder", nargs="?", type=Path, help="a new or empty folder")
    parser.add_argument("--scale", default="small")
    asked = parser.parse_args(arguments)
    try:
        check_surroundings()
        folder = export_model(read(asked.scale, asked.run), asked.folder or outputs(asked.scale) / f"{asked.run}_model")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f'wrote {folder}: load it with open_clip.create_model_and_transforms("local-dir:{folder}")')
    return 0


if __name__ == "__main__":
    sys.exit(main())
