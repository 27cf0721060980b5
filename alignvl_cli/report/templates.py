"""HTML from the templates of this room: every value escaped, nothing left undefined, one style for all pages."""

from typing import TYPE_CHECKING, Any

from alignvl_cli.errors import UsageError
from alignvl_cli.report.text import visible

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> str:
    """`template` of this room filled in; UsageError without jinja2.

    `{{ text | shown }}` shows control characters instead of letting them act.
    """
    return _environment().get_template(template).render(**values)


def _environment() -> "Environment":
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as problem:
        raise UsageError('a page needs jinja2: pip install "alignvl[report]"') from problem

    environment = Environment(
        loader=PackageLoader("alignvl_cli.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = visible
    return environment
