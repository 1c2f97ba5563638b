"""The report card: the conformance kit over our losses, torch's and other libraries', written to docs/."""
