"""`mmchat train --dry-run`: what a run would do."""

from collections.abc import Callable
from typing import Any

from mmchat.cli.training_job import Wish, read_material, recipe_of, with_data
from mmchat.display.numbers import format_duration


def plan_of(wish: Wish, say: Callable[[str], None]) -> dict[str, Any]:
    """The plan of a run, made without loading weights."""
    recipe, folder = recipe_of(wish)
    material = read_material(wish, recipe, folder)
    from mmchat.training.prepare import prepare
    from mmchat.training.run_plan import plan

    prepared = prepare(
        with_data(recipe, material, wish),
        material.train,
        material.held_out,
        allow_bad=wish.allow_bad,
        say=say,
    )
    whole = [*material.train.examples, *material.held_out]
    kinds = [example.kind for example in whole]
    return {
        "name": recipe.name,
        "model": recipe.model,
        "form": material.train.form,
        "examples": len(kinds),
        "pictures": len({p.sha256 for e in whole for p in e.pictures}),
        "corrected": kinds.count("corrected") if material.train.form == "your own history" else 0,
        "good": kinds.count("good") if material.train.form == "your own history" else 0,
        "problems": len(material.train.problems) + len(prepared.problems),
        "remarks": list(material.train.remarks),
        "held_out": len(material.held_out),
        **plan(prepared),
    }


def say_plan(plan: dict[str, Any]) -> None:
    """Prints the plan for people."""
    from mmchat.cli.output import say, say_table

    rows = [
        (
            "data",
            f"{plan['form']}: {plan['examples']:,} conversations, {plan['pictures']:,} pictures",
        ),
        ("held out", f"{plan['held_out']:,} conversations"),
        ("left out", f"{plan['problems']:,}"),
        ("tokens", f"{plan['tokens']:,} to train on, {plan['step_tokens']:,.0f} per step"),
        ("old material", f"{plan['replay']:.0%} of each step"),
        *((f"stage {stage['name']}", _stage_words(stage)) for stage in plan["stages"]),
        ("trains", f"{plan['trainable_parameters']:,} of {plan['parameters']:,} parameters"),
        ("memory", plan["memory"]),
        ("time", f"about {format_duration(plan['seconds'])}, then the measurement"),
    ]
    say_table(rows)
    for remark in plan["remarks"]:
        say(remark)
    say(f"Nothing was changed. Without --dry-run, it trains {plan['name']} for {plan['model']}.")


def _stage_words(stage: dict[str, Any]) -> str:
    times = f"{stage['epochs']:.1f} epochs"
    steps = f"{stage['method']}, {stage['steps']:,} steps of {stage['batch']} samples ({times})"
    return f"{steps}, learning rate {stage['learning_rate']:.1e}"
