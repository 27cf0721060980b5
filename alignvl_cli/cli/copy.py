"""`alignvl copy`: a store, run or index to a bucket or from one."""

from typing import Annotated

import typer

from alignvl_cli.cli.console import Session


def copy(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Store, run or index, or its URL.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Path or URL to make; one of the two is a URL.")],
) -> None:
    """Copy a store, run or index to a bucket or from one.

    It is checked by its own hashes, and appears whole or not at all. Prints the target. Of a web server (https)
    a store can be copied; s3 and gs can be written to as well.
    """
    from alignvl_cli.export.copying import copy_artefact
    from alignvl_cli.remote import shown

    copy_artefact(source, target)
    session.result(shown(target))
