"""Write and execute examples/quickstart.ipynb: a run in Python, with what a notebook shows of it.

python tools/make_notebook.py            needs nbclient and ipykernel
"""

from __future__ import annotations

from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"
#: Texts begin with "#", all else is code; run in the folder of the notebook.
CELLS = [
    """# A run in Python

The quickstart, cut down to seconds: few members, few steps, few held-out prompts. Its numbers say nothing; leave the
overrides out for those of the README.""",
    """import tempfile

import t2ialign

small = {"run.steps": 2, "optimizer.population": 8, "prompts.per_step": 4, "evaluation.limit": 8}
run = t2ialign.run("../specs/quickstart.toml", small | {"run.out": tempfile.mkdtemp()}, quiet=True)
run""",
    """# The numbers

`summary` is what `evaluation/summary.json` holds, `metrics` has a line for every step; pandas takes it as it is.""",
    """pair = run.summary["paired"]["tuned"]["clip"]
print({name: pair[name] for name in ("difference", "se", "win_rate")})
run.metrics.of("step", "reward/clip", "evaluation/clip")""",
    """# Images

Base and tuned of the same noise, with their scores.""",
    """before, after = run.images["base"][0], run.images["tuned"][0]
print(before.scores, after.scores)
after""",
    """# On from here

The LoRA, the page, and a run that goes on: `t2ialign resume` in Python.""",
    """print(run.lora.name, run.report.name)
longer = t2ialign.open_run(run.path).resume({"run.steps": 3}, quiet=True)
longer.metrics[-1]["step"]""",
]


def main() -> None:
    import nbformat
    from nbclient import NotebookClient

    new = nbformat.v4
    cells = [new.new_markdown_cell(t) if t.startswith("#") else new.new_code_cell(t) for t in CELLS]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    book = new.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    place = {"metadata": {"path": str(EXAMPLE.parent)}}
    NotebookClient(book, timeout=1800, resources=place, record_timing=False).execute()
    book.metadata.pop("language_info", None)  # the interpreter's version
    for cell in book.cells:  # what libraries say of this machine
        cell["outputs"] = [output for output in cell.get("outputs", ()) if output.get("name") != "stderr"]
        for output in cell["outputs"]:
            if "text/html" in output.get("data", ()):
                del output["data"]["text/plain"]  # names the folder of this call
        if cell["cell_type"] == "markdown":
            del cell["outputs"]
    nbformat.write(book, EXAMPLE)


if __name__ == "__main__":
    main()
