"""What a study would take, in words."""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from alignvl_cli.report.amounts import as_size, counted, roughly
from alignvl_cli.report.text import safe

if TYPE_CHECKING:
    from alignvl_cli.ablation.plan import StudyPlan


def plan_text(plan: "StudyPlan") -> RenderableType:
    """What it takes, what is there, and whether the seeds can settle it."""
    times = sorted(plan.seconds_by_arm.items(), key=lambda entry: entry[1])
    fastest, slowest = times[0], times[-1]
    a_run = f"{roughly(fastest[1])} ({fastest[0]}) to {roughly(slowest[1])} ({slowest[0]})"
    lines = [
        f"{plan.name}: {plan.question}",
        f"{plan.runs:,} runs: {plan.arms} arms x {plan.seeds} seeds; {plan.finished:,} of them finished",
        f"a run takes about {a_run}, by {plan.measured}",
        f"what is left takes about {roughly(plan.seconds)}, {plan.processes} at a time on {plan.device} with "
        f"{counted(plan.threads, 'thread')} each",
        f"disk: about {as_size(plan.disk_bytes)} more, {as_size(plan.free_bytes)} free, in {plan.folder}",
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
            f"{counted(plan.seeds, 'seed')} cannot find any difference: "
            f"{plan.seeds_needed} are needed (exact sign-flip test, Holm over {contrasts}), "
            f"e.g. --seeds 0-{plan.seeds_needed - 1}"
        )
    return Group(*map(safe, lines))
