"""What the programs that work on a shop have in common; they are killed or failed as they do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).parent))

from conftest import Shop, make_shop

from storage.errors import StorageError


def work_on(folder: str, work: Callable[[Shop], object]) -> int:
    """Open the shop in a folder and do something with it: 0 when that is done, 3 when the store
    said why not.
    """
    try:
        shop = make_shop(Path(folder))
    except (StorageError, OSError) as error:
        print(f"not opened: {error}")
        return 3
    try:
        work(shop)
    except StorageError as error:
        print(f"{type(error).__name__}: {error}")
        return 3
    return 0


def leave(status: int) -> NoReturn:
    """End and close nothing: whatever is durable was so when the store said that it is done."""
    sys.stdout.flush()
    os._exit(status)
