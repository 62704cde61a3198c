"""A rule, a device, a release and a data set of your own, served by the program like its own.

    pip install --no-deps examples/own_parts
    python examples/own_parts/run.py

Each is one file in `own_parts/`, with a card above it that says what help texts, reports, statements and audits print;
`pyproject.toml` registers each by one line.
"""

from optical_dfa.cli import main
from privacy.auditing.audit import audit

status = main(
    ["train", "--rule", "half-dfa", "--backend", "mirrored", "--release", "plain-noise", "--dataset", "stripes",
     "--out", "run"]
)  # fmt: skip
report = audit("run")
guarantee = report.guarantee
print(f"audit: {report.releases} releases; consistent: {report.consistent}; {guarantee}")
