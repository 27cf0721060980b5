"""`alignvl` and `python -m alignvl_cli`: the same program."""

import os

# Threads that wait for each other sleep instead of spinning: on a machine with anything else to do, and decoding
# workers are that, spinning takes the cores away from the work. Read by OpenMP when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from alignvl_cli.cli.app import app


def main() -> None:
    if "_ALIGNVL_COMPLETE" in os.environ:  # a shell asks; Typer's own options for this cost every start their imports
        from typer.completion import completion_init

        completion_init()
    app(prog_name="alignvl")


if __name__ == "__main__":
    main()
