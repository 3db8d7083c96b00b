"""`zsaq methods`: what there is."""

from typing import Annotated, Any

import typer

from zsaq_cli.answer import Json, Outcome, answer, hushed

BY_MODEL = "by the model"  # a setting that depends on what is quantized


def methods(
    name: Annotated[str | None, typer.Argument(help="One method: its options at every effort.")] = None,
    as_json: Json = False,
) -> None:
    """List the methods: what each does, what the teacher needs, what it costs.

    Examples:

    \b
    zsaq methods
    zsaq methods genie
    """

    def work() -> Outcome:
        import zsaq
        from zsaq.report.table import Table

        tables = zsaq.methods()
        rows = {
            room: [
                {"name": m.name, "what it does": m.idea, "paper": m.paper, "needs": m.needs, "cost": m.cost}
                for m in table.values()
                if name in (None, m.name)
            ]
            for room, table in tables.items()
        }
        if name is not None and not any(rows.values()):
            listed = "; ".join(f"{room}: {', '.join(table)}" for room, table in tables.items())
            raise ValueError(f"there is no method {name!r}; there are {listed}")
        facts: dict[str, Any] = dict(rows)
        shown = [Table(listed).to_terminal(room) for room, listed in rows.items() if listed]
        if name is not None:
            for room, table in tables.items():
                if name in table:
                    at = {effort: table[name].options(effort) for effort in ("light", "default", "best")}
                    options = [
                        {"option": key, **{effort: values[key] for effort, values in at.items()}} for key in at["light"]
                    ]
                    facts[f"{room} options"] = options
                    shown.append(
                        Table(
                            [{k: BY_MODEL if v is None else v for k, v in row.items()} for row in options]
                        ).to_terminal(f"options of {name}")
                    )
        return Outcome(facts, tuple(shown))

    answer(as_json, hushed(work))
