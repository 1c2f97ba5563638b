"""The lines of the report card need the libraries they are about: tests/benchmarks/test_report_card.py runs them."""

collect_ignore = ["report-card.md"]
