"""The commands of docs/install.md."""

import re
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
GUIDE = CHECKOUT / "docs/install.md"


def read_commands() -> dict[str, list[str]]:
    """The blocks of commands under each heading, except those for another system, which is
    named after their language."""
    _, *sections = re.split(r"^## ", GUIDE.read_text(), flags=re.MULTILINE)
    return {
        section.partition("\n")[0]: re.findall(
            r"^```sh\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL
        )
        for section in sections
    }
