"""What a weight file may make its reader allocate."""

from __future__ import annotations

#: This many times the file's size, and a constant number of bytes. Arrays take as much as their
#: values take in the file, except packed integers (eight times) and compressed archives.
FACTOR, CONSTANT = 16, 64 * 2**20
#: The same factor for compressed archives (`.npz`): twice what zip's compression can reach.
COMPRESSED = 2064
#: Characters of one name.
MAX_NAME = 1000


class Budget:
    """Bytes a file may still make its reader allocate: half of the bound, the rest is overhead.

    Args:
      size: bytes of the file.
      factor: bytes allowed for each of them.
    """

    def __init__(self, size: int, factor: int = FACTOR):
        self.left = (factor * size + CONSTANT) // 2

    def draw(self, amount: int) -> None:
        """Takes `amount` bytes.

        Raises:
          ValueError: there are not so many left.
        """
        self.left -= amount
        if self.left < 0:
            raise ValueError("it asks for far more memory than its size warrants")


def checked_name(name: str) -> str:
    """The name.

    Raises:
      ValueError: it is longer than any name of a network.
    """
    if len(name) > MAX_NAME:
        raise ValueError(f"a name of {len(name)} characters")
    return name
