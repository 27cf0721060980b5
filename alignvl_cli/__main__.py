"""`alignvl` and `python -m alignvl_cli`: the same program."""

import os

# Threads that wait for each other sleep instead of spinning: on a machine with anything else to do, and decoding
# workers are that, spinning takes the cores away from the work. Read by OpenMP when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from alignvl_cli.cli.interrupts import leave_at_once

leave_at_once()

from alignvl_cli.cli.app import app  # noqa: E402  (takes a while, in which a Ctrl-C is answered already)


def main() -> None:
    if "_ALIGNVL_COMPLETE" in os.environ:  # a shell asks; Typer's own options for this cost every start their imports
        from typer.completion import completion_init

        completion_init()
    app(prog_name="alignvl")


if __name__ == "__main__":
    main()
