"""What pytest leaves out: the site's configuration, and pages that have their tests elsewhere.

The lines of the report card need the libraries they are about: tests/benchmarks/test_report_card.py runs them.
"""

collect_ignore = ["conf.py", "report-card.md"]
