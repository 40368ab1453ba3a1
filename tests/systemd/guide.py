"""The commands of the guides in docs/."""

import re
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
INSTALL = CHECKOUT / "docs/install.md"
NETWORK = CHECKOUT / "docs/network.md"


def read_blocks(guide: Path, language: str = "sh") -> dict[str, list[str]]:
    """The blocks of a language under each heading. Blocks for another system, which name it
    beside their language, are not among them."""
    _, *sections = re.split(r"^## ", guide.read_text(), flags=re.MULTILINE)
    block = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return {section.partition("\n")[0]: block.findall(section) for section in sections}
