"""What a study would take, in words."""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from alignvl_cli.report.text import safe

if TYPE_CHECKING:
    from alignvl_cli.ablation.plan import StudyPlan


def plan_text(plan: "StudyPlan") -> RenderableType:
    times = sorted(plan.seconds_by_arm.items(), key=lambda entry: entry[1])
    fastest, slowest = times[0], times[-1]
    a_run = f"{duration(fastest[1])} ({fastest[0]}) to {duration(slowest[1])} ({slowest[0]})"
    lines = [
        f"{plan.name}: {plan.question}",
        f"{plan.runs:,} runs: {plan.arms} arms x {plan.seeds} seeds; {plan.finished:,} of them finished",
        f"a run takes about {a_run}, by {plan.measured}",
        f"what is left takes about {duration(plan.seconds)}, {plan.processes} at a time on {plan.device} with "
        f"{plan.threads} {'thread' if plan.threads == 1 else 'threads'} each",
        f"disk: about {_size(plan.disk_bytes)} more, {_size(plan.free_bytes)} free, in {plan.folder}",
    ]
    if plan.disk_bytes > plan.free_bytes:
        lines.append("that is more than there is")
    contrasts = plan.arms - 1
    if plan.can_settle:
        lines.append(
            f"{plan.seeds} seeds can settle it: {plan.seeds_needed} or more are needed "
            f"(exact sign-flip test, Holm over {contrasts})"
        )
    else:
        lines.append(
            f"{plan.seeds} {'seed' if plan.seeds == 1 else 'seeds'} cannot find any difference: "
            f"{plan.seeds_needed} are needed (exact sign-flip test, Holm over {contrasts}), "
            f"e.g. --seeds 0-{plan.seeds_needed - 1}"
        )
    return Group(*map(safe, lines))


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"
