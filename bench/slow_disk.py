"""The server on a disk whose every sync takes longer: `python -m bench.slow_disk MS FILE`.

FILE grows by a byte with each slowed sync, so that whoever measures knows that they happened.
"""

import sys
import time
from functools import partial
from pathlib import Path

from orchestrator import app
from orchestrator.cli.main import main
from orchestrator.stores.sqlite import open_store
from orchestrator.stores.sqlite.sync import fdatasync

MS, FILE = float(sys.argv[1]), Path(sys.argv[2])


def slowly(descriptor: int) -> None:
    time.sleep(MS / 1000)
    with FILE.open("ab") as file:
        file.write(b".")
    fdatasync(descriptor)


if __name__ == "__main__":
    app.open_store = partial(open_store, sync=slowly)  # type: ignore[attr-defined]  # its own seam
    sys.argv = ["orchestrator"]
    main()
