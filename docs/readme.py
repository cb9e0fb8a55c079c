"""Writes the README's tables from what they show: `python docs/readme.py [OUT]`, or `make readme`.

The table of flows is the library's own. That of claims is of a run of `traindyn verify` in the folder OUT, if given.
"""

import sys
from pathlib import Path

from traindyn.dynamics import BlowsUp, ClosedForm, Conserving, flows
from traindyn.sweeps.flows import of_flow
from traindyn.validate import built_in, read, results

README = Path(__file__).parent.parent / "README.md"
FLOWS = "| flow | is | offers |\n|---|---|---|\n", "\n\n"
CLAIMS = "```\nclaim  ", "```\n\n*Measured*"
OFFERS = {ClosedForm: "`exact`", Conserving: "`invariants`", BlowsUp: "`blow_up_time`"}


def flow_rows() -> str:
    """A row a flow: its name, the first paragraph of its docstring, what its type offers."""
    rows = []
    for name, kind in flows().items():
        statement = of_flow(name, kind).statement.replace("|", "\\|")
        offers = [word for protocol, word in OFFERS.items() if issubclass(kind, protocol)]
        rows.append(f"| `{name}` | {statement} | {', '.join(offers) or '–'} |")
    return "\n".join(rows)


def claim_rows(out: str) -> str:
    """What `traindyn verify` printed of the run in `out`, claims in their order, from the second word of its header."""
    order = {claim.name: i for i, claim in enumerate(built_in())}
    found = sorted(read(out), key=lambda result: order[result["name"]])
    lines = [results.header(), *map(results.line, found), "", results.summary(found), ""]
    return "\n".join(lines).removeprefix("claim  ")


def replaced(text: str, place: tuple[str, str], new: str) -> str:
    """`text` with `new` between the two marks of `place`."""
    before, start, rest = text.partition(place[0])
    _, end, after = rest.partition(place[1])
    return before + start + new + end + after


if __name__ == "__main__":
    text = replaced(README.read_text(encoding="utf-8"), FLOWS, flow_rows())
    if len(sys.argv) > 1:
        text = replaced(text, CLAIMS, claim_rows(sys.argv[1]))
    README.write_text(text, encoding="utf-8")
