"""What pytest leaves out: the site's configuration, and pages that have their tests elsewhere.

The lines of the report card need the libraries they are about: tests/benchmarks/test_report_card.py runs them.
"""

from importlib.metadata import version

collect_ignore = ["conf.py", "report-card.md"]
if version("torch") < "2.13":
    # It compiles a function of a doctest, which an older compiler looks for in the program, here pytest.
    collect_ignore.append("testing.md")
if version("torch").startswith("2.10."):
    # It compiles a model, where the compiler of torch 2.10 makes the logits and a warning says so.
    collect_ignore.append("language_models.md")
