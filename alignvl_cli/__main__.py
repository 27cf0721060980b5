"""`alignvl` and `python -m alignvl_cli`: the same program."""

from alignvl_cli.app import app


def main() -> None:
    app(prog_name="alignvl")


if __name__ == "__main__":
    main()
